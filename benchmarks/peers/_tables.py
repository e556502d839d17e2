"""What was measured as tables, and whether each bar holds."""

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks._machine import print_row

TITLES = {
    ("W1", 10): "W1: one decision without context, 10 variants",
    ("W1", 50): "W1: one decision without context, 50 variants",
    ("W1", 1000): "W1: one decision without context, 1,000 variants",
    ("W1u", 50): "W1u: one decision and one update, 50 variants; ours with a new "
    "snapshot every 1,000",
    ("W2", 10): "W2: one contextual decision, 32 features, 10 variants",
    ("W2", 50): "W2: one contextual decision, 32 features, 50 variants",
    ("W3", 10): "W3: one contextual update, 32 features, 10 variants",
    ("W3", 50): "W3: one contextual update, 32 features, 50 variants",
    ("W3b", 10): "W3b: one contextual update in a batch of a million, 10 variants",
    ("W4", 50): "W4: one decision in a batch without context, draws given, 50 variants",
    ("hash", 50): "of which, in W1 and W2 and not in W4",
    ("prepare", 10): "solving what W3 summed, once per snapshot, 10 variants",
    ("prepare", 50): "solving what W3 summed, once per snapshot, 50 variants",
}


class Row(NamedTuple):
    """One measurement of one bandit."""

    package: str
    work: str
    method: str
    n_arms: int
    us: float
    low: float
    high: float
    has_propensity: bool
    full_covariance: bool
    note: str


class Bar(NamedTuple):
    """What is asked of a workload.

    at_most_us
        Of our slowest policy.
    times
        The fastest peer's time is at least so many times that.
    """

    work: str
    n_arms: int
    at_most_us: float | None = None
    times: float | None = None
    only_full_covariance: bool = False


BARS = (
    Bar("W1", 50, times=10.0),
    Bar("W1", 1000, times=100.0),
    Bar("W1u", 50, times=5.0),
    Bar("W2", 10, at_most_us=5.0, times=4.0),
    Bar("W2", 50, at_most_us=20.0),
    Bar("W3", 10, times=10.0, only_full_covariance=True),
    Bar("W3b", 10, at_most_us=0.5),
    Bar("W4", 50, at_most_us=0.05),
)


def print_tables(rows: Iterable[Row]) -> None:
    """One table a workload: ours, then each peer and its ratio to our slowest."""
    every = list(rows)
    for (work, n_arms), title in TITLES.items():
        some = [row for row in every if (row.work, row.n_arms) == (work, n_arms)]
        if not some:
            continue
        print(f"\n{title}")
        print_row("  ", "us CPU, median (min … max)", "peer / ours")
        base = slowest_of_ours(some, work, n_arms)
        for row in sorted(some, key=lambda row: (row.package != "ours", row.us)):
            ratio = f"{row.us / base.us:,.1f}" if base and row.package != "ours" else ""
            digits = 3 if row.us < 1.0 else 2
            took = (
                f"{row.us:,.{digits}f} ({row.low:,.{digits}f} … {row.high:,.{digits}f})"
            )
            marks = " p" if row.has_propensity else ""
            print_row(f"  {row.method}{marks}", took, f"{ratio:>9}  {row.note}")


def print_bars(rows: Iterable[Row]) -> None:
    """Whether each bar holds, by medians."""
    every = list(rows)
    print("\nBars, by our slowest policy")
    for bar in BARS:
        ours = slowest_of_ours(every, bar.work, bar.n_arms)
        if ours is None:
            continue
        what = f"  {bar.work}, {bar.n_arms:,} variants: {ours.us:,.3f} us"
        if bar.at_most_us is not None:
            holds = ours.us <= bar.at_most_us
            print_row(what, f"at most {bar.at_most_us} us", _said(holds))
        if bar.times is not None:
            _print_ratio(what, bar, ours, _peers(every, bar))


def slowest_of_ours(rows: list[Row], work: str, n_arms: int) -> Row | None:
    """The row of ours that others are measured by."""
    ours = [
        row
        for row in rows
        if row.package == "ours" and (row.work, row.n_arms) == (work, n_arms)
    ]
    return max(ours, key=lambda row: row.us, default=None)


def _print_ratio(what: str, bar: Bar, ours: Row, peers: list[Row]) -> None:
    """Against the fastest peer, and the fastest of those that give a propensity."""
    if not peers:
        print_row(what, f"{bar.times:g} times the fastest peer", "no peer ran")
        return
    fastest = min(peers, key=lambda row: row.us)
    ratio = fastest.us / ours.us
    asked = f"{bar.times:g} times {fastest.method}: {ratio:.1f}"
    print_row(what, asked, _said(ratio >= (bar.times or 0.0)))
    logged = [row for row in peers if row.has_propensity]
    best = min(logged, key=lambda row: row.us, default=fastest)
    if best is not fastest:
        told = f"{best.method}: {best.us / ours.us:.1f}"
        print_row("    of those that give a propensity", told)


def _peers(rows: list[Row], bar: Bar) -> list[Row]:
    return [
        row
        for row in rows
        if row.package != "ours"
        and (row.work, row.n_arms) == (bar.work, bar.n_arms)
        and (row.full_covariance or not bar.only_full_covariance)
    ]


def _said(holds: bool) -> str:
    return "holds" if holds else "FAILS"
