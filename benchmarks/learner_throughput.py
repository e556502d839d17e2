"""How much a learner's core can settle and fold: `python -m benchmarks.learner_throughput`.

Blocks as a worker writes them at 10,000 decisions a second and a flush of 50 ms, events of
a few percent, in a log in memory; a `ShardLearner` reads, settles, folds, builds snapshots
and makes the bytes of its commits. What is left out is the store itself. CPU time of one
thread, in all and by stage.
"""

import base64
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import print_header, print_row, spread

from bandolero import fold as folding
from bandolero.experiment import Experiment, ExperimentRecord, parse_experiment
from bandolero.log import DECISIONS, EVENTS, log_order, write_block
from bandolero.policies import LinearThompson
from bandolero_service import keys, learner
from bandolero_service.changes import Changes
from bandolero_service.folding import epoch_from_bytes
from bandolero_service.learner import ShardLearner
from bandolero_service.settings import Settings
from bandolero_service.store import Commit, Entry, Store, name_of

RNG = np.random.default_rng(11)
START_MS = 1_795_219_200_000
PER_BLOCK = 500
BLOCK_MS = 50
N_BLOCKS = 400
VERSION_MS = 1_000
CLICKED = 0.05
WINDOW_S = 60.0
N_RUNS = 3
BARS = {"beta_thompson": 1_000_000, "linear_thompson": 300_000}
LEVELS = [f"level-{i}" for i in range(8)]
CONTEXT: list[dict[str, Any]] = [
    {"kind": "categorical", "name": "device", "levels": LEVELS[:4]},
    {"kind": "categorical", "name": "country", "levels": LEVELS},
    {"kind": "categorical", "name": "section", "levels": LEVELS},
    {"kind": "cyclic", "name": "hour", "period": 24.0},
    *({"kind": "numeric", "name": f"score_{i}"} for i in range(6)),
]
"""32 features: the intercept, 23 of levels, 2 of the hour, 6 numbers."""


class LogInMemory(Store):
    """A store of one shard, as far as a learner asks it, without a server."""

    def __init__(self, records: Sequence[ExperimentRecord]) -> None:
        self._by_name = {name_of(r.tenant, r.experiment_id): r for r in records}
        self._streams: dict[str, list[Entry]] = defaultdict(list)
        self._times: dict[str, list[int]] = defaultdict(list)
        self._rollups: dict[str, bytes] = {}

    def log(self, stream: str, at_ms: int, block: bytes | None) -> None:
        """Append a block, or a tick, at a log time."""
        fields = {b"tick": b"1"} if block is None else {b"block": block}
        self._streams[stream].append(Entry(f"{at_ms}-0", fields))
        self._times[stream].append(at_ms)

    def tick(self, shard: int) -> str:
        """Log time is the benchmark's."""
        return ""

    def read(
        self, stream: str, after: str, until_ms: int | None = None
    ) -> Iterator[Entry]:
        """Entries after a log id, up to a log time."""
        times = self._times[stream]
        first = np.searchsorted(times, log_order(after)[0], "right")
        last = (
            len(times)
            if until_ms is None
            else np.searchsorted(times, until_ms, "right")
        )
        yield from self._streams[stream][int(first) : int(last)]

    def cursors(self, shard: int) -> str:
        """None committed."""
        return ""

    def folds(self, shard: int) -> dict[str, bytes]:
        """None committed."""
        return {}

    def changes(self, shard: int) -> Changes:
        """Nothing changes."""
        return Changes(0, 0, 0)

    def records(self, shard: int) -> dict[str, ExperimentRecord]:
        """As given."""
        return self._by_name

    def corrections(self, shard: int) -> dict[str, dict[str, Any]]:
        """None."""
        return {}

    def versions(self, shard: int) -> dict[str, int]:
        """None."""
        return {}

    def commit(self, shard: int, fence: int, expected: str, commit: Commit) -> None:
        """Take the bytes."""
        for epochs in commit.rollups.values():
            self._rollups |= epochs

    @property
    def n_folded(self) -> int:
        """Decisions in the epochs that were committed."""
        epochs = map(epoch_from_bytes, self._rollups.values())
        return sum(int(epoch.decisions.sum()) for epoch in epochs)


class Stages:
    """CPU seconds spent in some functions, each without those timed inside it."""

    def __init__(self) -> None:
        self.took_s: dict[str, float] = defaultdict(float)
        self._inner_s = [0.0]

    def time(self, module: object, function: str) -> None:
        """Time every call of a module's function from now on."""
        inner: Callable[..., Any] = getattr(module, function)
        stage = function.strip("_")

        def timed(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            self._inner_s.append(0.0)
            try:
                return inner(*given, **named)
            finally:
                took = time.thread_time() - began
                self.took_s[stage] += took - self._inner_s.pop()
                self._inner_s[-1] += took

        setattr(module, function, timed)


def main() -> None:
    """Print the tables."""
    print_header("A learner's throughput")
    stages = Stages()
    stages.time(LinearThompson, "update")
    for name in ("read_blocks", "advance", "build_snapshot", "snapshot_to_bytes"):
        stages.time(learner, name)
    for name in ("settle", "features_of", "_moments"):
        stages.time(folding, name)
    for kind in BARS:
        print_throughput(kind, stages)


def print_throughput(kind: str, stages: Stages) -> None:
    """Decisions a second on one core, in all and by stage."""
    spec = spec_of(kind)
    blocks = decision_blocks(spec)
    n = N_BLOCKS * PER_BLOCK
    rates: list[float] = []
    parts: dict[str, list[float]] = defaultdict(list)
    for _ in range(N_RUNS + 1):
        stages.took_s.clear()
        took_s = run(spec, *blocks)
        rates.append(n / took_s)
        for stage, seconds in stages.took_s.items():
            parts[stage].append(seconds)
        parts["all else"].append(took_s - sum(stages.took_s.values()))
    bar = f">= {BARS[kind]:,}/s"
    print_row(f"{kind}, settled decisions/s", spread(rates[1:]).text(0), bar)
    for stage, took in parts.items():
        each = spread([s / n * 1e6 for s in took[1:]])
        print_row(f"  {stage}, us CPU a decision", each.text(3))


def run(spec: Experiment, made: list[bytes], told: list[bytes]) -> float:
    """CPU seconds to settle and fold all of a log, a second of it at a time."""
    store = LogInMemory([ExperimentRecord(tenant="acme", spec=spec, status="running")])
    shard = ShardLearner(store, 0, 1, Settings())
    for i, (decisions, events) in enumerate(zip(made, told, strict=True)):
        at_ms = START_MS + i * BLOCK_MS
        store.log(keys.decisions(0), at_ms, decisions)
        store.log(keys.events(0), at_ms + 1, events)
    end_ms = START_MS + N_BLOCKS * BLOCK_MS + round(WINDOW_S * 1e3) + 2_000
    began = time.thread_time()
    store.log(keys.events(0), end_ms, None)
    while shard.step():
        pass
    took = time.thread_time() - began
    if store.n_folded != N_BLOCKS * PER_BLOCK:
        raise RuntimeError("decisions are missing: the figure would mean nothing.")
    return took


def spec_of(kind: str) -> Experiment:
    """An experiment of 20 variants, or of 10 with 32 features."""
    by_context = kind == "linear_thompson"
    spec: dict[str, Any] = {
        "experiment": "hats",
        "tenant": "acme",
        "policy": {"kind": kind},
        "objective": {"attribution_window_s": WINDOW_S},
        "variants": [{"id": f"v{i}"} for i in range(10 if by_context else 20)],
    }
    if by_context:
        spec["context"] = CONTEXT
    return parse_experiment(spec)


def decision_blocks(spec: Experiment) -> tuple[list[bytes], list[bytes]]:
    """Blocks of decisions, and of clicks on some of them."""
    made, told = [], []
    for i in range(N_BLOCKS):
        at_ms = START_MS + i * BLOCK_MS
        rows = [_decision(spec, at_ms - j % BLOCK_MS) for j in range(PER_BLOCK)]
        hits = [_click(row, at_ms + 1) for row in rows if RNG.random() < CLICKED]
        made.append(write_block(rows, DECISIONS))
        told.append(write_block(hits, EVENTS))
    return made, told


def _decision(spec: Experiment, at_ms: int) -> tuple[Any, ...]:
    n_arms = len(spec.variants)
    row: dict[str, Any] = dict.fromkeys(DECISIONS.names)
    row |= {
        "tenant_id": "acme",
        "decision_id": base64.urlsafe_b64encode(RNG.bytes(48)).decode(),
        "experiment_id": "hats",
        "spec_version": 1,
        "engine_version": "0.4.0",
        "variant_id": spec.variant_ids[int(RNG.integers(n_arms))],
        "unit": RNG.bytes(12).hex(),
        "decided_at_ms": at_ms,
        "snapshot_version": 1 + (at_ms - START_MS) // VERSION_MS,
        "draw": RNG.random(),
        "propensity": 1.0 / n_arms,
        "mode": "explore",
        "serving": "live",
    }
    if spec.context:
        row["eligible"] = spec.variant_ids
        row["probabilities"] = [1.0 / n_arms] * n_arms
        row["rule"] = "exact"
        row["context"] = _context()
    return tuple(row.values())


def _context() -> str:
    levels = {f["name"]: LEVELS[RNG.integers(4)] for f in CONTEXT[:3]}
    numbers = {f"score_{i}": RNG.normal() for i in range(6)}
    given = {**levels, "hour": float(RNG.integers(24)), **numbers}
    return json.dumps(given, separators=(",", ":"))


def _click(decided: tuple[Any, ...], at_ms: int) -> tuple[Any, ...]:
    row: dict[str, Any] = dict.fromkeys(EVENTS.names)
    row |= {
        "tenant_id": "acme",
        "event_id": RNG.bytes(8).hex(),
        "decision_id": decided[1],
        "experiment_id": "hats",
        "type": "click",
        "value_micros": 1_000_000,
        "decided_at_ms": decided[7],
        "at_ms": at_ms,
        "received_at_ms": at_ms,
    }
    return tuple(row.values())


if __name__ == "__main__":
    main()
