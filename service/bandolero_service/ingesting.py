"""Other systems' files into the lake: their units hidden, and those erased left out.

Who takes a file in holds the ingest lease, and so does who erases from ingested files: what
is asked to be erased meanwhile waits, and finds the file listed or nothing of it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from bandolero.lake.catalog import Lake
from bandolero.lake.erase import without_units
from bandolero.lake.ingest import (
    AS_THEY_ARE,
    Conceal,
    Ingested,
    IngestedFile,
    Intake,
    Progress,
    Terms,
)
from bandolero.lake.reader import Reader
from bandolero.lake.rules import Known
from bandolero.lake.sources import sources_of
from bandolero_service import keys
from bandolero_service.erasures import all_erasures
from bandolero_service.ids import Signer
from bandolero_service.lease import Lease, LeaseLostError, leased
from bandolero_service.store import Store

WAIT_S = 1.5 * keys.WORK_LEASE_MS / 1000
"""Past what is left of the lease of one that was killed; others take a file at a time."""
WAITING = "waiting for another ingest, or an erasure"
"""What is told instead of a file."""


class BusyError(RuntimeError):
    """Somebody else has been writing ingested files for too long."""


def ingest(
    store: Store,
    root: bytes,
    lake: Lake,
    table: str,
    paths: Sequence[str | Path],
    terms: Terms = AS_THEY_ARE,
    progress: Progress = lambda *_: None,
) -> Ingested:
    """Load files, or the files of folders, into a table of the lake.

    Raises
    ------
    BusyError
        When another writes ingested files, and goes on to; the files before are in.
    """
    files: list[IngestedFile] = []
    with Reader() as reader:
        for source in sources_of(paths, lake):
            with _turn(store, progress) as lease:

                def told(
                    name: str, rows: int, share: float, lease: Lease = lease
                ) -> None:
                    lease.sure()
                    progress(name, rows, share)

                hide = _conceal(store, root)
                intake = Intake(lake, table, terms, reader, told, hide)
                files.append(intake.take_in(source))
    return Ingested(files)


def known_experiments(store: Store) -> Known:
    """Whatever experiments there are, and their variants, retired ones too."""
    return {
        f"{record.tenant}/{record.experiment_id}": frozenset(record.spec.variant_ids)
        for shard in range(store.shards)
        for record in store.records(shard).values()
    }


@contextmanager
def _turn(store: Store, progress: Progress) -> Iterator[Lease]:
    """Wait for the lease, and hold it."""
    deadline = time.monotonic() + WAIT_S
    while True:
        with leased(store, keys.INGEST_LEASE, keys.WORK_LEASE_MS) as lease:
            if lease is not None:
                try:
                    yield lease
                except LeaseLostError:
                    message = "another took the lease for ingesting: try again."
                    raise BusyError(message) from None
                return
        if time.monotonic() > deadline:
            still = f"is still at work after {WAIT_S:.0f} s: try again"
            raise BusyError(f"another ingest, or an erasure, {still}.")
        progress(WAITING, 0, 0.0)
        time.sleep(0.1)


def _conceal(store: Store, root: bytes) -> Conceal:
    """Hides units; who is asked to be erased from now on is erased from the lake."""
    erasures = all_erasures(store)
    hide = pseudonyms(root)
    return lambda decisions: without_units(hide(decisions), erasures)[0]


def pseudonyms(root: bytes) -> Conceal:
    """Puts pseudonyms in the place of units, each distinct one hashed once a part."""
    signer = cache(lambda tenant: Signer(root, tenant))

    def hide(decisions: pa.Table) -> pa.Table:
        units = decisions["unit"].combine_chunks()
        tenants = decisions["tenant_id"].combine_chunks().dictionary_encode()
        stored = pa.nulls(len(units), pa.string())
        for code, tenant in enumerate(tenants.dictionary.to_pylist()):
            mine = pc.equal(tenants.indices, code)
            hidden = _hidden(signer(tenant), pc.if_else(mine, units, None))
            stored = pc.coalesce(stored, hidden)
        at = decisions.column_names.index("unit")
        return decisions.set_column(at, decisions.field(at), stored)

    return hide


def _hidden(signer: Signer, units: pa.Array) -> pa.Array:
    """The pseudonym of each unit, (n_units,)."""
    coded = units.dictionary_encode()
    stored = [signer.pseudonym(unit) for unit in coded.dictionary.to_pylist()]
    return pa.array(stored, pa.string()).take(coded.indices)
