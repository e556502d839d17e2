"""Prometheus metrics of a worker, from counters the hot path keeps as plain numbers."""

import os
from collections.abc import Iterator

from bandolero_service.api.data_plane import LATENCY_BOUNDS_US, DataPlane
from bandolero_service.views import Views
from bandolero_service.writer import LogWriter


def exposition(plane: DataPlane, views: Views, writer: LogWriter) -> str:
    """All metrics in the text format of Prometheus."""
    return "\n".join(_lines(plane, views, writer)) + "\n"


def _lines(plane: DataPlane, views: Views, writer: LogWriter) -> Iterator[str]:
    worker = f'worker="{os.getpid()}"'
    yield "# TYPE bandolero_decisions_total counter"
    for (mode, serving), n in sorted(plane.decider.by_mode.items()):
        labels = f'{worker},mode="{mode}",serving="{serving}"'
        yield f"bandolero_decisions_total{{{labels}}} {n}"
    yield "# TYPE bandolero_ignored_total counter"
    for what, n in sorted(plane.decider.ignored.items()):
        yield f'bandolero_ignored_total{{{worker},what="{what}"}} {n}'
    yield "# TYPE bandolero_events_accepted_total counter"
    yield f"bandolero_events_accepted_total{{{worker}}} {plane.desk.accepted}"
    yield "# TYPE bandolero_events_rejected_total counter"
    for code, n in sorted(plane.desk.rejected.items()):
        yield f'bandolero_events_rejected_total{{{worker},reason="{code}"}} {n}'
    yield "# TYPE bandolero_rows_dropped_total counter"
    yield f"bandolero_rows_dropped_total{{{worker}}} {writer.dropped}"
    yield "# TYPE bandolero_spool_bytes gauge"
    yield f"bandolero_spool_bytes{{{worker}}} {writer.spool_bytes}"
    yield "# TYPE bandolero_experiments gauge"
    yield f"bandolero_experiments{{{worker}}} {len(views.views())}"
    yield from _latency(plane, worker)


def _latency(plane: DataPlane, worker: str) -> Iterator[str]:
    name = "bandolero_decide_seconds"
    yield f"# TYPE {name} histogram"
    total = 0
    for bound, n in zip(LATENCY_BOUNDS_US, plane.latency_us, strict=False):
        total += n
        yield f'{name}_bucket{{{worker},le="{bound / 1e6:g}"}} {total}'
    total += plane.latency_us[-1]
    yield f'{name}_bucket{{{worker},le="+Inf"}} {total}'
    yield f"{name}_sum{{{worker}}} {plane.latency_sum_us / 1e6:.6f}"
    yield f"{name}_count{{{worker}}} {total}"
