"""`bandolero`: serve, manage, report and refresh from the command line.

Exit codes: 0 ok, 1 failure, 2 usage, 3 a gate kept the old prior, 4 refused-row limit.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bandolero_service import (
    backup,
    commands,
    evaluating,
    prior_commands,
    refreshing,
)
from bandolero_service.commands import (
    CommandError,
    Place,
    RefusedLimitError,
    UsageError,
)
from bandolero_service.corrected import list_corrected
from bandolero_service.embedded import EmbeddedStoreError
from bandolero_service.errors import ApiError
from bandolero_service.options import (
    DataDirOption,
    LakeOption,
    MappingOption,
    MaxRefusedOption,
    PathsArgument,
    RowsTenantOption,
    StoreOption,
    TenantOption,
    placed,
)
from bandolero_service.secret import check_exposure
from bandolero_service.settings import PARENT, SettingsError, read_settings
from bandolero_service.store import RefusedStoreError, StoreDownError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Real-time creative decisions with Thompson sampling, and honest reports.",
)
experiment_app = typer.Typer(no_args_is_help=True, help="Apply, list and show.")
keys_app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")
audit_app = typer.Typer(no_args_is_help=True, help="List and verify the audit log.")
priors_app = typer.Typer(no_args_is_help=True, help="List, compare and roll back.")
lake_app = typer.Typer(no_args_is_help=True, help="Give up files that are lost.")
ingest_app = typer.Typer(no_args_is_help=True, help="Load files into the lake.")
app.add_typer(experiment_app, name="experiment")
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
app.add_typer(ingest_app, name="ingest")
app.add_typer(priors_app, name="priors")
app.add_typer(lake_app, name="lake")

GATE_BLOCKED = 3


@app.command(
    epilog="Example: bandolero serve --data-dir ./data --port 8080 --workers 2"
)
def serve(
    store: StoreOption = None,
    data_dir: DataDirOption = None,
    lake: LakeOption = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256)] = None,
    role: Annotated[
        str | None, typer.Option(help="Only one of: api, learner, archiver.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Serve /metrics of a learner or archiver here."
        ),
    ] = None,
    listen_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run API workers, learner and archiver, with the embedded store or a given one."""
    settings = read_settings(
        store=store,
        data_dir=data_dir,
        lake=lake,
        port=port,
        host=host,
        workers=workers,
    )
    if metrics_port is not None and role not in ("learner", "archiver"):
        rule = "must come with --role learner or archiver; API workers have a /metrics."
        raise typer.BadParameter(f"{metrics_port}, {rule}", param_hint="--metrics-port")
    if role in (None, "api"):
        check_exposure(settings)
        if settings.jwks and PARENT not in os.environ:
            from bandolero_service.people import check_key_set

            check_key_set(settings)
    if role is not None:
        from bandolero_service.ending import die_with_parent
        from bandolero_service.roles import run_role

        if role not in ("api", "learner", "archiver"):
            raise typer.BadParameter(f"{role!r}, must be api, learner or archiver.")
        if (parent := os.environ.get(PARENT)) is not None:
            die_with_parent()
            if os.getppid() != int(parent):
                return
        run_role(role, settings, listen_fd, metrics_port)
        return
    from bandolero_service.logs import log_to_stderr
    from bandolero_service.supervisor import Supervisor

    log_to_stderr("serve", settings.log_format)
    Supervisor(settings).run()


@experiment_app.command("apply", epilog="Example: bandolero experiment apply hero.yaml")
@placed
def experiment_apply(
    place: Place,
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    tenant: TenantOption = None,
    start: Annotated[bool, typer.Option(help="Start it too.")] = False,
) -> None:
    """Create or change experiments from YAML or JSON files."""
    commands.apply_experiments(place, files, tenant, start)


@experiment_app.command("list", epilog="Example: bandolero experiment list")
@placed
def experiment_list(place: Place, tenant: TenantOption = None) -> None:
    """List experiments."""
    commands.list_experiments(place, tenant)


@experiment_app.command("show", epilog="Example: bandolero experiment show spring-hero")
@placed
def experiment_show(
    place: Place,
    experiment_id: str,
    tenant: TenantOption = None,
) -> None:
    """Show an experiment's record as JSON."""
    commands.show_experiment(place, experiment_id, tenant)


@app.command(
    epilog="Example: bandolero report spring-hero --format html --output r.html"
)
@placed
def report(
    place: Place,
    experiment_id: str,
    format: Annotated[  # noqa: A002  # the name of the option
        str, typer.Option(help="table, json, html, csv or parquet.")
    ] = "table",
    segment: Annotated[
        str | None,
        typer.Option(help="Also by level of a context field, as of the last refresh."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File; default stdout.")] = None,
    tenant: TenantOption = None,
) -> None:
    """Report what an experiment's variants earned and how sure that is."""
    if format not in commands.REPORT_FORMATS:
        rule = f"must be one of {', '.join(commands.REPORT_FORMATS)}."
        raise typer.BadParameter(f"{format!r}, {rule}", param_hint="--format")
    commands.report(place, experiment_id, tenant, format, output, segment)


@app.command(epilog="Example: bandolero refresh --summary refresh.json")
@placed
def refresh(
    place: Place,
    engine: Annotated[
        str, typer.Option(help="Query engine: duckdb or spark.")
    ] = "duckdb",
    memory_limit: Annotated[
        str, typer.Option(help="What it may hold before it goes to disk.")
    ] = "3GB",
    spark_master: Annotated[
        str, typer.Option(help="Where Spark runs; it must see the lake's folder.")
    ] = "local[*]",
    until: Annotated[
        str | None, typer.Option(help="Only what was logged before, ISO 8601.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Compute, but publish nothing.")
    ] = False,
    summary: Annotated[Path | None, typer.Option(help="Write a JSON summary.")] = None,
    tenant: TenantOption = None,
) -> None:
    """Run the nightly job: settle with hindsight, correct, fit priors, compact the lake.

    Exit code 3 says that a gate kept a prior back; one that is in force stays.
    """
    chosen = (engine, memory_limit, spark_master)
    if not refreshing.refresh(place, tenant, until, dry_run, summary, chosen):
        raise typer.Exit(GATE_BLOCKED)


@app.command(epilog="Example: bandolero corrected spring-hero --tenant acme")
@placed
def corrected(
    place: Place,
    experiment_id: Annotated[
        str | None, typer.Argument(help="Which; default: all.")
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """List the rewards that the last refresh told otherwise, and why."""
    list_corrected(place, experiment_id, tenant)


@app.command(
    epilog="Example: bandolero replay spring-hero, or bandolero replay --restore"
)
@placed
def replay(
    place: Place,
    experiment_id: Annotated[
        str | None, typer.Argument(help="Which; none with --restore.")
    ] = None,
    restore: Annotated[
        bool,
        typer.Option("--restore", help="Rebuild a new, empty store from the lake."),
    ] = False,
    tenant: TenantOption = None,
) -> None:
    """Fold the lake offline and compare with the served snapshot, or restore from it."""
    if restore and (experiment_id or tenant):
        raise UsageError("--restore takes every experiment: leave ID and tenant out.")
    if restore:
        backup.restore(place)
    elif experiment_id is None:
        raise UsageError("ID is missing: say which experiment, or --restore.")
    else:
        commands.replay(place, experiment_id, tenant)


app.command(
    epilog="Example: bandolero evaluate spring-hero --policy greedy --format json"
)(evaluating.evaluate)


@ingest_app.command(
    "decisions",
    epilog="Example: bandolero ingest decisions logs/ --mapping shop.yaml --max-refused 1%",
)
@placed
def ingest_decisions(
    place: Place,
    paths: PathsArgument,
    mapping: MappingOption = None,
    max_refused: MaxRefusedOption = None,
    tenant: RowsTenantOption = None,
) -> None:
    """Load decisions; refused rows go to quarantine with their reason."""
    from bandolero_service.loading import load

    load(place, "decisions", paths, mapping, max_refused, tenant)


@ingest_app.command(
    "events", epilog="Example: bandolero ingest events s3://exports/clicks.parquet"
)
@placed
def ingest_events(
    place: Place,
    paths: PathsArgument,
    mapping: MappingOption = None,
    max_refused: MaxRefusedOption = None,
    tenant: RowsTenantOption = None,
) -> None:
    """Load events; refused rows go to quarantine with their reason."""
    from bandolero_service.loading import load

    load(place, "events", paths, mapping, max_refused, tenant)


@lake_app.command(
    "give-up",
    epilog="Example: bandolero lake give-up events/date=2026-11-20/FILE.parquet",
)
@placed
def lake_give_up(
    place: Place,
    paths: Annotated[
        list[str], typer.Argument(help="As `bandolero refresh` names them.")
    ],
) -> None:
    """Go on without files of the lake that cannot be read and will not come back."""
    backup.give_up(place, paths)


@keys_app.command(
    "create",
    epilog="Example: bandolero keys create --tenant acme --scopes decide,events",
)
@placed
def keys_create(
    place: Place,
    tenant: Annotated[str, typer.Option(help="Whose key it is.")],
    scopes: Annotated[
        str, typer.Option(help="Comma-separated: decide, events, report, admin.")
    ] = "decide,events",
    expires: Annotated[
        str | None, typer.Option(help="90d, 12h, 30m or an ISO date; default never.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Most requests to decide and events: 100/s, 5000/m, … Each worker lets"
            " its share through, so one connection gets no more than that."
        ),
    ] = None,
) -> None:
    """Make an API key and print it alone on stdout; it is not shown again."""
    commands.create_key(place, tenant, scopes, expires, rate)


@keys_app.command("list", epilog="Example: bandolero keys list")
@placed
def keys_list(place: Place, tenant: TenantOption = None) -> None:
    """List keys by id; secrets are not kept."""
    commands.list_keys(place, tenant)


@keys_app.command("export", epilog="Example: bandolero keys export > keys.jsonl")
@placed
def keys_export(place: Place, tenant: TenantOption = None) -> None:
    """Print keys as JSON lines, each with a hash of its secret, for a back-up."""
    backup.export_keys(place, tenant)


@keys_app.command("import", epilog="Example: bandolero keys import keys.jsonl")
@placed
def keys_import(
    place: Place,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    tenant: TenantOption = None,
) -> None:
    """Take over keys from a back-up; they open what they opened before."""
    backup.import_keys(place, file, tenant)


@keys_app.command("revoke", epilog="Example: bandolero keys revoke 1f2e3d4c5b6a")
@placed
def keys_revoke(place: Place, key_id: str, tenant: TenantOption = None) -> None:
    """Revoke a key; workers refuse it within a second."""
    commands.revoke_key(place, key_id, tenant)


ObjectiveArgument = Annotated[
    str, typer.Argument(metavar="OBJECTIVE", help="As `list` shows it.")
]
GroupOption = Annotated[
    str, typer.Option(help="Of a group, such as tone=urgent; default: of all variants.")
]


@priors_app.command("list", epilog="Example: bandolero priors list --tenant acme")
@placed
def priors_list(
    place: Place,
    every: Annotated[
        bool, typer.Option("--all", help="Every version, not only those in force.")
    ] = False,
    tenant: TenantOption = None,
) -> None:
    """List the priors that new experiments and variants take."""
    prior_commands.list_priors(place, tenant, every)


@priors_app.command(
    "diff", epilog="Example: bandolero priors diff click.binary.decision"
)
@placed
def priors_diff(
    place: Place,
    objective: ObjectiveArgument,
    group: GroupOption = "",
    old: Annotated[
        int | None, typer.Option("--from", help="Version; default: the one before.")
    ] = None,
    new: Annotated[
        int | None, typer.Option("--to", help="Version; default: the newest.")
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Show how a prior changed from one version to another."""
    prior_commands.diff(place, tenant, (objective, group), old, new)


@priors_app.command(
    "rollback", epilog="Example: bandolero priors rollback click.binary.decision --to 3"
)
@placed
def priors_rollback(
    place: Place,
    objective: ObjectiveArgument,
    group: GroupOption = "",
    to: Annotated[
        int | None, typer.Option(help="Version; default: the one before the newest.")
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Put an earlier version of a prior in force, and hold it until it is released."""
    prior_commands.roll_back(place, tenant, (objective, group), to)


@priors_app.command(
    "release", epilog="Example: bandolero priors release click.binary.decision"
)
@placed
def priors_release(
    place: Place,
    objective: ObjectiveArgument,
    group: GroupOption = "",
    tenant: TenantOption = None,
) -> None:
    """Let the refresh go on with a prior that a rollback held."""
    prior_commands.release(place, tenant, (objective, group))


@audit_app.command("list", epilog="Example: bandolero audit list --tenant acme")
@placed
def audit_list(place: Place, tenant: TenantOption = None) -> None:
    """List acts of the control plane: who did what to what, when."""
    commands.list_audit(place, tenant)


@audit_app.command("verify", epilog="Example: bandolero audit verify")
@placed
def audit_verify(place: Place, tenant: TenantOption = None) -> None:
    """Check that no line of the audit log is missing, changed or moved."""
    commands.verify_audit(place, tenant)


@app.command(epilog="Example: bandolero demo --tests 3 --scale 0.1 --seconds 20")
def demo(
    tests: Annotated[int, typer.Option(min=1, help="How many A/B tests to play.")] = 24,
    scale: Annotated[
        float,
        typer.Option(min=0.001, max=1.0, help="Share of each test's impressions."),
    ] = 1.0,
    seconds: Annotated[float, typer.Option(min=5.0, help="How long to play.")] = 100.0,
    seed: Annotated[
        int, typer.Option(min=0, help="Which tests, and which clicks.")
    ] = 7,
    source: Annotated[
        Path | None, typer.Option(help="Parquet file of tests to play.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("out"),
) -> None:
    """The main job, end to end, on real A/B tests."""
    from bandolero_service.demo import DemoOptions, run_demo

    options = DemoOptions(
        tests=tests, scale=scale, seconds=seconds, seed=seed, upworthy=source, out=out
    )
    raise typer.Exit(run_demo(options))


def main() -> NoReturn:
    """Run a command; what goes wrong is said in a line, not a traceback."""
    try:
        app(standalone_mode=True)
    except (SettingsError, UsageError) as error:
        _fail(str(error), 2)
    except ApiError as error:
        for fault in error.faults or [error]:
            sys.stderr.write(f"bandolero: {fault.message}\n")
        sys.exit(1)
    except RefusedLimitError as error:
        _fail(str(error), 4)
    except (
        CommandError,
        StoreDownError,
        RefusedStoreError,
        EmbeddedStoreError,
        LookupError,
    ) as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(str(error), 1)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"bandolero: {message}\n")
    sys.exit(code)
