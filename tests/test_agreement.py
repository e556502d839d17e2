"""The one log, folded three ways: live, by replay and by refresh, against a tally of our own."""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bandolero.lake.catalog import Lake
from bandolero.snapshot import Snapshot, snapshot_from_bytes
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.folding import state_from_bytes
from bandolero_service.store import Store
from service_helpers import (
    SLOWER,
    Running,
    click,
    linux,
    needs_server,
    running_server,
    wait_for,
)
from traffic import CLOSE_MS, Tally, now, play, retraction, specification

pytestmark = needs_server
VARIANTS = ["v0", "v1", "v2", "v3"]


class Books:
    """What the store and the lake of a server say of one of acme's experiments."""

    def __init__(self, server: Running, name: str) -> None:
        self.server = server
        self.name = name
        self.store = Store(EmbeddedStore(server.data_dir).url)
        self.store.open(1)
        self.shard = self.store.shard("acme", name)
        self.lake = Lake(server.data_dir / "lake")

    def live(self) -> dict[str, list[int]]:
        """Trials and hits by variant, of the state the learner has committed."""
        data = self.store.folds(self.shard).get(f"acme/{self.name}")
        if data is None:
            return {v: [0, 0] for v in VARIANTS}
        state: Any = state_from_bytes("beta_thompson", data)[0]
        return _by_variant(state.trials, state.successes)

    def served(self) -> Snapshot:
        """The newest snapshot."""
        name = f"acme/{self.name}"
        return snapshot_from_bytes(self.store.snapshots(self.shard, [name])[name])

    def reported(self) -> dict[str, list[int]]:
        """Trials and hits by variant, of the report."""
        rows = self.server.report(self.name)
        return {v: [row["trials"], round(row["rewards"])] for v, row in rows.items()}

    def settle(self, n: int) -> None:
        """Wait until the learner has folded `n` decisions."""

        def folded() -> bool:
            return sum(trials for trials, _ in self.live().values()) >= n

        wait_for(folded, 40, f"{n} decisions settle")

    def publish(self) -> Snapshot:
        """Have the learner publish what it holds; a change of the record makes it."""
        before = self.served().spec_version
        for action in ("pause", "resume"):
            path = f"/v1/experiments/{self.name}/variants/v3/{action}"
            self.server.ok("POST", path, {})
        wait_for(lambda: self.served().spec_version == before + 2, 20, "a snapshot")
        return self.served()

    def archived(self) -> None:
        """Wait until the lake holds all that has been logged by now."""
        here_ms = time.time_ns() // 1_000_000
        wait_for(lambda: self.lake.watermark_ms() > here_ms, 30, "the lake")

    def replayed(self, n: int, how: str = "bit for bit") -> None:
        """Wait until replay folds `n` decisions of the lake, to the state served."""

        def agrees() -> str:
            done = self.server.cli("replay", self.name)
            assert "does not give" not in done.stderr, done.stderr
            return done.stdout if f"{n:,} decisions" in done.stdout else ""

        assert how in wait_for(agrees, 30, f"replay of {n} decisions")

    def refreshed(self) -> dict[str, Any]:
        """The summary of a refresh of everything logged by now."""
        self.archived()
        summary = self.server.data_dir / "summary.json"
        done = self.server.cli("refresh", "--summary", str(summary))
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(summary.read_text())
        return told

    def rolled_up(self) -> dict[str, list[int]]:
        """Trials and hits by variant, of the newest rollups in the lake."""
        newest = max(Path(self.lake.root, "rollups").iterdir())
        found: dict[str, list[int]] = {v: [0, 0] for v in VARIANTS}
        for row in pq.read_table(newest).to_pylist():
            if row["experiment_id"] == self.name:
                found[row["variant_id"]][0] += row["trials"]
                found[row["variant_id"]][1] += row["hits"]
        return found


def _by_variant(trials: Any, hits: Any) -> dict[str, list[int]]:
    pairs = zip(VARIANTS, trials.tolist(), hits.tolist(), strict=True)
    return {v: [n, k] for v, n, k in pairs}


def expected(tally: Tally) -> dict[str, list[int]]:
    """Trials and hits by variant, by our own tally."""
    return {v: [tally.decisions[v], tally.hits[v]] for v in VARIANTS}


def agree_on_time(books: Books, tally: Tally) -> None:
    """Where nothing was late all three say what the tally says, and correct nothing."""
    n = tally.decisions.total()
    books.settle(n)
    snapshot = books.publish()
    assert books.live() == expected(tally)
    assert books.reported() == expected(tally)
    state: Any = snapshot.state
    assert _by_variant(state.trials, state.successes) == expected(tally)
    books.replayed(n)
    told = books.refreshed()
    assert (told["settled"], told["late_events"]) == (n, 0)
    assert (told["decisions"], told["events"]) == (n, tally.n_events)
    assert told["corrected_experiments"] == {}
    assert told["bad_files"] == []
    assert books.rolled_up() == expected(tally)


def tell_late(books: Books, tally: Tally) -> tuple[int, Counter[str]]:
    """Tell what comes after the close; how many events, and the hits they change."""
    change: Counter[str] = Counter()
    events: list[Any] = []
    for made in tally.missed[:25]:  # clicked in time, told too late
        events.append(click(made.answer, "late", at=made.at))
        change[made.variant] += 1
    for made in tally.missed[25:40]:  # clicked after the window: never counts
        events.append(click(made.answer, "too-late", at=now()))
    for made in tally.clicked[:10]:
        events.append(retraction(made, "first"))
        events.append(retraction(made, "second"))
        change[made.variant] -= 1
    known = {made.answer["decision_id"] for made in tally.clicked[10:]}
    again = [event for event in tally.resend if event["decision_id"] in known][:20]
    events += again + again
    assert books.server.tell(events)["accepted"] == len(events)
    return len(events), change


def differ_by_what_was_late(books: Books, tally: Tally) -> dict[str, list[int]]:
    """The refresh differs by exactly the late events; the live fold stays as it was.

    The next snapshot holds the correction; what it says is returned.
    """
    before = books.live()
    n_late, change = tell_late(books, tally)
    told = books.refreshed()
    assert told["late_events"] == n_late
    corrections = told["corrected_experiments"][f"acme/{books.name}"]
    hits = {variant: c["hits"] for variant, c in corrections.items()}
    assert hits == {variant: n for variant, n in change.items() if n != 0}
    assert all(c["trials"] == 0 for c in corrections.values())
    after = {v: [tally.decisions[v], tally.hits[v] + change[v]] for v in VARIANTS}
    assert books.rolled_up() == after
    assert books.live() == before == expected(tally)
    assert books.reported() == after
    snapshot = books.publish()
    state: Any = snapshot.state
    assert _by_variant(state.trials, state.successes) == after
    return after


def refresh_again(books: Books, after: dict[str, list[int]]) -> None:
    """Replay agrees with a corrected snapshot; another refresh changes nothing."""
    snapshot = books.served()
    books.replayed(sum(trials for trials, _ in after.values()))
    assert books.refreshed()["corrected_experiments"] == {}
    twice = books.publish()
    assert all(
        np.array_equal(a, b) for a, b in zip(twice.state, snapshot.state, strict=True)
    )
    assert books.reported() == after


HALF_LIFE_MS = 60_000


def remaining(books: Books, hits: set[str], now_ms: int) -> dict[str, list[float]]:
    """Trials and hits by variant, every decision of the lake fading since its close."""
    left = {v: [0.0, 0.0] for v in VARIANTS}
    for row in books.lake.read("decisions")[0].to_pylist():
        if row["mode"] != "fallback":
            weight = 0.5 ** ((now_ms - row["log_ms"] - CLOSE_MS) / HALF_LIFE_MS)
            left[row["variant_id"]][0] += weight
            left[row["variant_id"]][1] += weight * (row["decision_id"] in hits)
    return left


def holds(snapshot: Snapshot, left: dict[str, list[float]]) -> None:
    """The snapshot's state is what remains, to 1e-9."""
    state: Any = snapshot.state
    told = np.array([left[v] for v in VARIANTS]).T
    np.testing.assert_allclose([state.trials, state.successes], told, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(120 * SLOWER)
def test_a_fading_experiment_is_learned_corrected_and_replayed() -> None:
    """With a half-life, beliefs are those of faded data at every time; reports are facts."""
    with running_server() as server:
        tally, name = Tally(), "fading"
        policy = {"kind": "beta_thompson", "half_life_s": HALF_LIFE_MS / 1000}
        server.begin({**specification(name), "policy": policy})
        books = Books(server, name)
        play(server, name, tally, random.Random(3), 300)
        wait_for(lambda: books.reported() == expected(tally), 40, "all settle")
        hits = {str(made.answer["decision_id"]) for made in tally.clicked}
        assert books.refreshed()["corrected_experiments"] == {}
        for _ in range(2):  # no traffic between them
            snapshot = books.publish()
            holds(snapshot, remaining(books, hits, snapshot.created_at_ms))
        _, change = tell_late(books, tally)
        hits -= {str(made.answer["decision_id"]) for made in tally.clicked[:10]}
        hits |= {str(made.answer["decision_id"]) for made in tally.missed[:25]}
        books.refreshed()
        after = {v: [tally.decisions[v], tally.hits[v] + change[v]] for v in VARIANTS}
        assert books.reported() == after
        snapshot = books.publish()
        assert snapshot.correction is not None
        holds(snapshot, remaining(books, hits, snapshot.created_at_ms))
        books.replayed(tally.decisions.total(), "fold to the state")
        books.store.close()


@pytest.mark.timeout(120 * SLOWER)
def test_live_fold_replay_and_refresh_agree() -> None:
    """On time they agree with each other and with our tally; late they differ by that."""
    with running_server() as server:
        tally, name = Tally(), "hats"
        server.begin(specification(name))
        books = Books(server, name)
        play(server, name, tally, random.Random(1), 600)
        agree_on_time(books, tally)
        differ_by_what_was_late(books, tally)
        books.store.close()


@linux
@pytest.mark.slow
@pytest.mark.timeout(240 * SLOWER)
def test_they_agree_when_the_learner_is_killed_in_mid_window() -> None:
    """Killed twice with decisions open and events waiting, the learner counts each once."""
    with running_server() as server:
        tally, name, rng = Tally(), "killed", random.Random(2)
        server.begin(specification(name))
        books = Books(server, name)
        play(server, name, tally, rng, 400)
        for _ in range(2):
            victim = server.kill("learner")
            play(server, name, tally, rng, 400)

            def replaced(victim: Any = victim) -> bool:
                return any(p.pid != victim.pid for p in server.of_role("learner"))

            wait_for(replaced, 10, "a new learner")
            play(server, name, tally, rng, 200)
        agree_on_time(books, tally)
        refresh_again(books, differ_by_what_was_late(books, tally))
        books.store.close()
