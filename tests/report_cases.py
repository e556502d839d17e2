"""Experiments and rollups to report on, small enough to add up by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bandolero.epochs import Epoch
from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.fold import Correction
from bandolero.report import Report, build_report

DAY = 20_778
NOW_MS = 1_795_000_000_123


def record_of(
    *headlines: str, status: str = "running", **spec: Any
) -> ExperimentRecord:
    """An experiment with a variant v1, v2, … for each headline."""
    variants = [
        {"id": f"v{n}", "creative": {"headline": text, "cta": "Go"}}
        for n, text in enumerate(headlines, 1)
    ]
    raw = {"experiment": "hero", "tenant": "acme", "variants": variants, **spec}
    return ExperimentRecord.model_validate(
        {"tenant": "acme", "spec": parse_experiment(raw), "status": status}
    )


def value_record(reward: str, **spec: Any) -> ExperimentRecord:
    """Three variants, evenly shown, whose rewards are not binary."""
    objective = {"event": "conversion", "reward": reward}
    policy = {"kind": "uniform"}
    return record_of("One", "Two", "Three", policy=policy, objective=objective, **spec)


def epoch(
    trials: list[int],
    rewards: list[float],
    *,
    mode: str = "explore",
    probabilities: list[float] | None = None,
    squared: list[float] | None = None,
    day: int = DAY,
    version: int = 1,
) -> Epoch:
    """An epoch in which every decision counts; evenly drawn unless said otherwise."""
    n = np.array(trials)
    even = [1 / len(trials)] * len(trials)
    return Epoch(
        day,
        mode,
        (version, version),
        np.array(even if probabilities is None else probabilities),
        n,
        n,
        n // 2,
        np.round(np.array(rewards) * 1e6).astype(np.int64),
        np.array(rewards if squared is None else squared, dtype=float),
    )


def report_of(
    record: ExperimentRecord,
    *epochs: Epoch,
    changes: Mapping[str, Mapping[str, float]] | None = None,
    **given: Any,
) -> Report:
    """A report; without decisions, correction and snapshot unless given."""
    correction = None
    if changes is not None:
        per_variant = {variant_id: dict(c) for variant_id, c in changes.items()}
        correction = Correction("acme", "hero", NOW_MS, per_variant, {}, {}, {}, {})
    least: dict[str, Any] = {"decided": {}, "snapshot": None, "correction": correction}
    return build_report(record, epochs, generated_at_ms=NOW_MS, **(least | given))


def has_note(report: Report, part: str) -> bool:
    """Whether some note says this."""
    return any(part in note for note in report.notes)


def busy_report(*headlines: str, **spec: Any) -> Report:
    """Two variants or more with some hundreds of trials each, one clearly best."""
    record = record_of(*(headlines or ("One", "Two")), **spec)
    n = len(record.spec.variants)
    return report_of(record, epoch([1000] * n, [20.0] * (n - 1) + [60.0]))


def long_report(tails: Sequence[str], **given: Any) -> Report:
    """A report of variants whose ids are as long as ids may be, and differ in their tails."""
    ids = [f"{'spring-hero-2026-'.ljust(64 - len(tail), 'x')}{tail}" for tail in tails]
    variants = [{"id": one, "creative": {"headline": "Sale " * 9}} for one in ids]
    spec = given.pop("spec", {})
    record = record_of(variants=variants, **spec)
    n = len(tails)
    return report_of(record, epoch([10_000] * n, [200.0] * (n - 1) + [600.0]), **given)


def bandit_epochs(seed: int, n_epochs: int = 40, size: int = 250) -> list[Epoch]:
    """Epochs of a healthy bandit whose traffic moves to its last variant."""
    rng = np.random.default_rng(seed)
    made = []
    for step in range(n_epochs):
        best = 0.3 + 0.6 * step / n_epochs
        shares = [(1 - best) / 2, (1 - best) / 2, best]
        trials = rng.multinomial(size, shares)
        rewards = rng.binomial(trials, 0.05).astype(float)
        counts = trials.tolist(), rewards.tolist()
        made.append(epoch(*counts, probabilities=shares, version=step))
    return made
