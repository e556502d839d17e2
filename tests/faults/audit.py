"""What became of a stream: its ledger against the lake and the report."""

import time
from collections import Counter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bandolero.lake.catalog import Lake
from faults.stream import Decided, Stream
from service_helpers import Running, wait_for

WINDOW_MS = 1_000
SETTLES_WITHIN_S = 60.0


class Audit(NamedTuple):
    """Counts that must be 0, and what was lost with whom it may be lost."""

    events_lost: int
    """Accepted, and not in the lake."""
    logged_twice: int
    """Decisions that are more than once in the lake."""
    settled_twice: int
    """Trials and rewards in the report beyond those in the lake."""
    settled_never: int
    """Trials and rewards in the lake and not in the report."""
    decisions_lost: list[Decided]
    """Answered, and not in the lake."""


def logged(server: Running, name: str, n: int) -> None:
    """Wait until `n` decisions of an experiment are in the log, and seen there."""
    wait_for(
        lambda: (
            sum(r["trials"] + r["pending"] for r in server.report(name).values()) >= n
        ),
        SETTLES_WITHIN_S,
        "all decisions are in the log",
    )


def settled(server: Running, name: str) -> dict[str, tuple[int, int]]:
    """Trials and rewards by variant, once all is drained, archived and refreshed."""
    spool = server.data_dir / "spool"
    wait_for(
        lambda: all(f.stat().st_size == 0 for f in spool.glob("*.spool")),
        SETTLES_WITHIN_S,
        "the spools are drained",
    )
    wait_for(
        lambda: not any(row["pending"] for row in server.report(name).values()),
        SETTLES_WITHIN_S,
        "everything settles",
    )
    return refreshed(server, name)


def refreshed(server: Running, name: str) -> dict[str, tuple[int, int]]:
    """Trials and rewards by variant, once what is logged by now is in the lake."""
    archived(server)
    done = server.cli("refresh")
    assert done.returncode == 0, done.stderr
    rows = server.report(name)
    return {v: (row["trials"], round(row["rewards"])) for v, row in rows.items()}


def archived(server: Running) -> Lake:
    """The lake, once everything logged by now is in it."""
    lake, here_ms = Lake(server.data_dir / "lake"), time.time_ns() // 1_000_000
    wait_for(lambda: lake.watermark_ms() > here_ms, SETTLES_WITHIN_S, "the lake")
    return lake


def audited(server: Running, name: str, stream: Stream) -> Audit:
    """Wait until everything has come to rest; then compare."""
    reported = settled(server, name)
    lake = archived(server)
    decisions, bad = lake.read("decisions")
    events, also_bad = lake.read("events")
    assert bad == also_bad == []
    logged = Counter(decisions["decision_id"].to_pylist())
    due = _due(_of(decisions, name), _of(events, name))
    gaps = [
        have - want
        for variant in due.keys() | reported.keys()
        for have, want in zip(
            reported.get(variant, (0, 0)), due.get(variant, (0, 0)), strict=True
        )
    ]
    return Audit(
        len(set(stream.accepted) - set(events["event_id"].to_pylist())),
        sum(n - 1 for n in logged.values()),
        sum(gap for gap in gaps if gap > 0),
        -sum(gap for gap in gaps if gap < 0),
        [one for one in stream.decisions if one.decision_id not in logged],
    )


def _of(rows: pa.Table, name: str) -> pa.Table:
    return rows.filter(pc.equal(rows["experiment_id"], name))


def _due(decisions: pa.Table, events: pa.Table) -> dict[str, tuple[int, int]]:
    """Trials and rewards by variant, counted by hand from the rows of the lake."""
    variant = {
        row["decision_id"]: row["variant_id"]
        for row in decisions.select(["decision_id", "variant_id", "mode"]).to_pylist()
        if row["mode"] != "fallback"
    }
    columns = ["decision_id", "decided_at_ms", "at_ms"]
    clicked = {
        row["decision_id"]
        for row in events.select(columns).to_pylist()
        if row["at_ms"] < row["decided_at_ms"] + WINDOW_MS
    }
    trials = Counter(variant.values())
    rewards = Counter(variant[one] for one in clicked if one in variant)
    return {v: (trials[v], rewards[v]) for v in trials}
