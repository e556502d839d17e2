"""What a night says: a summary for programs, and lines for people."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bandolero.lake.refit import Refit
    from bandolero.lake.refresh import Refreshed

OUTCOMES = {
    "published": "is version {version}",
    "unchanged": "as it was",
    "blocked": "is kept back: version {version} stays in force",
    "first blocked": "is kept back: none is in force",
    "held": "is left: an earlier one is held by a rollback",
    "stale": "is left: the one in force is of a later night",
}


class Found(NamedTuple):
    """What a night found, and what becomes of each prior.

    lacking: why a prior cannot be fitted, by tenant and objective. corrected: variants
    whose correction is another than the one in force, by experiment, with its measures.
    refusal: why nothing of it is to be published, else empty.
    """

    refreshed: "Refreshed"
    refits: "list[Refit]"
    lacking: dict[tuple[str, str], str]
    corrected: dict[str, dict[str, dict[str, float]]]
    refusal: str

    @property
    def is_blocked(self) -> bool:
        """Whether a gate kept a prior in force."""
        return any(refit.outcome == "blocked" for refit in self.refits)


def summary_of(found: Found, dry_run: bool, seconds: float) -> dict[str, Any]:
    """A night as JSON; whose lake it is, and what was compacted, is the caller's to say."""
    refreshed = found.refreshed
    reasons = Counter(refreshed.audit["reason"].to_pylist())
    at = datetime.fromtimestamp(refreshed.watermark_ms / 1000, UTC)
    return {
        "watermark": at.isoformat(),
        "watermark_ms": refreshed.watermark_ms,
        "published": not (dry_run or found.refusal),
        "refusal": found.refusal or None,
        "decisions": refreshed.decisions,
        "events": refreshed.events,
        "settled": refreshed.settled,
        "repeated": refreshed.repeated,
        "late_events": refreshed.late_events,
        "unmatched_events": refreshed.unmatched_events,
        "corrected_experiments": found.corrected,
        "corrected_decisions": dict(reasons),
        "priors": {_name(refit): _told(refit) for refit in found.refits},
        "no_priors": {"/".join(name): why for name, why in found.lacking.items()},
        "bad_files": [bad._asdict() for bad in refreshed.bad_files],
        "seconds": round(seconds, 3),
    }


def _name(refit: "Refit") -> str:
    return f"{refit.tenant}/{refit.objective} {refit.group}".rstrip()


def _told(refit: "Refit") -> dict[str, Any]:
    """A prior as fitted; version: the one in force then, null where there is none."""
    before = refit.prior.version - 1
    return {
        "outcome": refit.outcome,
        "version": before + 1 if refit.outcome == "published" else before or None,
        "n_variants": refit.prior.n_variants,
        "parameters": refit.prior.parameters,
        "gates": [finding._asdict() for finding in refit.findings],
    }


def lines_of(told: dict[str, Any]) -> Iterator[str]:
    """A summary for people: what there was, what is out of the ordinary, the priors."""
    if not told["watermark_ms"]:
        nothing = "holds nothing yet that is complete: nothing is settled"
        yield f"the lake {told['lake']} {nothing}"
        return
    at = datetime.fromisoformat(told["watermark"])
    dry = "" if told["published"] else " (nothing is published)"
    yield (
        f"refresh up to {at:%Y-%m-%d %H:%M:%S} UTC: {told['settled']:,} of"
        f" {told['decisions']:,} decisions settled, with {told['events']:,} events,"
        f" in {told['seconds']:.1f} s{dry}"
    )
    counts = {
        "late events": told["late_events"],
        "events without their decision": told["unmatched_events"],
        "repeats of decisions left out": told["repeated"],
        "rewards told otherwise": sum(told["corrected_decisions"].values()),
        "experiments corrected": len(told["corrected_experiments"]),
    }
    if found := [f"{what}: {n:,}" for what, n in counts.items() if n]:
        yield "  " + "; ".join(found)
    for bad in told["bad_files"]:
        rows = f"{bad['path']} ({bad['rows']:,} rows)"
        yield f"  bad file left out: {rows}: {bad['reason']}"
    yield from _compaction_lines(told["compacted"] or {})
    for name, prior in told["priors"].items():
        yield from _prior_lines(name, prior)
    for name, why in told["no_priors"].items():
        yield f"no prior for {name}: {why}"


def _prior_lines(name: str, told: dict[str, Any]) -> Iterator[str]:
    is_first = told["outcome"] == "blocked" and told["version"] is None
    outcome = OUTCOMES["first blocked" if is_first else told["outcome"]].format(**told)
    values = ", ".join(f"{k} {v:.4g}" for k, v in told["parameters"].items())
    yield f"prior of {name}: {values}, from {told['n_variants']} variants, {outcome}"
    for gate in told["gates"]:
        if gate["blocks"]:
            yield f"  blocked by the gate of {gate['gate']}: {gate['message']}"


def _compaction_lines(told: dict[str, Any]) -> Iterator[str]:
    if "fault" in told:
        yield f"the lake was not compacted: {told['fault']}"
    elif told.get("commits"):
        yield (
            f"compacted the lake: {told['files']:,} files became {told['merged_files']:,},"
            f" {told['commits']:,} commits {told['merged_commits']:,}"
        )
