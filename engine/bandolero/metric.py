"""An experiment as one of its metrics sees it: that metric is what its decisions earn."""

from bandolero.experiment import ExperimentRecord, Metric, Objective, UniformSpec

MetricSums = dict[str, dict[str, dict[str, float]]]
"""By metric and variant, sums of `MEASURES` over all decisions whose window has closed."""
MEASURES = ("trials", "hits", "rewards_micros", "rewards_squared")
MOMENTS = (
    "weights",
    "weights_squared",
    "weighted_rewards",
    "squared_weighted_rewards",
    "squared_weighted_squares",
)
"""More of them where a context decided what was shown; see `bandolero.epochs.MOMENTS`."""


def as_metric(record: ExperimentRecord, metric: Metric) -> ExperimentRecord:
    """The record with a metric for its objective; nothing is believed, and nothing fades."""
    objective = Objective.model_construct(
        event=metric.event,
        reward=metric.reward,
        attribution_window_s=metric.window_s,
        trial="decision",
    )
    plain = [v.model_copy(update={"prior": None}) for v in record.spec.variants]
    given = {"objective": objective, "policy": UniformSpec(), "variants": plain}
    return record.model_copy(update={"spec": record.spec.model_copy(update=given)})
