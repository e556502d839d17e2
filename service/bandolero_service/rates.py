"""Rates: how often a caller may ask, and what it is told about it.

Counted in the store for routes that speak to it anyway, each worker for itself on the
hot path. The headers are those of draft-ietf-httpapi-ratelimit-headers-06, the last one
that has `RateLimit-Limit`, `-Remaining` and `-Reset`, which clients know.
"""

import re
import time
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from limits.util import WindowStats

_RATE = re.compile(r"([1-9]\d{0,8})/([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class Rate(NamedTuple):
    """At most `n` requests in `per_s` seconds."""

    n: int
    per_s: int

    def __str__(self) -> str:
        """As it is written: `100/s`."""
        unit = next(unit for unit, s in _SECONDS.items() if s == self.per_s)
        return f"{self.n}/{unit}"


def parse_rate(text: str) -> Rate:
    """A rate as it is written.

    Raises
    ------
    ValueError
        Where it is none.

    >>> parse_rate("6000/m")
    Rate(n=6000, per_s=60)
    """
    found = _RATE.fullmatch(text)
    if found is None:
        rule = (
            "must be a number of requests a second, minute or hour: 100/s, 6000/m, 9/h"
        )
        raise ValueError(f"rate == {text!r}, {rule}.")
    return Rate(int(found[1]), _SECONDS[found[2]])


class Quota(NamedTuple):
    """What a rate leaves a caller after a request.

    Parameters
    ----------
    limit
        The most requests at once from whoever counted: of the rate, a worker's share
        where each counts for itself.
    allowed
        Whether the request is within the rate.
    remaining
        Requests that are left now.
    reset_s
        Seconds until all of them are there again.
    retry_s
        Seconds until one more is.
    """

    rate: Rate
    limit: int
    allowed: bool
    remaining: int
    reset_s: float
    retry_s: float

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which a refused caller may come again."""
        return max(1, ceil(self.retry_s))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer says of it."""
        n, per_s = self.rate
        told = [
            (b"ratelimit-limit", self.limit),
            (b"ratelimit-remaining", self.remaining),
            (b"ratelimit-reset", ceil(self.reset_s)),
        ]
        if not self.allowed:
            told.append((b"retry-after", self.retry_after_s))
        policy = (b"ratelimit-policy", b"%d;w=%d" % (n, per_s))
        return [policy, *((name, b"%d" % value) for name, value in told)]


class Meter:
    """A rate in one worker's memory, for the hot path: a bucket that refills steadily.

    Parameters
    ----------
    rate
        Of the whole service.
    workers
        Each has its share, for they do not ask each other: so many requests at once,
        and so many in a connection, which stays with one worker.
    """

    def __init__(self, rate: Rate, workers: int) -> None:
        self._rate = rate
        self._interval_s = rate.per_s * workers / rate.n
        self._window_s = max(float(rate.per_s), self._interval_s)
        self._limit = max(1, rate.n // workers)
        self._full_at = 0.0

    def take(self, now: float) -> Quota:
        """Count a request at a time, in seconds of a clock that never goes back."""
        full_at = max(self._full_at, now) + self._interval_s
        late_s = full_at - now - self._window_s
        if late_s > 1e-9:
            reset_s = self._full_at - now
            return Quota(self._rate, self._limit, False, 0, reset_s, late_s)
        self._full_at = full_at
        left_s = self._window_s - (full_at - now)
        left = int(left_s / self._interval_s + 1e-9)
        return Quota(self._rate, self._limit, True, left, full_at - now, 0.0)


Count = Callable[[RateLimitItem, str], tuple[bool, WindowStats]]


class Limiter:
    """Counts requests in fixed windows: in the store, in memory while that is down.

    Parameters
    ----------
    count
        Counts in the store; raises `down` when that is out of reach.
    """

    PATIENCE_S = 5.0
    """How long a store that was down is not asked again."""

    def __init__(self, count: Count, down: type[Exception]) -> None:
        self._count = count
        self._down = down
        self._memory = FixedWindowRateLimiter(MemoryStorage())
        self._ask_again_at = 0.0

    def take(self, rate: Rate, who: str) -> Quota:
        """Count a request of a caller, across all workers where the store is up."""
        item = _item(rate)
        if time.monotonic() >= self._ask_again_at:
            try:
                return _quota(rate, *self._count(item, who))
            except self._down:
                self._ask_again_at = time.monotonic() + self.PATIENCE_S
        return self.take_here(rate, who)

    def take_here(self, rate: Rate, who: str) -> Quota:
        """Count a request of a caller, in this worker alone."""
        item = _item(rate)
        within = self._memory.hit(item, who)
        return _quota(rate, within, self._memory.get_window_stats(item, who))

    def left_here(self, rate: Rate, who: str) -> Quota:
        """What is left in this worker, without counting."""
        item = _item(rate)
        within = self._memory.test(item, who)
        return _quota(rate, within, self._memory.get_window_stats(item, who))


def _item(rate: Rate) -> RateLimitItem:
    return RateLimitItemPerSecond(rate.n, rate.per_s)


def _quota(rate: Rate, within: bool, stats: WindowStats) -> Quota:
    """What a window leaves, which may have ended since the request was counted in it."""
    reset_s = max(0.0, stats.reset_time - time.time())
    if within:
        return Quota(rate, rate.n, True, max(0, stats.remaining), reset_s, 0.0)
    reset_s = max(1.0, reset_s)
    return Quota(rate, rate.n, False, 0, reset_s, reset_s)
