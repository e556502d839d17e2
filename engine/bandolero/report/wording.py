"""Numbers, times and column names as people read them; one wording for every format."""

import math
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from bandolero.inference.sample_ratio import P_VALUE_MIN
from bandolero.report.model import (
    ROWS_SHOWN,
    Level,
    MetricTable,
    Report,
    Segment,
    Stratum,
)

TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Bidirectional classes of the characters that turn what follows them around."""
RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})
DAY_S = 86_400
NONE = "–"

GLOSSARY = {
    "Decisions": "Settled decisions: times the variant was chosen and the attribution window has closed.",
    "Trials": "Decisions that count: all of them, or those with an impression, as the objective says.",
    "Impressions": "Decisions for which the ad server sent an impression.",
    "Rewards": "What the trials earned: how many were rewarded, or the sum of their values.",
    "Rate": "Rewards / trials.",
    "Pending": "Decisions whose attribution window is still open; in no other column.",
    "95 % interval": "The true rate lies in here with 95 % probability, given the data, the prior and that rates do not change over time.",
    "P(best)": "Probability that the variant's true rate is the highest of all variants that are active or have data.",
    "P(beats control)": "Probability that its true rate is higher than the control's.",
    "Expected loss": "What showing only this variant would give away on average, against always showing the truly best one.",
    "Lift": "Relative difference to the control's rate, with its 95 % interval; +10 % turns a rate of 2 % into 2.2 %.",
    "Share now": "Probability with which the variant is chosen at present; none where it is not active, or the experiment not running.",
}
"""What each column means, in the order of the columns."""


class Scale(NamedTuple):
    """How rates of a report are written: as percent, or in units per trial."""

    factor: float
    unit: str
    difference: str
    digits: int

    @property
    def is_percent(self) -> bool:
        """Whether rates carry their unit in a table; a longer one is said once."""
        return self.unit == "%"

    def number(self, value: float) -> str:
        """A rate without its unit."""
        return f"{value * self.factor:,.{self.digits}f}"

    def cell(self, value: float | None) -> str:
        """A rate in a table."""
        if value is None:
            return NONE
        return f"{self.number(value)} %" if self.is_percent else self.number(value)

    def text(self, value: float | None) -> str:
        """A rate with its unit, for a sentence."""
        return NONE if value is None else f"{self.number(value)} {self.unit}"

    def interval(self, lower: float | None, upper: float | None) -> str:
        """Two rates in a table."""
        if lower is None or upper is None:
            return NONE
        return f"{self.number(lower)} to {self.cell(upper)}"

    def loss_cell(self, value: float | None) -> str:
        """A difference of rates in a table: two digits that matter, if there are."""
        if value is None:
            return NONE
        size, finest = value * self.factor, 10.0 ** -(self.digits + 1)
        if 0.0 < size < finest:
            return f"< {finest:.{self.digits + 1}f}"
        order = math.floor(math.log10(size)) if size > 0.0 else 0
        return f"{size:,.{min(max(1 - order, 0), self.digits + 1)}f}"

    def loss(self, value: float | None) -> str:
        """A difference of rates with its unit, for a sentence."""
        return NONE if value is None else f"{self.loss_cell(value)} {self.difference}"


def scale_of(reward: str, currency: str | None, rates: Iterable[float | None]) -> Scale:
    """The scale that gives the largest of some rates three significant digits."""
    largest = max((abs(rate) for rate in rates if rate is not None), default=0.0)
    if reward == "binary":
        return Scale(100.0, "%", "percentage points", _digits(100.0 * largest, 1))
    noun = (currency or "value") if reward == "value" else "count"
    unit = f"{noun} per trial"
    return Scale(1.0, unit, unit, _digits(largest, 2))


def _digits(largest: float, least: int) -> int:
    order = math.floor(math.log10(largest)) if largest > 0.0 else 0
    return min(max(2 - order, least), 6)


def scale_for(report: Report) -> Scale:
    """The scale of a report's rates."""
    rates = (row.rate for row in report.variants)
    return scale_of(report.reward, report.currency, rates)


def scale_for_metric(report: Report, metric: MetricTable) -> Scale:
    """The scale of a metric's rates."""
    rates = (row.rate for row in metric.variants)
    return scale_of(metric.reward, report.currency, rates)


def metric_title(report: Report, metric: MetricTable) -> str:
    """A metric in a line: its name, what it counts and for how long, and as of when."""
    scale = scale_for_metric(report, metric)
    unit = "" if scale.is_percent else f", {scale.unit}"
    parts = [
        metric.name,
        *(["guardrail"] if metric.guardrail else []),
        f"{metric.event} within {duration(metric.window_s)}{unit}",
        f"as of the refresh up to {moment(metric.watermark_ms)}",
    ]
    return " · ".join(parts)


def segment_title(segment: Segment) -> str:
    """A field in a line: its name, how many levels were seen, and as of when."""
    parts = [f"by {segment.field}"]
    if (seen := len(segment.levels) + segment.smaller) > 0:
        parts.append(amount(seen, "level"))
    if (shown := len(segment.shown)) < seen:
        parts.append(f"the {shown} largest of them")
    n_variants = len(segment.whole.variants) if segment.whole is not None else 0
    if n_variants > ROWS_SHOWN:
        parts.append(f"the first {ROWS_SHOWN} of {n_variants} variants")
    if segment.watermark_ms is not None:
        parts.append(f"as of the refresh up to {moment(segment.watermark_ms)}")
    return " · ".join(parts)


def level_name(level: Level) -> str:
    """A level's own name; that of the whole where it is no single one."""
    return "all levels" if level.level is None else brief(level.level)


def brief(text: str, most: int = 60) -> str:
    """A level as text to read: long ones are cut, an empty one is told.

    Examples
    --------
    >>> brief("mobile"), brief(""), brief("mobile", 4)
    ('mobile', '(empty)', 'mob…')
    """
    shown = printable(text if len(text) <= most else f"{text[: most - 1]}…")
    return isolated(shown) or "(empty)"


def printable(text: str) -> str:
    r"""A text that is not ours in one line; what drives terminals or turns text is marked.

    Examples
    --------
    >>> printable("two\nlines"), printable("\x1b[31mred"), printable("\u202eevil")
    ('two lines', '�[31mred', '�evil')
    """
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isspace():
        return " "
    unfit = unicodedata.category(character) in {"Cc", "Cs"}
    turning = unicodedata.bidirectional(character) in TURNING
    return "\N{REPLACEMENT CHARACTER}" if unfit or turning else character


def isolated(text: str) -> str:
    r"""A text to stand amid others, whose order it leaves alone if it runs right to left.

    Examples
    --------
    >>> isolated("sale"), isolated("\u05d7\u05d3\u05e9") == "\u2068\u05d7\u05d3\u05e9\u2069"
    ('sale', True)
    """
    if any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in text):
        return f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"
    return text


def probability(value: float | None) -> str:
    """A probability as percent; never a false 0 % or 100 %.

    Examples
    --------
    >>> probability(0.972), probability(0.99999), probability(0.0)
    ('97.2 %', '> 99.9 %', '< 0.1 %')
    """
    if value is None:
        return NONE
    if value >= 0.9995:
        return "> 99.9 %"
    return "< 0.1 %" if value < 0.0005 else f"{100.0 * value:.1f} %"


def share(value: float | None) -> str:
    """A share of traffic as percent."""
    return NONE if value is None else f"{100.0 * value:.1f} %"


def lift(value: float | None) -> str:
    """A relative difference as signed percent, with a true minus.

    Examples
    --------
    >>> lift(0.123), lift(-0.05), lift(12.0), lift(3e40)
    ('+12.3 %', '−5.0 %', '+1,200 %', '+3e+42 %')
    """
    if value is None:
        return NONE
    percent = 100.0 * value
    digits = "+.1f" if abs(percent) < 1e3 else "+,.0f" if abs(percent) < 1e9 else "+.0e"
    return f"{percent:{digits}} %".replace("-", "−")


def lift_interval(lower: float | None, upper: float | None) -> str:
    """Both ends of a lift; the lower one where there is no upper."""
    if lower is None:
        return NONE
    if upper is None:
        return f"above {lift(lower)}"
    return f"{lift(lower).removesuffix(' %')} to {lift(upper)}"


def count(value: float | None) -> str:
    """A count with thousands separators; two digits where it is not whole."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def amount(n: float, noun: str) -> str:
    """A count with its noun.

    Examples
    --------
    >>> amount(1, "trial"), amount(2500, "trial")
    ('1 trial', '2,500 trials')
    """
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def p_value(value: float) -> str:
    """A p-value to two digits, or its bound.

    Examples
    --------
    >>> p_value(0.034), p_value(3e-15), p_value(0.5)
    ('p = 0.034', 'p < 0.0001', 'p = 0.50')
    """
    if value < 1e-4:
        return "p < 0.0001"
    return f"p = {value:.2g}" if value < 0.1 else f"p = {value:.2f}"


def e_value(log: float | None) -> str:
    """An e-value from its log, to two digits or its bound.

    Examples
    --------
    >>> e_value(0.7), e_value(-9.0), e_value(12.3)
    ('2', '< 0.01', '> 1,000')
    """
    if log is None:
        return NONE
    if log > math.log(1000.0):
        return "> 1,000"
    return "< 0.01" if log < math.log(0.01) else f"{math.exp(log):.2g}"


def evidence(stratum: Stratum) -> str:
    """What speaks against a split: the p-value, or the e-value where only that does."""
    p = stratum.p_value
    by_e_value = stratum.verdict == "mismatch" and (p is None or p >= P_VALUE_MIN)
    if p is None or by_e_value:
        return f"e-value {e_value(stratum.log_e_value)}"
    corrected = correction(stratum)
    return f"{p_value(p)}, {corrected}" if corrected else p_value(p)


def correction(stratum: Stratum) -> str:
    """What a p-value of one of several tests was corrected for; empty if of one."""
    n = stratum.n_tests
    return f"corrected for {amount(n, 'variant')}" if n > 1 else ""


def names(items: Iterable[str], most: int = 5) -> str:
    """Some names, and how many more there are.

    Examples
    --------
    >>> names(["a", "b", "c"]), names("abcd", most=2)
    ('a, b, c', 'a, b and 2 more')
    """
    every = list(items)
    more = len(every) - most
    return ", ".join(every[:most]) + (f" and {more} more" if more > 0 else "")


def moment(ms: int) -> str:
    """A time in UTC, to the second.

    Examples
    --------
    >>> moment(1_795_000_000_123)
    '2026-11-18 11:06:40 UTC'
    """
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def day_name(day: int) -> str:
    """The date of a day since 1970.

    Examples
    --------
    >>> day_name(20_778)
    '2026-11-21'
    """
    return f"{datetime.fromtimestamp(day * DAY_S, UTC):%Y-%m-%d}"


def duration(seconds: float) -> str:
    """A length of time in its largest whole unit.

    Examples
    --------
    >>> duration(1800), duration(86400), duration(0.5), duration(90)
    ('30 min', '1 d', '0.5 s', '90 s')
    """
    for size, unit in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:g} {unit}"
    return f"{seconds:g} s"


def period(report: Report) -> str:
    """The days a report is of, in words."""
    first = None if report.from_day is None else day_name(report.from_day)
    last = None if report.to_day is None else day_name(report.to_day)
    if first and last:
        return f"{first} to {last}"
    return f"from {first}" if first else f"up to {last}" if last else "all days"
