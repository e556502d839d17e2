"""Rates: how often a key may ask."""

import re
from typing import NamedTuple

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
