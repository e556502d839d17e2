"""Privacy: raw units and addresses are nowhere, and consent says what may be kept."""

import contextlib
import http.client
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.draws import draws
from bandolero.lake.catalog import Lake
from bandolero.log import read_block
from bandolero_service import keys
from bandolero_service.commands import Place, apply_experiments
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.explain import explain
from bandolero_service.ids import Signer
from bandolero_service.loading import load
from bandolero_service.settings import Settings
from bandolero_service.spool import orphans
from bandolero_service.store import NO_POSITION, Store, StoreDownError, blocks_of
from service_helpers import (
    Running,
    click,
    experiment,
    linux,
    needs_server,
    running_server,
    wait_for,
)
from strategies import decision, decisions_table
from worker import Worker

UNIT = "alice@raw-unit.example"
ADDRESS = "127.0.0.77"
FORWARDED = "203.0.113.99"
STICKY = {"sticky": "unit", "min_share": 0.1}
CONTEXT = [{"name": "device", "kind": "categorical", "levels": ["mobile"]}]

pytestmark = needs_server


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Iterator[Worker]:
    """A worker on an empty store."""
    settings = Settings(data_dir=tmp_path, flush_interval_s=0.01)
    worker = Worker(store, settings)
    yield worker
    worker.close()


# Consent


@pytest.mark.parametrize("sticky", ["none", "unit"])
def test_contextual_consent_reads_and_stores_no_unit(
    worker: Worker, sticky: str
) -> None:
    """Draws, holdout and row are those of a request without a unit; context is kept."""
    shares = {"sticky": sticky, "holdout_share": 0.4, "min_share": 0.2}
    record = worker.put(experiment("hats", context=CONTEXT, allocation=shares))
    worker.publish(record, 1)
    context = {"device": "mobile"}
    for _ in range(40):
        worker.decide("hats", unit="x" * 999, context=context, consent="contextual")
    rows = worker.logged()
    assert {row["unit"] for row in rows} == {None}
    assert {row["context"] for row in rows} == {'{"device":"mobile"}'}
    assert len({row["draw"] for row in rows}) == 40
    assert {row["mode"] for row in rows} == {"explore", "holdout"}
    signer = worker.views.signer("acme")
    for row in rows:
        read = signer.read(row["decision_id"])
        assert draws(read.key, read.nonce).arm == row["draw"]


def test_context_keeps_what_is_declared_and_no_more(worker: Worker) -> None:
    """A unit that slips into the context is not stored: unknown levels, fields, types."""
    worker.put(experiment("hats", context=CONTEXT))
    for given in ({"device": UNIT}, {"email": UNIT}, {"device": [UNIT]}):
        worker.decide("hats", context=given, consent="contextual")
    assert UNIT not in json.dumps(worker.logged())


def test_without_consent_the_control_is_served_and_events_are_refused(
    running: Running,
) -> None:
    """Fallback to the control, no row; the id itself says that nothing may follow."""
    spec = experiment("consent", control="v1", allocation=STICKY)
    running.begin(spec)
    decision = running.decide("consent", unit=UNIT, consent="none", trackers=True)
    assert (decision["variant"]["id"], decision["mode"]) == ("v1", "fallback")
    assert "trackers" not in decision
    (refused,) = running.tell([click(decision)])["rejected"]
    assert refused["error"]["code"] == "no_consent"
    assert refused["error"]["field"] == "decision_id"
    kept = running.decide("consent", unit=UNIT, consent="contextual")
    told = running.tell([click(decision), click(kept)])
    assert (told["accepted"], [one["index"] for one in told["rejected"]]) == (1, [0])
    path = f"/v1/decisions/{decision['decision_id']}"
    assert running.call("GET", path, key=running.key()).status == 404


# What is stored of a sticky draw


def test_a_sticky_draw_tells_nothing_of_its_unit(
    worker: Worker, tmp_path: Path
) -> None:
    """Stored, it differs by decision and is not the unit's; explained, it is the same draw."""
    worker.publish(worker.put(experiment("hats", allocation=STICKY)), 1)
    decisions = [worker.decide("hats", unit=UNIT) for _ in range(20)]
    rows = worker.logged()
    shard = worker.store.shard("acme", "hats")
    key = worker.views.signer("acme").read(decisions[0]["decision_id"]).key
    assert draws(key, UNIT.encode()).arm not in {row["draw"] for row in rows}
    assert len({row["draw"] for row in rows}) == 20
    assert len({row["variant_id"] for row in rows}) == 1
    assert 0 <= shard < worker.store.shards
    signer = worker.views.signer("acme")
    for one in decisions:
        told = explain(worker.store, Lake(tmp_path), signer, "acme", one["decision_id"])
        assert (told["rederived"]["same"], told["draw"]) == (True, None)


def test_a_masked_draw_comes_back_to_the_bit() -> None:
    """At the ends and in between; another tenant's mask is another one."""
    signer = Signer(b"secret", "acme")
    for draw in (0.0, 2.0**-53, 12345 * 2.0**-53, 0.5, 1 - 2.0**-53):
        masked = signer.masked(b"nonce 00", draw)
        assert 0.0 <= masked < 1.0
        assert signer.unmasked(b"nonce 00", masked) == draw
        assert Signer(b"secret", "rival").masked(b"nonce 00", draw) != masked


# Nowhere


def test_a_spool_holds_pseudonyms_only(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is down, the blocks on disk are the same as those of the log."""
    worker.put(experiment("hats", allocation=STICKY))

    def down(*_: object) -> None:
        raise StoreDownError("gone")

    monkeypatch.setattr(worker.store, "append", down)
    worker.decide("hats", unit=UNIT)
    wait_for(lambda: worker.writer.spool_bytes > 0, 10, "a block is spooled")
    (path,) = Path(tmp_path, "spool").glob("*.spool")
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(path, copy)
    (spool,) = orphans(copy, 1_000_000)
    blocks = [block for _, block in spool.blocks()]
    spool.close()
    (row,) = read_block(blocks[0].payload, "1-0").to_pylist()
    assert row["unit"] == worker.views.signer("acme").pseudonym(UNIT)
    assert UNIT.encode() not in path.read_bytes()
    assert UNIT not in str(row)
    monkeypatch.undo()


def test_ingested_units_are_stored_as_pseudonyms(tmp_path: Path) -> None:
    """Taken in or refused, a row of another system's file loses its raw unit; an erasure
    finds it by the same pseudonym."""
    past = {"decided_at_ms": 1_700_000_000_000, "variant_id": "v0"}
    rows = decisions_table(
        [
            decision(unit=UNIT, **past),
            decision(unit=UNIT, propensity=7.0, **past),
            decision(**past),
        ]
    )
    pq.write_table(rows, tmp_path / "theirs.parquet")
    place = Place(Settings(data_dir=tmp_path / "d", secret="secret"))
    (tmp_path / "hats.json").write_text(json.dumps(experiment("hats")))
    apply_experiments(place, [tmp_path / "hats.json"], "acme", start=False)
    load(place, "decisions", [str(tmp_path / "theirs.parquet")])
    lake = Lake(place.settings.lake_url)
    pseudonym = Signer(b"secret", "acme").pseudonym(UNIT)
    assert lake.read("decisions")[0]["unit"].to_pylist() == [pseudonym, None]
    (refused,) = lake.paths("quarantine", ".parquet")
    told = pq.read_table(pa.BufferReader(lake.read_bytes(refused))).to_pylist()
    assert [row["unit"] for row in told] == [pseudonym]
    assert UNIT not in str(told)


@linux
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_raw_unit_and_an_address_are_nowhere() -> None:
    """After traffic, faults, an erasure and a stop: not in the store, its file, the lake,
    the spool, the logs or the metrics. The same search finds the pseudonym."""
    with running_server() as server:
        server.begin(experiment("walk", context=CONTEXT, allocation=STICKY))
        talk(server)
        wait_for(lambda: any(server.data_dir.rglob("lake/decisions/**/*.parquet")), 20)
        metrics = server.call("GET", "/metrics").body
        found = stored(server) + metrics
        server.stop()
        found += b"".join(files(server))
    assert b"headline 0".lower() in found.lower()
    assert found.count(b'"unit": "') > 0
    for raw in (UNIT, ADDRESS, FORWARDED, "Bearer"):
        assert raw.encode() not in found, raw


def talk(server: Running) -> None:
    """Requests that name the unit in every way, good and bad, from an address of its own."""
    good = {"experiment": "walk", "unit": UNIT, "context": {"device": UNIT, "x": UNIT}}
    bodies: list[Any] = [
        *({**good, "consent": consent} for consent in ("full", "contextual", "none")),
        {**good, "unit": UNIT * 50},
        {**good, "unit": [UNIT]},
        {**good, "eligible": ["none"]},
        {**good, "context": UNIT},
        {"requests": [good, {**good, "unit": UNIT * 50}]},
        json.dumps(good)[:-1],
    ]
    for body in bodies:
        ask(server, "POST", "/v1/decide", body)
        ask(server, "POST", "/v1/decide/batch", body)
    decision = server.decide("walk", unit=UNIT, trackers=True)
    ask(server, "POST", "/v1/events", {"events": [click(decision)]})
    ask(server, "GET", decision["trackers"]["impression"], None)
    for path in (f"/v1/units/{UNIT}", f"/v1/units/{UNIT * 20}"):
        ask(server, "DELETE", path, None)
        ask(server, "GET", path, None)
        ask(server, "DELETE", path, None, key="wrong")
    server.decide("walk", unit=UNIT)
    with contextlib.closing(_connection(server)) as connection:
        connection.connect()
        connection.send(b"NOT HTTP " + UNIT.encode() + b"\r\n\r\n")
        time.sleep(0.2)


def ask(server: Running, method: str, path: str, body: Any, key: str = "") -> None:
    """Ask with a key, from `ADDRESS`, for somebody at `FORWARDED`."""
    told = {"authorization": f"Bearer {key or server.key()}"}
    told |= {"x-forwarded-for": FORWARDED}
    told |= {"content-type": "application/json", "forwarded": f"for={FORWARDED}"}
    data = body if isinstance(body, str) else json.dumps(body)
    with contextlib.closing(_connection(server)) as connection:
        connection.request(method, path, data, told)
        assert connection.getresponse().status < 500


def _connection(server: Running) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(
        "127.0.0.1", server.port, timeout=20, source_address=(ADDRESS, 0)
    )


def stored(server: Running) -> bytes:
    """Everything in the store, blocks decoded."""
    store = Store(EmbeddedStore(server.data_dir).url)
    store.open(4)
    rows: list[Any] = []
    for shard in range(store.shards):
        for stream in (keys.decisions, keys.events):
            for log_id, block in blocks_of(store.read(stream(shard), NO_POSITION)):
                rows += read_block(block, log_id).to_pylist()
    raw = [store._redis.dump(key) or b"" for key in store._redis.keys("*")]
    store.close()
    return json.dumps(rows).encode() + b"".join(raw)


def files(server: Running) -> Iterator[bytes]:
    """Every file that the server has written, Parquet decoded as well."""
    for path in (server.log, *server.data_dir.rglob("*")):
        if path.is_file():
            yield path.read_bytes()
            if path.suffix == ".parquet":
                rows = pq.read_table(path, partitioning=None).to_pylist()
                yield str(rows).encode()
