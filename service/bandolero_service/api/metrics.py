"""A worker's figures, from the numbers that its parts keep while they work."""

import time
from collections import Counter

from bandolero_service import metrics as m
from bandolero_service.api.data_plane import LATENCY_BOUNDS_US, DataPlane
from bandolero_service.api.health import Health
from bandolero_service.metrics import Figures, Values
from bandolero_service.spool import bytes_in
from bandolero_service.store_watch import Sight
from bandolero_service.survey import LEASED
from bandolero_service.views import View, Views
from bandolero_service.writer import LogWriter


def worker_figures(plane: DataPlane, health: Health) -> Figures:
    """All that a worker knows; what it cannot know now is left out."""
    return {
        **m.counted(),
        **_of_traffic(plane, health.writer),
        **_of_spool(health),
        **_of_views(health.views),
        **_of_store(health.watch.sight),
        m.READY.name: {(): float(health.reason is None)},
    }


def _of_traffic(plane: DataPlane, writer: LogWriter) -> Figures:
    decider, desk = plane.decider, plane.desk
    return {
        m.DECISIONS.name: _with_zeros(
            m.DECISIONS, {tuple(k): n for k, n in decider.by_mode.items()}
        ),
        m.IGNORED.name: _with_zeros(m.IGNORED, _by_one(decider.ignored)),
        m.DECIDE_SECONDS.name: _latency(plane),
        m.EVENTS_ACCEPTED.name: {(): desk.accepted},
        m.EVENTS_REJECTED.name: _with_zeros(m.EVENTS_REJECTED, _by_one(desk.rejected)),
        m.ROWS_DROPPED.name: {(): writer.dropped},
    }


def _of_spool(health: Health) -> Figures:
    n_blocks, age_s = health.writer.spool_depth
    return {
        m.SPOOL_BYTES.name: {(): bytes_in(health.spool_dir)},
        m.SPOOL_BLOCKS.name: {(): n_blocks},
        m.SPOOL_AGE.name: {(): age_s},
    }


def _of_views(views: Views) -> Figures:
    held = views.views()
    running = [view for view in held if view.record.status == "running"]
    published = [view for view in running if view.snapshot.version > 0]
    return {
        m.EXPERIMENTS.name: _by_one(Counter(view.record.status for view in held)),
        m.COLD.name: {(): len(running) - len(published)},
        m.SNAPSHOT_AGE.name: {(): snapshot_age_s(published)},
        m.VIEW_AGE.name: {} if (age_s := views.age_s) is None else {(): age_s},
        m.STALE.name: {(): float(views.stale)},
    }


def snapshot_age_s(published: list[View]) -> float:
    """Age of the oldest snapshot, in seconds; 0 where there is none."""
    oldest_ms = min((view.snapshot.created_at_ms for view in published), default=None)
    return 0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000)


def _of_store(sight: Sight | None) -> Figures:
    if sight is None:
        return {m.STORE_UP.name: {(): 0.0}}
    figures: Figures = {
        m.STORE_UP.name: {(): float(sight.is_whole)},
        m.STORE_DURABLE.name: {(): float(sight.is_durable)},
        m.REFRESH_TIME.name: {(): sight.refreshed_ms / 1000},
        m.LOG_LAG.name: {},
        m.SETTLE_LAG.name: {},
        m.ARCHIVE_LAG.name: {},
        m.LEASE_HELD.name: {},
    }
    for shard, survey in sight.surveys.items():
        label = (str(shard),)
        figures[m.LOG_LAG.name][label] = survey.log_lag_ms / 1000
        figures[m.SETTLE_LAG.name][label] = survey.settle_lag_ms / 1000
        if survey.archive_lag_ms is not None:
            figures[m.ARCHIVE_LAG.name][label] = survey.archive_lag_ms / 1000
        for role in LEASED:
            held = float(role in survey.roles)
            figures[m.LEASE_HELD.name][role, *label] = held
    return figures


def _latency(plane: DataPlane) -> Values:
    bounds = [f"{us / 1e6:g}" for us in LATENCY_BOUNDS_US] + ["+Inf"]
    values: Values = {(m.SUM,): plane.latency_sum_us / 1e6}
    for bound, n in zip(bounds, plane.latency_us, strict=True):
        values[(bound,)] = n
    return values


def _by_one(counts: Counter[str]) -> Values:
    return {(what,): n for what, n in counts.items()}


def _with_zeros(family: m.Family, values: Values) -> Values:
    return dict.fromkeys(family.known, 0.0) | values
