"""Other systems' files into the lake: their units hidden, and those erased left out.

Who takes a file in holds the ingest lease, and so does who erases from ingested files: what
is asked to be erased meanwhile waits, and finds the file listed or nothing of it.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from secrets import token_hex

import pyarrow as pa

from bandolero.lake.catalog import Lake
from bandolero.lake.erase import without_units
from bandolero.lake.ingest import Conceal, Ingested, IngestedFile, files_of
from bandolero.lake.ingest import ingest as take_in
from bandolero_service import keys
from bandolero_service.erasures import all_erasures
from bandolero_service.ids import Signer
from bandolero_service.store import Store

WAIT_S = 30.0
"""An erasure, or another file, is done sooner as a rule."""


class BusyError(RuntimeError):
    """Somebody else has been writing ingested files for too long."""


def ingest(
    store: Store,
    root: bytes,
    lake: Lake,
    table: str,
    paths: Sequence[Path],
    progress: Callable[[str], None] = lambda _: None,
) -> Ingested:
    """Load files, or the Parquet files of folders, into a table of the lake.

    Raises
    ------
    BusyError
        When another writes ingested files, and goes on to; the files before are in.
    """
    files: list[IngestedFile] = []
    for path in files_of(lake, paths):
        with ExitStack() as turn:
            _wait_for(turn, store)
            files += take_in(lake, table, [path], progress, _conceal(store, root)).files
    return Ingested(files)


def _wait_for(turn: ExitStack, store: Store) -> None:
    """Take the lease as soon as it is free."""
    deadline = time.monotonic() + WAIT_S
    lease = keys.INGEST_LEASE, token_hex(8), keys.INGEST_LEASE_MS
    while not turn.enter_context(store.alone(*lease)):
        if time.monotonic() > deadline:
            raise BusyError("another ingest, or an erasure, is at work: try again.")
        time.sleep(0.1)


def _conceal(store: Store, root: bytes) -> Conceal:
    signer = cache(lambda tenant: Signer(root, tenant))

    def stored(tenant: str | None, unit: str | None) -> str | None:
        if tenant is None or unit is None:
            return None
        return signer(tenant).pseudonym(unit)

    def conceal(decisions: pa.Table) -> pa.Table:
        at = decisions.column_names.index("unit")
        named = [decisions[name].to_pylist() for name in ("tenant_id", "unit")]
        units = pa.array(map(stored, *named), pa.string())
        decisions = decisions.set_column(at, decisions.field(at), units)
        return without_units(decisions, all_erasures(store))[0]

    return conceal
