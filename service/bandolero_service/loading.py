"""What the commands of ingestion do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from bandolero.documents import shown
from bandolero.lake.catalog import Lake
from bandolero.lake.ingest import AS_OURS, Ingested, IngestedFile, Terms
from bandolero.lake.mapping import (
    Column,
    InvalidMappingError,
    Mapping,
    load_mapping,
)
from bandolero.lake.rules import UNKNOWN
from bandolero_service.commands import (
    CommandError,
    Place,
    RefusedLimitError,
    UsageError,
    _say,
)
from bandolero_service.errors import ApiError
from bandolero_service.experiments import checked_tenant
from bandolero_service.ingesting import BusyError, ingest, known_experiments

RULES_SHOWN = 5
REMEDY = (
    "rows of what is unknown come in when it is applied (bandolero experiment apply),"
    " and the file ingested again"
)


def load(
    place: Place,
    table: str,
    paths: Sequence[str],
    mapping: Path | None = None,
    max_refused: str | None = None,
    tenant: str | None = None,
) -> None:
    """Load files into a table of the lake, and tell what became of each.

    Raises
    ------
    RefusedLimitError
        When a file has more rows refused than may be; none of it is in.
    CommandError
        When a file is refused whole; the others are in.
    """
    share = 1.0 if max_refused is None else parse_share(max_refused)
    plan = _of_tenant(_mapping(mapping, table), tenant)
    lake = Lake(place.settings.lake_url)
    with place.store() as store, _bar() as progress:
        terms = Terms(plan, known_experiments(store), share)
        try:
            found = ingest(
                store, place.root(store), lake, table, paths, terms, progress
            )
        except BusyError as error:
            raise CommandError(str(error)) from None
    _tell(found, table)
    if any(file.is_over_limit for file in found.files):
        raise RefusedLimitError("more is refused than may be; see quarantine/.")
    if found.bad_files:
        told = _counted(found.bad_files, "file is refused", "files are refused")
        raise CommandError(f"{told}; see quarantine/.")


def parse_share(text: str) -> float:
    """A share such as `1%` or `0.01`; a bare 1 may mean either, and is refused.

    Raises
    ------
    UsageError
        When it is none between 0 and 1.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        share = -1.0
    if rest or not 0.0 <= share <= 1.0 or (share == 1.0 and not percent):
        rule = "must be a share, such as 1% or 0.01; all is 100%"
        raise UsageError(f"max-refused == {text!r}, {rule}.")
    return share


def _mapping(file: Path | None, table: str) -> Mapping:
    if file is None:
        return AS_OURS
    try:
        return load_mapping(file.read_bytes(), table)
    except InvalidMappingError as error:
        raise UsageError(f"{file}: {error}") from None


def _of_tenant(mapping: Mapping, tenant: str | None) -> Mapping:
    """The mapping, of whose rows all are one tenant's."""
    if tenant is None:
        return mapping
    if "tenant_id" in mapping.columns:
        raise UsageError("tenant_id is in the mapping: leave it or --tenant out.")
    try:
        whose = Column(constant=checked_tenant(tenant))
    except ApiError as error:
        raise UsageError(error.message) from None
    return mapping.model_copy(
        update={"columns": mapping.columns | {"tenant_id": whose}}
    )


def _tell(found: Ingested, table: str) -> None:
    for file in found.files:
        if file.is_passed_over:
            continue
        _say(f"{file.path}: {_line(file, table)}")
        for rule, n in list(file.rules.items())[:RULES_SHOWN]:
            _say(f"  {n:,} refused: {_broken(rule, file.examples.get(rule))}")
    left_out = f", {found.left_out:,} left out by the mapping" if found.left_out else ""
    passed = f", {found.passed_over:,} of unknown ending passed over"
    passed = passed if found.passed_over else ""
    _say(
        f"{_rows(found.accepted)} in, {found.refused:,} refused to quarantine{left_out},"
        f" {_counted(found.bad_files, 'file', 'files')} refused"
        f"{passed}"
    )
    if any(
        rule.endswith(tuple(UNKNOWN.values())) for f in found.files for rule in f.rules
    ):
        _say(REMEDY)


def _broken(rule: str, value: str | None) -> str:
    """A rule of a column, with the first value that broke it."""
    column, _, must = rule.partition(" ")
    return rule if value is None else f"{column} == {shown(value)}, {must}"


def _line(file: IngestedFile, table: str) -> str:
    if not file.was_there:
        return file.reason or f"{_rows(file.accepted)} in, {file.refused:,} refused"
    more = f": {_rows(file.accepted)} in that had been refused" if file.accepted else ""
    left = f"{_counted(file.still_refused, 'row is', 'rows are')} refused still"
    left = f", {left}: see quarantine/{table}/" if file.still_refused else ""
    return f"is in already{more}{left}"


def _rows(n: int) -> str:
    return _counted(n, "row", "rows")


def _counted(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


@contextmanager
def _bar() -> Iterator[Callable[[str, int, float], None]]:
    """A bar on stderr for the file at hand; silent off a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        Elapsed(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("reading", total=1.0, rows=0)

        def told(name: str, rows: int, share: float) -> None:
            shown = name.rpartition("/")[2]
            bar.update(task, description=shown, completed=share, rows=rows)

        yield told
