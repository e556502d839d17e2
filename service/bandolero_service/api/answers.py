"""What the framework's routes answer, for the OpenAPI document; tests hold them to it."""

from typing import Any

from typing_extensions import TypedDict

from bandolero.experiment import ExperimentRecord, Status
from bandolero.report.model import Level, MetricRow, Totals, VariantRow
from bandolero_service.audit import AuditLine

Answers = dict[int | str, dict[str, Any]]


class ShownExperiment(ExperimentRecord):
    """A record as it is shown, with its id."""

    experiment: str


class ExperimentSummary(TypedDict):
    """A line of the list of experiments."""

    experiment: str
    status: Status
    spec_version: int
    policy: str
    variants: int
    started_at_ms: int | None


class ExperimentList(TypedDict):
    """A tenant's experiments."""

    experiments: list[ExperimentSummary]


class AuditLog(TypedDict):
    """The newest lines, and where a chain is broken."""

    lines: list[AuditLine]
    whole: bool
    faults: list[str]


class ShownObjective(TypedDict):
    """What a report's trials and rewards are."""

    event: str
    reward: str
    trial: str


class ShownStratum(TypedDict):
    """The sample-ratio check of one mode, or of all.

    p_value: right at one look, corrected for `n_tests` variants that were tested one by
    one, as is done where a context decided: chi2 is then of the one furthest off.
    log_e_value: right at any number of looks.
    """

    mode: str
    decisions: int
    chi2: float | None
    df: int
    p_value: float | None
    n_tests: int
    log_e_value: float | None
    verdict: str


class ShownSampleRatio(TypedDict):
    """Whether decisions split as logged."""

    verdict: str
    reason: str | None
    unknown_decisions: int
    strata: list[ShownStratum]


class ShownCorrection(TypedDict):
    """What a refresh added."""

    watermark: str
    variants: int
    decisions: int
    trials: int
    impressions: int
    rewards: float


class ShownMetric(TypedDict):
    """A metric as the newest refresh settled it."""

    watermark: str
    name: str
    event: str
    reward: str
    window_s: float
    guardrail: bool
    variants: list[MetricRow]


class ShownInteraction(TypedDict):
    """Whether levels differ in how their variants compare."""

    chi2: float
    df: int
    p_value: float


class ShownSegment(TypedDict):
    """A report level by level of a context field, as the newest refresh counted them."""

    field: str
    watermark: str | None
    headline: str
    names_from: float
    interaction: ShownInteraction | None
    levels: list[Level]
    smaller: int
    rest: Level | None
    whole: Level | None
    unseen: list[str]
    notes: list[str]


ShownReport = TypedDict(
    "ShownReport",
    {
        "experiment": str,
        "tenant": str,
        "placement": str | None,
        "status": str,
        "policy": str,
        "control": str,
        "objective": ShownObjective,
        "currency": str | None,
        "generated_at": str,
        "from": str | None,
        "to": str | None,
        "spec_version": int,
        "snapshot_version": int | None,
        "credibility": float,
        "verdict": str,
        "headline": str,
        "totals": Totals,
        "sample_ratio": ShownSampleRatio,
        "correction": ShownCorrection | None,
        "notes": list[str],
        "metrics": list[ShownMetric],
        "segment": ShownSegment | None,
        "variants": list[VariantRow],
    },
)


class ShownEvent(TypedDict):
    """An event of an explained decision."""

    event_id: str
    type: str
    value: float
    at: str
    received_at: str
    retracts: str | None


class Outcome(TypedDict):
    """What a decision has earned."""

    trial: bool
    reward: float
    settled: bool
    settles_at: str


class ExplainedDecision(TypedDict):
    """A decision, what it was drawn from, and what came of it."""

    decision_id: str
    experiment: str
    variant: str
    decided_at: str
    unit: str | None
    context: dict[str, Any] | None
    snapshot_version: int
    spec_version: int
    engine_version: str
    mode: str
    serving: str
    draw: float | None
    propensity: float
    eligible: list[str] | None
    rule: str | None
    probabilities: dict[str, float] | None
    rederived: dict[str, Any]
    events: list[ShownEvent]
    outcome: Outcome


class Receipt(TypedDict):
    """What will be erased of a unit, by when, and what cannot be.

    The times hold while the archiver runs and keeps up; `GET /v1/erasures/{id}` says
    whether it is done; where it took longer it is still `pending`.
    """

    erasure_id: str
    tenant: str
    requested_at: str
    erased: str
    from_lake_by: str
    from_log_by: str
    kept: list[str]
    not_reached: list[str]
    receipt_hash: str
    state: str


class FromLake(TypedDict):
    """How far the files of the lake are written anew."""

    state: str
    by: str
    files: int
    rows: int
    unreadable_files: int


class FromLog(TypedDict):
    """Whether the log has forgotten."""

    state: str
    by: str


class ErasureState(TypedDict):
    """How far an erasure has come."""

    erasure_id: str
    tenant: str
    requested_at: str
    receipt_hash: str
    state: str
    lake: FromLake
    log: FromLog


def answers(shape: object, *statuses: int) -> Answers:
    """A route's answers of one shape, as FastAPI's `responses` takes them."""
    return {status: {"model": shape} for status in statuses}
