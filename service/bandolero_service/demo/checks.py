"""What has to hold for the demo to have gone well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Any

from bandolero_service.demo.client import Faults
from bandolero_service.demo.play import Play

# 3: a gate kept the old prior, which is an answer and not a failure.
REFRESH_EXIT_CODES = (0, 3)
# A click that a busy machine delays past the window of one second is not learned.
LEARNED_SHARE_MIN = 0.99
BEST, NO_VALUE = "doubly robust", "not enough support:"
"""How lines of an evaluation begin: its most trusted value, or why there is none."""


@dataclass(frozen=True)
class Check:
    """Something that has to hold, and what was seen."""

    name: str
    passed: bool
    seen: str


def is_settled(report: dict[str, Any], n_decisions: int) -> bool:
    """Whether a report holds all `n_decisions`, none of them pending."""
    totals = report["totals"]
    return bool(totals["pending"] == 0 and totals["decisions"] >= n_decisions)


def traffic_checks(
    faults: Faults, play: Play, reports: Sequence[dict[str, Any]]
) -> tuple[Check, ...]:
    """What has to hold of the traffic and of what was learned from it."""
    wrong = ", ".join(f"{kind}: {n:,}" for kind, n in sorted(faults.counts.items()))
    served = ", ".join(f"{n:,} {kind}" for kind, n in play.served.most_common())
    settled = all(map(is_settled, reports, play.shown.sum(axis=1).tolist()))
    pending = sum(report["totals"]["pending"] for report in reports)
    rewards = sum(report["totals"]["rewards"] for report in reports)
    clicks = int(play.clicks.sum())
    return (
        Check(
            "all requests answered, all events accepted",
            faults.total == 0,
            wrong or served,
        ),
        Check("all decisions settled", settled, f"{pending:,} pending"),
        Check(
            f"at least {LEARNED_SHARE_MIN:.0%} of the clicks in time to be learned",
            LEARNED_SHARE_MIN * clicks <= rewards <= clicks,
            f"{rewards:,.0f} of {clicks:,}",
        ),
    )


def night_checks(
    ingests: Sequence[CompletedProcess[str]],
    refresh: CompletedProcess[str],
    replay: CompletedProcess[str],
    evaluate: CompletedProcess[str],
) -> tuple[Check, ...]:
    """What the commands said that ran beside the server."""
    return (
        Check(
            "another system's log is in the lake",
            all(done.returncode == 0 for done in ingests),
            "; ".join(map(_last_words, ingests)),
        ),
        Check(
            "refresh", refresh.returncode in REFRESH_EXIT_CODES, _last_words(refresh)
        ),
        Check(
            "replay agrees with the snapshot",
            replay.returncode == 0,
            _last_words(replay),
        ),
        Check(
            "a policy is evaluated on that log",
            evaluate.returncode == 0,
            _value(evaluate),
        ),
    )


def prior_check(night: Mapping[str, Any], record: Mapping[str, Any]) -> Check:
    """Whether a new experiment took the prior that the night published, if it did."""
    first = record["spec"]["variants"][0]
    source = record["prior_sources"].get(first["id"])
    seen = "too little history for a prior"
    if source is not None:
        prior = first["prior"]
        seen = (
            f"Beta({prior['alpha']:.2f}, {prior['beta']:.1f}),"
            f" version {source['version']} of {source['objective']}"
        )
    outcomes = {prior["outcome"] for prior in night.get("priors", {}).values()}
    was_published = "published" in outcomes
    return Check(
        "a new experiment starts with what the night learned",
        was_published == (source is not None),
        seen,
    )


def end_checks(exit_code: int | None, left: Sequence[int]) -> tuple[Check, ...]:
    """What has to hold of the server's end."""
    ended = "had to be killed" if exit_code is None else f"exit code {exit_code}"
    alive = f"still there: {', '.join(map(str, left))}" if left else "none"
    return (
        Check("server ended cleanly on SIGTERM", exit_code == 0, ended),
        Check("no process left behind", not left, alive),
    )


def _value(evaluate: CompletedProcess[str]) -> str:
    """The value that an evaluation gave, or why it gave none."""
    lines = [" ".join(line.split()) for line in evaluate.stdout.splitlines()]
    for line in lines:
        if line.startswith(BEST):
            value = line.removeprefix(BEST).split()[0]
            return f"{BEST} {value} a trial, {lines[0].rpartition(', ')[2]}"
    if NO_VALUE in lines:
        return f"{NO_VALUE} {lines[lines.index(NO_VALUE) + 1]}"
    return _last_words(evaluate)


def _last_words(done: CompletedProcess[str]) -> str:
    """The last line a command printed; of its errors if it failed."""
    text = (
        done.stdout.strip()
        if done.returncode == 0
        else done.stderr.strip() or done.stdout
    )
    line = next(
        (line.strip() for line in reversed(text.splitlines()) if line.strip()), ""
    )
    return line if done.returncode == 0 else f"exit code {done.returncode}: {line}"
