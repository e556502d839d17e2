"""Erasing a unit: it is gone from all that can be written anew, and every sum stays."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.experiment import Experiment, ExperimentRecord
from bandolero.lake.catalog import Lake
from bandolero.lake.erase import LOST, Erasure, erase, without_units
from bandolero.lake.refresh import Refreshed, refresh
from bandolero.replay import fold_lake
from bandolero_service import keys
from bandolero_service.archive import archive
from bandolero_service.connection import Rewriting
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.erasures import (
    KEPT_BY_STORE,
    SLACK_MS,
    ask,
    erasure_id_of,
    state_of,
    work_off,
)
from bandolero_service.errors import ApiError
from bandolero_service.explain import explain
from bandolero_service.settings import Settings
from bandolero_service.store import NO_POSITION, Store
from service_helpers import Running, experiment, needs_server, wait_for
from strategies import (
    START_MS,
    VARIANTS,
    decision,
    decisions_table,
    event,
    events_table,
)
from strategies import experiment as spec_of
from test_refresh_night import agree
from worker import AUTHOR, Worker

UNTIL_MS = START_MS + 60_000
ALICE = Erasure("acme", "alice", UNTIL_MS)
CONTEXT = [{"name": "hour", "kind": "cyclic", "period": 24.0}]


def made(i: int, **fields: Any) -> dict[str, Any]:
    """A decision of alice's."""
    named = {"decision_id": f"d{i}", "unit": "alice", "draw": 0.25}
    at = {"decided_at_ms": START_MS + i, "log_id": f"{START_MS + i}-0"}
    return decision(**(named | at | fields))


ROWS = [
    made(0),
    made(1, unit="bob"),
    made(2, unit=None, context='{"hour":3.0}'),
    made(3, tenant_id="rival"),
    made(4, context='{"hour":4.0}'),
    made(70_000),
]
"""Two of acme's alice; others', another tenant's, and one made after she asked."""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake of three commits: of a shard, of another, and of an ingested file."""
    lake = Lake(tmp_path / "lake")
    table = decisions_table(ROWS)
    lake.commit("s0", 0, START_MS + 3, {"decisions": table.slice(0, 4)})
    lake.commit("s1", 0, UNTIL_MS * 2, {"decisions": table.slice(4, 2)})
    clicks = {"events": events_table([event(decision_id="d0")])}
    lake.commit("s0", START_MS + 3, UNTIL_MS * 2, clicks)
    return lake


def everyone(_: str) -> bool:
    """All shards."""
    return True


def stored_units(lake: Lake) -> Counter[tuple[str, str]]:
    """Units in all files under the lake, listed or not."""
    found: Counter[tuple[str, str]] = Counter()
    for path in Path(lake.root).rglob("decisions/**/*.parquet"):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            found[row["tenant_id"], row["unit"]] += 1
    return found


# The lake


def test_rows_lose_the_unit_and_its_draw_and_nothing_else() -> None:
    """Of that tenant and unit, made until then; every other value is the same."""
    before = decisions_table(ROWS)
    after, lost = without_units(before, [ALICE, Erasure("acme", "nobody", UNTIL_MS)])
    assert lost == {("acme", "alice"): 2}
    assert after.schema == before.schema
    for row, was in zip(after.to_pylist(), before.to_pylist(), strict=True):
        is_hers = was["decision_id"] in ("d0", "d4")
        assert row == (was | dict.fromkeys(LOST) if is_hers else was)


def test_files_are_written_anew_and_the_old_ones_are_gone(lake: Lake) -> None:
    """Listed or not, no file names her; counts by unit are told; again, nothing is left."""
    done = erase(lake, everyone, [ALICE])
    assert done == (
        Counter({("acme", "alice"): 2}),
        Counter({("acme", "alice"): 2}),
        (),
    )
    assert stored_units(lake) == {
        ("acme", None): 3,
        ("acme", "bob"): 1,
        ("rival", "alice"): 1,
        ("acme", "alice"): 1,
    }
    rows, bad = lake.read("decisions")
    assert (rows.num_rows, bad) == (len(ROWS), [])
    assert lake.until_ms("s0") == UNTIL_MS * 2
    assert not any(erase(lake, everyone, [ALICE]))


def test_only_the_shards_that_are_mine_are_written(lake: Lake) -> None:
    """An archiver leaves the files of another one alone."""
    before = lake.files("decisions")
    erase(lake, lambda shard: shard == "s1", [ALICE])
    after = lake.files("decisions")
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize(
    ("step", "n_done"), [("write_bytes", 0), ("write_bytes", 1), ("delete", 0)]
)
def test_an_erasure_that_was_cut_off_is_made_good(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, step: str, n_done: int
) -> None:
    """Before the new file, the listing or the deletion: readers miss nothing, and the
    next attempt leaves nothing."""
    real = getattr(lake, step)
    done: list[int] = []

    def cut_off(*given: Any) -> None:
        if len(done) == n_done:
            raise KeyboardInterrupt
        done.append(1)
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(lake, step, cut_off)
        with pytest.raises(KeyboardInterrupt):
            erase(lake, everyone, [ALICE])
    rows, bad = lake.read("decisions")
    assert (rows.num_rows, bad) == (len(ROWS), [])
    erase(lake, everyone, [ALICE])
    assert stored_units(lake)["acme", "alice"] == 1


def test_a_reader_who_listed_the_old_files_lists_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that were rewritten between listing and reading are no damage."""
    real = lake.read_file
    begun: list[int] = []

    def late(file: Any) -> pa.Table:
        if not begun:
            begun.append(1)
            erase(Lake(lake.root), everyone, [ALICE])
        return real(file)

    monkeypatch.setattr(lake, "read_file", late)
    rows, bad = lake.read("decisions")
    assert (rows.num_rows, bad) == (len(ROWS), [])
    assert not list(lake.paths("quarantine", ""))


def test_what_cannot_be_read_is_told(lake: Lake) -> None:
    """A damaged file is named, and the others are done; refused rows lose her, too."""
    refused = decisions_table(ROWS).append_column(
        "reason", pa.array(["odd"] * len(ROWS))
    )
    sink = pa.BufferOutputStream()
    pq.write_table(refused, sink)
    lake.write_bytes("quarantine/decisions/x-rows.parquet", bytes(sink.getvalue()))
    damaged = lake.files("decisions")[0].path
    Path(lake.root, damaged).write_bytes(b"PAR1 and no more")
    assert erase(lake, everyone, [ALICE]).unreadable == (damaged,)
    rows = pq.read_table(Path(lake.root, "quarantine/decisions/x-rows.parquet"))
    assert Counter(rows["unit"].to_pylist())["alice"] == 2  # the rival's, and the later


BETA: dict[str, Any] = {"policy": {"kind": "beta_thompson"}}
LINEAR: dict[str, Any] = {"policy": {"kind": "linear_thompson"}, "context": CONTEXT}


@pytest.mark.parametrize("fields", [BETA, LINEAR], ids=["counts", "by context"])
def test_folds_and_refreshes_stay_what_they_were(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Of a lake where half of the units are erased: the same bits, the same corrections;
    sums of real numbers, which a night adds in any order, to 1e-9."""
    spec = spec_of(objective={"attribution_window_s": 2.0}, **fields)
    rng = np.random.default_rng(1)
    shares = {"eligible": list(VARIANTS), "probabilities": [0.25, 0.25, 0.5]}
    rows = [
        made(
            i,
            unit=("alice", "bob")[i % 2],
            variant_id=VARIANTS[rng.integers(3)],
            context=json.dumps({"hour": rng.uniform(0, 24)}),
            **shares,
        )
        for i in range(60)
    ]
    clicks = [
        event(decision_id=f"d{i}", at_ms=START_MS + i + 5, log_ms=START_MS + i + late)
        for i in range(0, 60, 3)
        for late in (6 if i % 2 else 20_000,)
    ]
    lake = Lake(tmp_path / "lake")
    tables = {"decisions": decisions_table(rows), "events": events_table(clicks)}
    lake.commit("s0", 0, UNTIL_MS * 2, tables)
    before, night = _facts(spec, lake)
    assert erase(lake, everyone, [ALICE]).rows == {("acme", "alice"): 30}
    after, another = _facts(spec, lake)
    assert after == before
    agree(another, night)


def _facts(spec: Experiment, lake: Lake) -> tuple[tuple[Any, ...], Refreshed]:
    """States to the bit and epochs, and what a refresh finds."""
    record = ExperimentRecord(tenant="acme", spec=spec, status="running")
    fold, n, bad = fold_lake(record, lake, f"{UNTIL_MS}-0")
    state = [np.asarray(array).tobytes() for array in fold.state]
    found = refresh(lake, [record])
    assert found.late_events > 0
    return (state, repr(fold.epochs), n, bad), found


# The service


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Iterator[Worker]:
    """A worker on an empty store."""
    settings = Settings(data_dir=tmp_path, flush_interval_s=0.01)
    worker = Worker(store, settings)
    yield worker
    worker.close()


def asked_for(worker: Worker, unit: str = "alice") -> dict[str, Any]:
    """The receipt of erasing one of acme's units."""
    pseudonym = worker.views.signer("acme").pseudonym(unit)
    return ask(worker.store, Settings(), "acme", pseudonym, AUTHOR)


def archived(worker: Worker, lake: Lake) -> list[str | None]:
    """Archive all shards; the units that the lake holds."""
    time.sleep(0.05)
    for shard in range(worker.store.shards):
        archive(worker.store, lake, shard, 10_000_000)
    units: list[str | None] = lake.read("decisions")[0]["unit"].to_pylist()
    return units


@needs_server
def test_a_receipt_leaves_time_for_what_may_hold_files_up(worker: Worker) -> None:
    """Two passes of the archiver, in each of which someone else may be rewriting files."""
    receipt = asked_for(worker)
    asked, by = (
        datetime.fromisoformat(receipt[name])
        for name in ("requested_at", "from_lake_by")
    )
    passes_ms = 2 * (Settings().archive_interval_s * 1000 + keys.REWRITE_LEASE_MS)
    assert by - asked == timedelta(milliseconds=passes_ms + SLACK_MS)
    state = state_of(worker.store, "acme", receipt["erasure_id"])
    assert state["lake"]["by"] == receipt["from_lake_by"]


@needs_server
def test_an_erasure_goes_from_the_lake_at_once_and_from_the_log_in_time(
    worker: Worker, tmp_path: Path
) -> None:
    """Archived, logged, told: she is gone from each in turn, and the state says so."""
    lake, store = Lake(tmp_path / "lake"), worker.store
    worker.publish(worker.put(experiment("hats", allocation={"sticky": "unit"})), 1)
    first = worker.decide("hats", unit="alice")
    worker.decide("hats", unit="bob")
    wait_for(lambda: len(worker.read("decisions")) == 2, 5)
    signer = worker.views.signer("acme")
    alice, bob = signer.pseudonym("alice"), signer.pseudonym("bob")
    assert set(archived(worker, lake)) == {alice, bob}
    second = worker.decide("hats", unit="alice")
    wait_for(lambda: len(worker.read("decisions")) == 3, 5)
    receipt = asked_for(worker)
    assert alice not in json.dumps(receipt)
    for one in (first, second):
        told = explain(store, lake, signer, "acme", one["decision_id"])
        assert (told["unit"], told["draw"], told["rederived"]["same"]) == (None,) * 3
        assert told["variant"] == one["variant"]["id"]
    assert archived(worker, lake).count(alice) == 1
    for shard in range(store.shards):
        work_off(store, lake, shard)
    state = state_of(store, "acme", receipt["erasure_id"])
    assert (state["state"], state["lake"]["state"]) == ("pending", "done")
    assert (state["lake"]["files"], state["lake"]["rows"]) == (1, 1)
    assert state["receipt_hash"] == receipt["receipt_hash"]
    assert alice not in archived(worker, lake)
    assert stored_units(lake) == {("acme", None): 2, ("acme", bob): 1}


@needs_server
def test_it_is_done_when_the_log_has_forgotten(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the log holds her decision it is pending; trimmed, it is done, on every shard."""
    monkeypatch.setattr("bandolero_service.erasures.SLACK_MS", 0)
    lake, store = Lake(tmp_path / "lake"), worker.store
    worker.put(experiment("hats"))
    worker.decide("hats", unit="alice")
    wait_for(lambda: len(worker.read("decisions")) == 1, 5)
    receipt = asked_for(worker)

    def state() -> Any:
        time.sleep(0.005)  # log time must have moved on
        for shard in range(store.shards):
            store.tick(shard)
            work_off(store, lake, shard)
            work_off(store, lake, shard)
        return state_of(store, "acme", receipt["erasure_id"])["log"]["state"]

    assert state() == "pending"
    shard = store.shard("acme", "hats")
    store.trim(keys.decisions(shard), 1 + int(time.time() * 1000))
    wait_for(lambda: state() == "done", 10, "the log has forgotten")
    final = state_of(store, "acme", receipt["erasure_id"])
    assert final["state"] == "done"


@needs_server
def test_the_log_is_not_done_before_the_store_has_written_its_file_anew(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, it is told so, once; failed or on its way, it is pending; then done."""
    monkeypatch.setattr("bandolero_service.erasures.SLACK_MS", 0)
    lake, store = Lake(tmp_path / "lake"), worker.store
    receipt = asked_for(worker)

    def state(*, is_done: bool, is_refused: bool) -> Any:
        time.sleep(0.005)  # log time must have moved on
        now = Rewriting({"run": 7}, is_done, is_refused)
        monkeypatch.setattr(store, "rewrite_files", lambda _: now)
        for shard in range(store.shards):
            store.tick(shard)
            work_off(store, lake, shard)
            work_off(store, lake, shard)
        return state_of(store, "acme", receipt["erasure_id"])

    for _ in range(2):
        kept = state(is_done=False, is_refused=True)
        assert (kept["state"], kept["log"]["state"]) == ("pending", KEPT_BY_STORE)
    facts = list(store.read(keys.control(0), NO_POSITION))
    kept = state(is_done=False, is_refused=True)
    assert list(store.read(keys.control(0), NO_POSITION)) == facts
    assert state(is_done=False, is_refused=False)["log"]["state"] == "pending"
    done = state(is_done=True, is_refused=False)
    assert (done["state"], done["log"]["state"]) == ("done", "done")


@needs_server
def test_a_store_that_forbids_the_rewrite_is_noticed(
    store: Store, embedded: EmbeddedStore
) -> None:
    """A user without the permission is refused, which is no failure of the store."""
    store._redis.acl_setuser("weak", enabled=True, nopass=True, commands=["+@all", "-bgrewriteaof"], keys=["*"])  # fmt: skip
    weak = Store(embedded.url.replace("unix://", "unix://weak:x@"))
    try:
        now = weak.rewrite_files({})
        assert (now.is_done, now.is_refused) == (False, True)
    finally:
        weak.close()
        store._redis.acl_deluser("weak")


@needs_server
def test_asking_again_is_the_same_erasure_and_covers_what_came_since(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One id, however often; who comes back is kept, until it is asked for again."""
    lake, store = Lake(tmp_path / "lake"), worker.store
    worker.put(experiment("hats"))
    shard = store.shard("acme", "hats")
    pseudonym = worker.views.signer("acme").pseudonym("alice")
    later_ms = int(time.time() * 1000) + 3 * SLACK_MS
    back = decisions_table([made(1, unit=pseudonym, decided_at_ms=later_ms)])
    lake.commit(f"s{shard}", 0, 1, {"decisions": back})
    receipt, again = asked_for(worker), asked_for(worker)
    assert again["erasure_id"] == receipt["erasure_id"]
    work_off(store, lake, shard)
    assert stored_units(lake)["acme", pseudonym] == 1
    monkeypatch.setattr("bandolero_service.erasures.SLACK_MS", 4 * SLACK_MS)
    assert asked_for(worker)["erasure_id"] == receipt["erasure_id"]
    work_off(store, lake, shard)
    assert stored_units(lake)["acme", pseudonym] == 0


@needs_server
def test_an_erasure_is_a_fact_on_every_shard(worker: Worker, tmp_path: Path) -> None:
    """The control stream says it was asked for, and the lake keeps that."""
    lake, store = Lake(tmp_path / "lake"), worker.store
    receipt = asked_for(worker)
    for shard in range(store.shards):
        (entry,) = store.read(keys.control(shard), NO_POSITION)
        assert entry.fields[b"kind"] == b"erasure"
    archived(worker, lake)
    facts = lake.read("control")[0]
    assert facts["experiment_id"].to_pylist() == [receipt["erasure_id"]] * store.shards
    assert set(facts["tenant_id"].to_pylist()) == {"acme"}


@needs_server
def test_an_erasure_is_nobody_elses(worker: Worker) -> None:
    """Unknown, or another tenant's: 404; the same name is another unit there."""
    receipt = asked_for(worker)
    for tenant, name in (("rival", receipt["erasure_id"]), ("acme", "er-0"), ("a", "")):
        with pytest.raises(ApiError) as refused:
            state_of(worker.store, tenant, name)
        assert refused.value.status == 404
    mine, theirs = (
        worker.views.signer(t).pseudonym("alice") for t in ("acme", "rival")
    )
    assert mine != theirs
    assert erasure_id_of(mine) == receipt["erasure_id"]


# Over HTTP


@needs_server
@pytest.mark.timeout(150)
def test_a_unit_is_erased_over_http(running: Running) -> None:
    """An admin's receipt and its state; no one else's key will do, and nothing is echoed."""
    path = "/v1/units/alice%2Fat%20home"
    answer = running.call("DELETE", path, key=running.key())
    assert answer.status == 202
    receipt = answer.body
    assert "alice" not in json.dumps(receipt)
    assert {"erasure_id", "requested_at", "receipt_hash", "kept"} <= receipt.keys()
    assert running.ok("DELETE", path)["erasure_id"] == receipt["erasure_id"]
    where = f"/v1/erasures/{receipt['erasure_id']}"
    wait_for(lambda: running.ok("GET", where)["lake"]["state"] == "done", 40)
    few = running.key("acme", "decide,events,report")
    assert running.call("DELETE", path, key=few).status == 403
    assert running.call("DELETE", path).status == 401
    assert running.call("GET", where, key=running.key("rival")).status == 404
    long = running.call("DELETE", "/v1/units/" + "long" * 100, key=running.key())
    assert long.status == 422
    assert "longlong" not in json.dumps(long.body)
