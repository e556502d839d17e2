"""An answer as text for people and as JSON for programs."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from bandolero.evaluate.answer import Answer
from bandolero.evaluate.evaluation import Estimate
from bandolero.evaluate.intervals import CONFIDENCE, Interval

MEANINGS = {
    "ips": "inverse propensity",
    "snips": "self-normalised",
    "dm": "direct method",
    "dr": "doubly robust",
    "switch_dr": "switch-DR",
    "dros": "DR, shrunk",
}
"""Estimators in the words of a table."""
BIAS = "the direct method's interval knows nothing of its model's bias: trust doubly robust"


def to_json(answer: Answer) -> dict[str, Any]:
    """Everything an answer says, numbers that are none as null."""
    found = answer.evaluation
    support = found.support._asdict()
    support["weights"] = found.support.weights._asdict()
    support["calibration"] = found.support.calibration._asdict()
    told = {
        "supported": found.is_supported,
        "reasons": list(found.support.reasons),
        "from": _time(answer.from_ms),
        "to": _time(answer.to_ms),
        "trials": found.n_trials,
        "clusters": found.n_clusters,
        "learned_from": answer.n_learned,
        "pending": answer.pending,
        "invalid": answer.invalid,
        "logged_value": found.logged,
        "confidence": CONFIDENCE,
        "estimates": {
            name: estimate._asdict() for name, estimate in found.estimates.items()
        },
        "support": support,
        "bad_files": [bad._asdict() for bad in answer.bad_files],
    }
    return {name: _plain(value) for name, value in told.items()}


def to_text(answer: Answer) -> str:
    """The answer as a table, or why there is none."""
    found = answer.evaluation
    when = f"from {_time(answer.from_ms)} to {_time(answer.to_ms)}"
    worth = f"worth {found.logged:.6f} each as logged"
    lines = [f"{found.n_trials:,} trials {when}, {worth}"]
    if answer.n_learned:
        lines.append(f"the target learned from {answer.n_learned:,} trials before")
    if answer.pending:
        lines.append(f"{answer.pending:,} decisions are left out: they are still open")
    if answer.invalid:
        why = "invalid traffic, as the newest refresh found"
        lines.append(f"{answer.invalid:,} decisions are left out: {why}")
    if found.n_clusters < found.n_trials:
        lines.append(f"{found.n_clusters:,} units, each taken as one observation")
    if found.is_supported:
        lines += ["", *_table(found.estimates), BIAS]
    else:
        lines += ["", "not enough support:"]
        lines += [f"  {reason}" for reason in found.support.reasons]
    lines += ["", *_diagnostics(answer)]
    lines += [f"note: {note}" for note in found.support.notes]
    lines += [f"left out: {bad.path}: {bad.reason}" for bad in answer.bad_files]
    return "\n".join(lines) + "\n"


def _table(estimates: dict[str, Estimate]) -> Iterator[str]:
    share = f"{CONFIDENCE:.0%}"
    bounds = f"{share + ' bootstrap':22} {share + ' Bernstein':22}"
    yield f"{'':20} {'value':>9}  {bounds} over the value as logged"
    for name, one in estimates.items():
        bounds = f"{_bounds(one.bootstrap, 6):22} {_bounds(one.bernstein, 6):22}"
        ratio = f"{one.relative:.3f} {_bounds(one.relative_interval, 3)}"
        yield f"{MEANINGS[name]:20} {one.value:9.6f}  {bounds} {ratio}"


def _diagnostics(answer: Answer) -> Iterator[str]:
    support = answer.evaluation.support
    weights, calibration = support.weights, support.calibration
    yield f"effective trials     {weights.effective:,.0f}"
    few = f"worth {weights.rewards_effective:,.1f} of the target's own"
    yield f"rewarded trials      {weights.rewarded:,} with weight, {few}"
    share = f"{weights.largest_share:.2%} of all"
    yield f"largest weight       {weights.largest:.2f}, {share}"
    yield f"mean weight          {weights.mean:.4f} ± {weights.error:.4f}, must be near 1"
    by_field = [f"{v:.2%} by {name}" for name, v in support.unseen_by_field.items()]
    unseen = ", ".join([f"{support.unseen:.2%}", *by_field])
    yield f"mass never shown     {unseen}"
    if calibration.arm >= 0:
        arm = answer.variant_ids[calibration.arm]
        off = f"{calibration.ratio:.3f} ± {calibration.error:.3f}"
        yield f"1 / propensity       {off} a trial for {arm}, the farthest from 1"


def _bounds(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "–"
    return f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _time(ms: int) -> str:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """A value as JSON has it: nan and inf are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
