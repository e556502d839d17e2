"""Ingest keeps out what an erasure took, or could never take."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.lake.catalog import Lake
from bandolero.lake.erase import Erasure, erase
from bandolero.lake.ingest import Terms
from bandolero_service import keys
from bandolero_service.erasures import SLACK_MS, ask, state_of, work_off
from bandolero_service.ids import Signer
from bandolero_service.ingesting import WAIT_S, WAITING, BusyError, pseudonyms
from bandolero_service.ingesting import ingest as ingest_hidden
from bandolero_service.lease import Lease, LeaseLostError
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from ingest_files import FOREVER_MS, NOW_MS, export, quarantined, shown, take_in
from service_helpers import needs_server
from strategies import decision, decisions_table
from worker import AUTHOR


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


def test_same_file_again_leaves_the_quarantine_as_it_is(
    lake: Lake, tmp_path: Path
) -> None:
    """What was erased from refused rows does not come back with their file."""
    rows = [shown(unit="alice"), shown(unit="alice", propensity=7.0)]
    path = export(tmp_path / "a.parquet", rows)
    take_in(lake, "decisions", [path])
    alice = Erasure("acme", "alice", FOREVER_MS)
    assert erase(lake, lambda _: True, [alice]).rows == {("acme", "alice"): 1}
    (file,) = take_in(lake, "decisions", [path]).files
    assert (file.accepted, file.refused, file.reason) == (0, 0, None)
    assert [r["unit"] for r in quarantined(lake, "decisions", "rows")] == [None]


def test_a_killed_ingest_leaves_nothing_to_an_erasure(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are listed nowhere: the sweep deletes them, and spares a shard's new ones."""
    path = export(tmp_path / "a.parquet", [shown(unit="alice")])
    write = lake.write_bytes

    def killed(name: str, data: bytes, *, anew: bool = False) -> None:
        if name.startswith("manifest"):
            raise KeyboardInterrupt
        write(name, data, anew=anew)

    monkeypatch.setattr(lake, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        take_in(lake, "decisions", [path])
    with pytest.raises(KeyboardInterrupt):
        lake.commit("s0", 0, 9, {"decisions": decisions_table([decision()])})
    monkeypatch.undo()
    assert len(list(lake.paths("decisions", ".parquet"))) == 2
    erase(lake, lambda shard: shard == "s1", [])
    assert len(list(lake.paths("decisions", ".parquet"))) == 2
    erase(lake, lambda _: True, [])
    (left,) = lake.paths("decisions", ".parquet")
    assert Path(left).name.startswith("s0-")


@pytest.mark.parametrize("length", [0, 257])
def test_units_that_no_erasure_can_name_are_refused(
    lake: Lake, tmp_path: Path, length: int
) -> None:
    """Too short or too long: in quarantine, without the unit; the longest one is taken."""
    rows = [shown(unit="ü" * length), shown(unit="ü" * 256), shown(unit=None)]
    take_in(lake, "decisions", [export(tmp_path / "a.parquet", rows)])
    (refused,) = quarantined(lake, "decisions", "rows")
    told = [refused[name] for name in ("row", "column", "value", "reason", "unit")]
    assert told == [1, "unit", None, "must have 1 to 256 characters.", None]
    assert lake.read("decisions")[0]["unit"].to_pylist() == ["ü" * 256, None]


@needs_server
def test_ingest_does_not_bring_back_who_was_erased(
    store: Store, tmp_path: Path
) -> None:
    """Taken in or refused, rows of before lose the unit; and while a file is being taken
    in, the erasure waits for it."""
    lake = Lake(tmp_path / "lake")
    alice = Signer(b"root", "acme").pseudonym("alice")
    receipt = ask(store, Settings(), "acme", alice, AUTHOR)
    lease = keys.INGEST_LEASE, "somebody", 60_000
    for is_busy in (True, False):
        with store.alone(*lease) if is_busy else nullcontext():
            for shard in range(store.shards):
                work_off(store, lake, shard)
        state = state_of(store, "acme", receipt["erasure_id"])["lake"]["state"]
        assert state == ("pending" if is_busy else "done")
    later_ms = int(time.time() * 1000) + 3 * SLACK_MS
    rows = [
        shown(unit="alice"),
        shown(unit="alice", propensity=7.0),
        shown(unit="alice", decided_at_ms=later_ms),
    ]
    export(tmp_path / "a.parquet", rows)
    terms = Terms(now_ms=max(later_ms, NOW_MS))
    paths = [tmp_path / "a.parquet"]
    found = ingest_hidden(store, b"root", lake, "decisions", paths, terms)
    assert (found.accepted, found.refused) == (2, 1)
    units = lake.read("decisions")[0]["unit"].to_pylist()
    assert units == [None, alice]
    (refused,) = lake.paths("quarantine", "-rows.parquet")
    assert pq.read_table(Path(lake.root, refused))["unit"].to_pylist() == [None]


@needs_server
def test_an_ingest_waits_for_its_turn(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another writes ingested files it says so, and leaves the file for later."""
    monkeypatch.setattr("bandolero_service.ingesting.WAIT_S", 0.2)
    lake = Lake(tmp_path / "lake")
    export(tmp_path / "a.parquet", [shown(unit="alice")])
    with store.alone(keys.INGEST_LEASE, "somebody", 60_000):
        with pytest.raises(BusyError, match=r"still at work after .* try again"):
            ingest_hidden(store, b"root", lake, "decisions", [tmp_path / "a.parquet"])
    assert ingest_hidden(
        store, b"root", lake, "decisions", [tmp_path / "a.parquet"]
    ).accepted


@needs_server
def test_a_killed_ingest_is_outwaited(store: Store, tmp_path: Path) -> None:
    """Its lease lapses sooner than the next one gives up; meanwhile it says that it waits."""
    path = export(tmp_path / "a.parquet", [shown()])
    left_ms: list[int] = []
    told: list[str] = []

    def tell(name: str, *_: Any) -> None:
        told.append(name)
        left_ms.append(store._redis.pttl(keys.INGEST_LEASE))

    store._redis.set(keys.INGEST_LEASE, "killed", px=500)
    lake = Lake(tmp_path / "lake")
    found = ingest_hidden(store, b"root", lake, "decisions", [path], progress=tell)
    assert found.accepted == 1
    assert (told[0], told[-1]) == (WAITING, str(path))
    assert max(left_ms) < 1000 * WAIT_S


def test_a_unit_of_two_tenants_has_two_pseudonyms() -> None:
    """Each is hashed with its own tenant's key; rows without unit or tenant have none."""
    rows = {
        "tenant_id": ["a", "b", None, "a", "b"],
        "unit": ["u", "u", "u", None, "w"],
    }
    known = {name: Signer(b"root", name).pseudonym for name in "ab"}
    stored = pseudonyms(b"root")(pa.table(rows))["unit"].to_pylist()
    assert stored == [known["a"]("u"), known["b"]("u"), None, None, known["b"]("w")]


@needs_server
def test_an_ingest_that_lost_its_lease_ends(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks from part to part; where another has it by now, nothing is taken in."""
    lake = Lake(tmp_path / "lake")
    path = export(tmp_path / "a.parquet", [shown()])
    terms = Terms(now_ms=NOW_MS)
    told: list[tuple[str, int, float]] = []

    def tell(*progress: Any) -> None:
        told.append(progress)

    def lost(_: Lease) -> None:
        raise LeaseLostError

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "still", lost)
        with pytest.raises(BusyError, match="another took the lease"):
            ingest_hidden(store, b"root", lake, "decisions", [path], terms)
    assert list(lake.paths("decisions", "")) == []
    found = ingest_hidden(store, b"root", lake, "decisions", [path], terms, tell)
    assert (found.accepted, told) == (1, [(str(path), 1, 1.0)] * 2)
