"""What the commands of the command line do, beside a running server or without one."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bandolero.experiment import (
    ExperimentRecord,
    InvalidExperimentError,
    load_experiment,
)
from bandolero_service import auth, trail
from bandolero_service.audit import Author
from bandolero_service.embedded import EmbeddedStore, EmbeddedStoreError
from bandolero_service.errors import ApiError, invalid_experiment
from bandolero_service.experiments import (
    acted,
    change,
    checked_spec,
    checked_tenant,
    put_spec,
)
from bandolero_service.rates import parse_rate
from bandolero_service.secret import check_root, read_secrets
from bandolero_service.settings import EMBEDDED, Settings
from bandolero_service.store import Store

if TYPE_CHECKING:
    from bandolero.lake.catalog import Lake

REPORT_FORMATS = ("table", "json", "html", "csv", "parquet")
WAIT_FOR_STORE_S = 10.0
KEY_HEADS = ("key", "tenant", "state", "made", "expires", "rate", "scopes")


class CommandError(RuntimeError):
    """A command cannot do what it was asked."""


class UsageError(CommandError):
    """A command was asked in a way that cannot be understood."""


class RefusedLimitError(CommandError):
    """More rows of a file are refused than may be."""


@dataclass(frozen=True)
class Place:
    """Where a command works."""

    settings: Settings

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store: a running one, or the embedded one started for this command."""
        with self.url() as url, closing(Store(url)) as store:
            store.open(self.settings.shards)
            yield store

    @contextmanager
    def url(self) -> Iterator[str]:
        """Where the store is reached, started if need be."""
        if self.settings.store != EMBEDDED:
            yield self.settings.store
            return
        embedded = EmbeddedStore(self.settings.data_dir)
        if not embedded.running():
            _start_or_join(embedded)
        try:
            yield embedded.url
        finally:
            embedded.stop()

    def lake(self) -> "Lake":
        """The lake; who writes to it first makes it, unless it was named.

        Raises
        ------
        CommandError
            When the one that was named is not there.
        """
        from bandolero.lake.catalog import Lake

        lake = Lake(self.settings.lake_url)
        if self.settings.lake and not lake.is_there:
            raise CommandError(f"lake == {lake.root!r}, must hold a lake.")
        return lake

    def root(self, store: Store) -> bytes:
        """The root secret, if it is the one of this store."""
        secrets = read_secrets(self.settings)
        check_root(store, secrets)
        return secrets.root

    def author(self, store: Store) -> Author:
        """Who the audit log says has acted."""
        return Author("cli", self.root(store))


def apply_experiments(
    place: Place, files: list[Path], tenant: str | None, start: bool
) -> None:
    """Check every file first, then store them all."""
    specs = []
    for file in files:
        try:
            specs.append(load_experiment(file.read_bytes()))
        except InvalidExperimentError as error:
            faults = [f._replace(message=f"{file}: {f.message}") for f in error.faults]
            raise invalid_experiment(faults) from None
    with place.store() as store:
        author = place.author(store)
        for spec in specs:
            owner = tenant or spec.tenant or "default"
            checked = checked_spec(spec.model_dump(mode="json"), owner, None)
            record = put_spec(store, author, owner, checked)
            if start:
                record = change(
                    store,
                    author,
                    owner,
                    spec.experiment,
                    "start",
                    lambda r: acted(r, "start"),
                )
            _say(
                f"{owner}/{spec.experiment}: version {record.spec_version}, {record.status}"
            )


def list_experiments(place: Place, tenant: str | None) -> None:
    """A line an experiment."""
    with place.store() as store:
        for record in sorted(_all_records(store), key=_name):
            if tenant in (None, record.tenant):
                spec = record.spec
                _say(
                    f"{_name(record):40} {record.status:8} {spec.policy.kind:14}"
                    f" {len(spec.variants):4} variants, version {record.spec_version}"
                )


def show_experiment(place: Place, experiment_id: str, tenant: str | None) -> None:
    """The record as JSON."""
    with place.store() as store:
        record = _one(store, experiment_id, tenant)
        _say(json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False))


def report(
    place: Place,
    experiment_id: str,
    tenant: str | None,
    kind: str,
    output: Path | None,
    segment: str | None,
) -> None:
    """Write the report of an experiment, perhaps also by level of a context field."""
    from bandolero.lake.catalog import Lake
    from bandolero_service.reporting import report_of, segment_rows

    with place.store() as store:
        record, rows = _one(store, experiment_id, tenant), None
        if segment is not None:
            rows = segment_rows(Lake(place.settings.lake_url), record, segment)
        built = report_of(store, record, segment=rows)
    data = _rendered(built, kind)
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        output.write_bytes(data)
        _say(f"wrote {output} ({len(data):,} bytes)")


def replay(place: Place, experiment_id: str, tenant: str | None) -> None:
    """Fold the lake and compare; fails where the states differ."""
    from bandolero.replay import replay as run

    with place.store() as store:
        record = _one(store, experiment_id, tenant)
    with _steps() as step:
        step("folding the lake")
        found = run(record, place.lake())
    version, n = found.snapshot.version, found.decisions
    if not found.same:
        bad = "".join(f"; {b.path}: {b.reason}" for b in found.bad_files)
        raise CommandError(
            f"{_name(record)}: folding {n:,} decisions of the lake does not give the"
            f" state of snapshot {version}{bad}"
        )
    _say(
        f"{_name(record)}: {n:,} decisions of the lake fold to the state of snapshot"
        f" {version}, {'bit for bit' if found.exact else 'sums to 1e-9'}"
    )


def create_key(
    place: Place, tenant: str, scopes: str, expires: str | None, rate: str | None
) -> None:
    """Make a key; its text goes to stdout, alone."""
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    for scope in wanted:
        if scope not in auth.SCOPES:
            rule = f"must be among {', '.join(auth.SCOPES)}."
            raise UsageError(f"scopes has {scope!r}, {rule}")
    if not wanted:
        rule = f"must name some of {', '.join(auth.SCOPES)}."
        raise UsageError(f"scopes == {scopes!r}, {rule}")
    try:
        checked_tenant(tenant)
        expires_at_ms = None if expires is None else auth.expiry(expires)
        rate = str(parse_rate(rate)) if rate else ""
    except ApiError as error:
        raise UsageError(error.message) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    with place.store() as store:
        author = place.author(store)
        root = place.root(store)
        text, key = auth.new_api_key(root, tenant, wanted, expires_at_ms, rate)
        store.put_api_key(key, author)
    _say(text)


def list_keys(place: Place, tenant: str | None) -> None:
    """A line a key."""
    with place.store() as store:
        keys = [key for key in store.api_keys() if tenant in (None, key.tenant)]
    rows = [KEY_HEADS]
    for key in sorted(keys, key=lambda k: (k.tenant, k.created_at_ms)):
        until = "never" if key.expires_at_ms is None else _day(key.expires_at_ms)
        made, scopes = _day(key.created_at_ms), ",".join(key.scopes)
        state, rate = auth.state(key), key.rate or "none"
        rows.append((key.key_id, key.tenant, state, made, until, rate, scopes))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(n) for cell, n in zip(row, widths, strict=True))
        _say("  ".join(cells).rstrip())


def revoke_key(place: Place, key_id: str, tenant: str | None) -> None:
    """Revoke a key."""
    with place.store() as store:
        known = (key for key in store.api_keys() if tenant in (None, key.tenant))
        found = [key for key in known if key.key_id == key_id]
        if not found:
            raise CommandError(f"key_id == {key_id!r}, must be a key's id.")
        store.put_api_key(found[0]._replace(revoked=True), place.author(store))
    _say(f"{key_id} is revoked")


def list_audit(place: Place, tenant: str | None) -> None:
    """A line an act."""
    from bandolero.report.wording import printable

    with place.store() as store:
        for line in trail.lines(store, tenant):
            at = datetime.fromtimestamp(line["at_ms"] / 1000, UTC)
            _say(
                printable(
                    f"{at:%Y-%m-%d %H:%M:%S}  {line['tenant']:20} {line['actor']:20}"
                    f" {line['act']:10} {line['object']:30}"
                    f" {line['before'] or '-'} -> {line['after']}"
                )
            )


def verify_audit(place: Place, tenant: str | None) -> None:
    """Check every chain; fails where one is broken."""
    with place.store() as store:
        chains = trail.verified(store, place.root(store), tenant)
    for chain in chains:
        _say(
            f"{chain.tenant:20} {chain.name:8} {chain.n_lines:6} lines, head {chain.head}"
        )
    found = [fault for chain in chains for fault in chain.faults]
    if found:
        raise CommandError("the audit log is broken:\n" + "\n".join(found))
    _say(f"{len(chains)} chains, all whole")


def _start_or_join(embedded: EmbeddedStore) -> None:
    """Start the embedded store; if another process is just starting it, wait for that."""
    try:
        embedded.start()
    except EmbeddedStoreError:
        deadline = time.monotonic() + WAIT_FOR_STORE_S
        while not embedded.running():
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _all_records(store: Store) -> list[ExperimentRecord]:
    return [
        record
        for shard in range(store.shards)
        for record in store.records(shard).values()
    ]


def _one(store: Store, experiment_id: str, tenant: str | None) -> ExperimentRecord:
    """The experiment of that id; the tenant may be left out where only one has it."""
    found = [
        record
        for record in _all_records(store)
        if record.experiment_id == experiment_id and tenant in (None, record.tenant)
    ]
    if not found:
        raise CommandError(f"experiment == {experiment_id!r} is not known.")
    if len(found) > 1:
        tenants = ", ".join(sorted(record.tenant for record in found))
        raise UsageError(f"{experiment_id!r} exists for {tenants}: say --tenant.")
    return found[0]


def _rendered(built: Any, kind: str) -> bytes:
    """A report as HTTP gives it, but for what a person reads in a terminal."""
    from bandolero.report import tabular, text
    from bandolero_service.reporting import rendered

    if kind == "table":
        return text.to_text(built, colour=sys.stdout.isatty()).encode()
    if kind == "json":
        return (json.dumps(tabular.to_json(built), indent=2) + "\n").encode()
    return rendered(built, kind)


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """A progress line on stderr that names the step at hand; silent off a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda step: progress.update(task, description=step)


def _name(record: ExperimentRecord) -> str:
    return f"{record.tenant}/{record.experiment_id}"


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
