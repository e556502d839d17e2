"""What a night found, kept in the lake: tables as of a watermark, all of them or none.

`nights/<watermark>.json` lists the files and is written last; a night of one tenant alone
is `nights/<watermark>@<tenant>.json`, so that it hides nobody's. Files are named by what
they hold, so the same night twice writes the same, and one that finds more replaces it.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandolero.lake.catalog import Lake

FOLDER = "nights"
KEPT = 30
"""Nights of all tenants that are kept, the newest; of one tenant alone it is the last."""
GROUP_ROWS = 100_000
"""Tables are in order of tenant and experiment: who reads one skips the others' groups."""


def write_results(
    lake: Lake,
    watermark_ms: int,
    tables: Mapping[str, pa.Table],
    tenant: str | None = None,
) -> None:
    """Write a night's tables by name, and forget old nights; one process at a time.

    Parameters
    ----------
    tenant
        Whose night it was; default: all tenants'.
    """
    listed = {
        name: _written(lake, name, watermark_ms, rows) for name, rows in tables.items()
    }
    body = {"watermark_ms": watermark_ms, "tables": listed}
    entry = _entry(watermark_ms, tenant)
    lake.write_bytes(entry, json.dumps(body, indent=1).encode())
    _forget(lake)


def read_result(
    lake: Lake,
    name: str,
    rows: pc.Expression | None = None,
    tenant: str | None = None,
) -> tuple[int, pa.Table | None]:
    """A table of the newest night and its watermark; 0 and None before the first.

    Parameters
    ----------
    rows
        Which rows to read; default: all.
    tenant
        Whose rows are looked for: other tenants' nights are passed over.

    Raises
    ------
    ValueError
        When the file is not as it was written.
    """
    entries = [e for e in _entries(lake) if tenant is None or _whose(e) in ("", tenant)]
    if not entries:
        return 0, None
    body = json.loads(lake.read_bytes(entries[-1]))
    if name not in body["tables"]:
        return body["watermark_ms"], None
    path = body["tables"][name]
    data = lake.read_bytes(path)
    if _digest(data) not in path:
        raise ValueError(f"{path} does not have the hash of its name.")
    # Not in threads: a command that ends while one is being started is aborted.
    found = pq.read_table(pa.BufferReader(data), filters=rows, use_threads=False)
    return body["watermark_ms"], found


def _written(lake: Lake, name: str, watermark_ms: int, rows: pa.Table) -> str:
    """The path of a table, which is there now."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=GROUP_ROWS)
    data = bytes(sink.getvalue())
    path = f"{name}/until-{watermark_ms:013d}-{_digest(data)}.parquet"
    if not lake.exists(path):
        lake.write_bytes(path, data)
    return path


def _forget(lake: Lake) -> None:
    """Delete the nights before the newest ones, and files that no night lists."""
    nights: dict[str, list[str]] = {}
    for entry in _entries(lake):
        nights.setdefault(_whose(entry), []).append(entry)
    kept = [
        entry
        for whose, entries in nights.items()
        for entry in entries[-1 if whose else -KEPT :]
    ]
    for entry in {entry for entries in nights.values() for entry in entries} - {*kept}:
        lake.delete(entry)
    bodies = [json.loads(lake.read_bytes(entry)) for entry in kept]
    listed = {path for body in bodies for path in body["tables"].values()}
    for name in {name for body in bodies for name in body["tables"]}:
        for path in set(lake.paths(name, ".parquet")) - listed:
            lake.delete(path)


def _entries(lake: Lake) -> list[str]:
    """Paths of the nights, by watermark."""
    return sorted(lake.paths(FOLDER, ".json"))


def _entry(watermark_ms: int, tenant: str | None) -> str:
    alone = "" if tenant is None else f"@{tenant}"
    return f"{FOLDER}/{watermark_ms:013d}{alone}.json"


def _whose(entry: str) -> str:
    """The tenant of a night's path; empty where it was all tenants'."""
    return entry.removesuffix(".json").partition("@")[2]


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()
