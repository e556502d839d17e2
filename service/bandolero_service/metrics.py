"""Every metric there is, what this process has counted, and the text that tells of both.

What happens rarely is counted here; what happens with every request is counted by the
hot path as plain numbers and read when asked (`bandolero_service.api.metrics`). The
route that shows metrics is open, so no label names a tenant, an experiment or a key: who
may read them need not know who the customers are.
"""

import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, cast

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Shown
from prometheus_client.exposition import choose_encoder

Values = dict[tuple[str, ...], float]
"""Values of a metric by label values; of a histogram by upper bound, and its `sum`."""
Figures = dict[str, Values]
"""Values by metric."""
SUM = "sum"
NO_LABELS: tuple[tuple[str, ...], ...] = ((),)


class Family(NamedTuple):
    """A metric: its name and what it means.

    merge: how a gauge of several processes becomes one; counters are summed.
    known: label values that are there from the start, at 0, so that the first of a kind
    is an increase for who watches.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    merge: Literal["sum", "max", "min"] = "sum"
    known: tuple[tuple[str, ...], ...] = NO_LABELS


def _each(*values: str) -> tuple[tuple[str, ...], ...]:
    return tuple((value,) for value in values)


DECISIONS = Family(
    "bandolero_decisions_total",
    "counter",
    "Decisions answered, by how they were drawn and from what.",
    ("mode", "serving"),
    known=(("explore", "live"), ("fallback", "live")),
)
DECIDE_SECONDS = Family(
    "bandolero_decide_seconds",
    "histogram",
    "Time from the body of a single decide request to its answer, without the network.",
)
IGNORED = Family(
    "bandolero_ignored_total",
    "counter",
    "Decide requests of which a part was ignored: unknown context fields, context values"
    " of a wrong type, unknown variants.",
    ("what",),
    known=_each("context", "context_value", "eligible"),
)
REFUSED = Family(
    "bandolero_requests_refused_total",
    "counter",
    "Requests answered with an error, by its code.",
    ("code",),
    known=_each(
        "unauthorised", "forbidden", "rate_limited", "not_durable", "store_down"
    ),
)
FAULTS = Family(
    "bandolero_faults_total",
    "counter",
    "Requests that failed through a fault of ours; each is in the log with its id.",
)
EVENTS_ACCEPTED = Family(
    "bandolero_events_accepted_total", "counter", "Events accepted."
)
EVENTS_REJECTED = Family(
    "bandolero_events_rejected_total",
    "counter",
    "Events rejected within their batch, by reason.",
    ("reason",),
    known=_each("invalid_event", "unknown_decision", "expired_decision", "no_consent"),
)
EVENTS_LATE = Family(
    "bandolero_events_late_total",
    "counter",
    "Events the live fold let go: later than their window, or of a lost decision.",
)
TRACKED = Family(
    "bandolero_trackers_total",
    "counter",
    "Requests of pixels and links, by what became of their event.",
    ("kind", "outcome"),
    known=tuple(
        (kind, outcome)
        for kind in ("impression", "click")
        for outcome in ("recorded", "repeated", "expired", "unconfirmed", "lost")
    ),
)
ROWS_DROPPED = Family(
    "bandolero_rows_dropped_total",
    "counter",
    "Records of decisions lost because neither store nor disk took them.",
)
SPOOL_BYTES = Family(
    "bandolero_spool_bytes",
    "gauge",
    "Blocks on local disk that wait for the store, those of dead workers too.",
    merge="max",
)
SPOOL_BLOCKS = Family(
    "bandolero_spool_blocks", "gauge", "The same in blocks, of living workers."
)
SPOOL_AGE = Family(
    "bandolero_spool_oldest_age_seconds",
    "gauge",
    "How long the spool of a living worker has not been empty.",
    merge="max",
)
EXPERIMENTS = Family(
    "bandolero_experiments",
    "gauge",
    "Experiments that a worker holds, by status.",
    ("status",),
    merge="max",
)
COLD = Family(
    "bandolero_experiments_cold",
    "gauge",
    "Running experiments for which no snapshot has been published yet.",
    merge="max",
)
SNAPSHOT_AGE = Family(
    "bandolero_snapshot_age_seconds",
    "gauge",
    "Age of the oldest snapshot served; one is published anew every half hour, moved or not.",
    merge="max",
)
VIEW_AGE = Family(
    "bandolero_view_age_seconds",
    "gauge",
    "Time since a worker last saw what has changed in the store.",
    merge="max",
)
READY = Family("bandolero_ready", "gauge", "1 if every worker can decide.", merge="min")
STALE = Family(
    "bandolero_serving_stale",
    "gauge",
    "1 if a worker serves what it last knew, for the store has not been seen for 30 s.",
    merge="max",
)
SNAPSHOTS_REFUSED = Family(
    "bandolero_snapshots_refused_total",
    "counter",
    "Snapshots whose bytes were damaged; the one before goes on being served.",
)
STORE_UP = Family(
    "bandolero_store_up", "gauge", "1 if every worker reaches the store.", merge="min"
)
STORE_DURABLE = Family(
    "bandolero_store_durable",
    "gauge",
    "1 if the store promises `appendonly yes` and `appendfsync always`.",
    merge="min",
)
LOG_LAG = Family(
    "bandolero_log_lag_seconds",
    "gauge",
    "How far the log is read, behind the store's clock; true without a learner too.",
    ("shard",),
    merge="max",
)
SETTLE_LAG = Family(
    "bandolero_settle_lag_seconds",
    "gauge",
    "How overdue the oldest decision is that has closed and is not settled.",
    ("shard",),
    merge="max",
)
ARCHIVE_LAG = Family(
    "bandolero_archive_lag_seconds",
    "gauge",
    "How far the lake is complete, behind the store's clock.",
    ("shard",),
    merge="max",
)
LEASE_HELD = Family(
    "bandolero_lease_held",
    "gauge",
    "1 if some process does this work for the shard.",
    ("role", "shard"),
    merge="max",
)
REFRESH_TIME = Family(
    "bandolero_refresh_timestamp_seconds",
    "gauge",
    "When the nightly job last published, in Unix time; 0: never.",
    merge="max",
)
COMMITS = Family("bandolero_learner_commits_total", "counter", "Commits of learners.")
FENCED = Family(
    "bandolero_fence_conflicts_total",
    "counter",
    "Commits refused because another learner had taken the shard over.",
)
FOLD_FAILURES = Family(
    "bandolero_fold_failures_total",
    "counter",
    "Blocks of an experiment that could not be folded, and are not learned live.",
)
SNAPSHOT_FAILURES = Family(
    "bandolero_snapshot_failures_total",
    "counter",
    "Snapshots that could not be built.",
)
ARCHIVE_ERRORS = Family(
    "bandolero_archive_errors_total",
    "counter",
    "Attempts to archive a shard that failed, and entries put aside, by what was wrong.",
    ("reason",),
    known=_each("store", "lake", "overlap", "entry", "fault"),
)
PROCESSES = Family(
    "bandolero_processes", "gauge", "Living processes that share the folder.", ("role",)
)
FIGURES_AGE = Family(
    "bandolero_figures_age_seconds",
    "gauge",
    "Age of the oldest figures of a living process; it writes them once a second.",
    ("role",),
    merge="max",
)
FAMILIES = tuple(thing for thing in list(vars().values()) if isinstance(thing, Family))

_lock = threading.Lock()
_counted: Figures = {
    family.name: dict.fromkeys(family.known, 0.0)
    for family in FAMILIES
    if family.kind == "counter"
}


def count(family: Family, *labels: str, n: float = 1.0) -> None:
    """Add to a counter of this process; not meant for every request."""
    with _lock:
        values = _counted[family.name]
        values[labels] = values.get(labels, 0.0) + n


def counted() -> Figures:
    """A copy of what this process has counted."""
    with _lock:
        return {name: dict(values) for name, values in _counted.items()}


def merged(many: Iterable[Figures]) -> Figures:
    """The figures of several processes as one."""
    result: Figures = {}
    for figures in many:
        for name, values in figures.items():
            rule = _RULES.get(name)
            if rule is None:  # a process of another release counts something else
                continue
            into = result.setdefault(name, {})
            for labels, value in values.items():
                into[labels] = rule(into[labels], value) if labels in into else value
    return result


_BY_WORD: dict[str, Callable[[float, float], float]] = {
    "sum": operator.add,
    "max": max,
    "min": min,
}
_RULES = {family.name: _BY_WORD[family.merge] for family in FAMILIES}


def exposition(figures: Figures, accept: str = "") -> tuple[bytes, str]:
    """Figures as Prometheus reads them, and the content type; see `Accept` of HTTP."""
    encode, content_type = choose_encoder(accept)
    return encode(_registry(lambda: figures)), content_type


def serve_metrics(host: str, port: int, read: Callable[[], Figures]) -> None:
    """Serve `/metrics` from a thread, for a process that has no HTTP of its own."""
    start_http_server(port, host, _registry(read))


def _registry(read: Callable[[], Figures]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(read))
    return registry


class _Collector:
    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read

    def describe(self) -> Iterator[Shown]:
        """Nothing: registering must not read."""
        return iter(())

    def collect(self) -> Iterator[Shown]:
        """Every metric that has a value."""
        figures = self._read()
        for family in FAMILIES:
            values = figures.get(family.name)
            if values:
                yield _shown(family, values)


def _shown(family: Family, values: Values) -> Shown:
    """A family with its values, as the library has it."""
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help)
        histogram.add_metric([], _cumulative(values), values[(SUM,)])
        return histogram
    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
    }
    shown = kinds[family.kind](family.name, family.help, labels=family.labels)
    for labels, value in sorted(values.items()):
        shown.add_metric(labels, value)
    return cast("Shown", shown)


def _cumulative(values: Values) -> list[tuple[str, float]]:
    buckets, total = [], 0.0
    for (bound,) in sorted((k for k in values if k != (SUM,)), key=lambda k: float(*k)):
        total += values[(bound,)]
        buckets.append((bound, total))
    return buckets
