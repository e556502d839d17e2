"""Which tests the demo plays: found, read, and drawn at random with a stated seed."""

import html
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bandolero.simulate import (
    SAMPLE_N_TESTS,
    SAMPLE_SEED,
    Environment,
    sample_table,
    synthetic_tests,
)

REPOSITORY = Path(__file__).resolve().parents[3]
ARCHIVE = Path("shared/data/upworthy/tests.parquet")
SAMPLE = Path("data/sample_tests.parquet")
MIN_VARIANTS = 3

UPWORTHY_CITATION = (
    "Real A/B tests expanded from aggregates: Matias, Munger, Le Quere and Ebersole (2021), "
    "The Upworthy Research Archive, doi:10.1038/s41597-021-00934-7, CC BY 4.0."
)
SAMPLE_CITATION = "Synthetic tests expanded from aggregates: made by bandolero.simulate, no real data."


@dataclass(frozen=True)
class Source:
    """Where tests come from: a name for people, a citation, and the tests themselves."""

    name: str
    citation: str
    tests: tuple[Environment, ...]


def find_source(path: Path | None = None) -> Source:
    """The tests of the given file, else of the archive, else of the shipped sample.

    A wheel carries no data: there the same kind of tests are made on the spot.
    """
    if path is not None:
        return read_source(path)
    for candidate in (
        REPOSITORY.parent / ARCHIVE,
        REPOSITORY / SAMPLE,
        Path.cwd() / SAMPLE,
    ):
        if candidate.is_file():
            return read_source(candidate)
    made = sample_table(synthetic_tests(SAMPLE_SEED, SAMPLE_N_TESTS), SAMPLE_SEED)
    name = f"bandolero.simulate with seed {SAMPLE_SEED}"
    return Source(name, SAMPLE_CITATION, environments(made.to_pylist()))


def read_source(path: Path) -> Source:
    """The playable tests of a Parquet file in the archive's columns."""
    names = pq.read_schema(path).names
    wanted = [
        "clickability_test_id",
        "headline",
        "excerpt",
        "lede",
        "impressions",
        "clicks",
    ]
    rows = pq.read_table(
        path, columns=[name for name in wanted if name in names]
    ).to_pylist()
    # Only the archive itself says which picture a package had.
    citation = UPWORTHY_CITATION if "eyecatcher_id" in names else SAMPLE_CITATION
    return Source(os.path.relpath(path), citation, environments(rows))


def environments(rows: Iterable[dict[str, Any]]) -> tuple[Environment, ...]:
    """One environment per test with at least 3 packages and a click, in order of name."""
    packages: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["impressions"] > 0:
            packages.setdefault(row["clickability_test_id"], []).append(row)
    return tuple(
        _environment(name, packages[name])
        for name in sorted(packages)
        if len(packages[name]) >= MIN_VARIANTS
        and sum(row["clicks"] for row in packages[name]) > 0
    )


def _environment(name: str, packages: Sequence[dict[str, Any]]) -> Environment:
    """A test's packages as variants; clicks / impressions is taken for the truth."""
    return Environment(
        name=name,
        headlines=tuple(plain_text(row["headline"]) for row in packages),
        descriptions=tuple(
            plain_text(row.get("excerpt") or row.get("lede") or "") for row in packages
        ),
        click_rates=tuple(row["clicks"] / row["impressions"] for row in packages),
        horizon=sum(row["impressions"] for row in packages),
    )


def draw_tests(
    tests: Sequence[Environment], n_tests: int, scale: float, seed: int
) -> tuple[Environment, ...]:
    """`n_tests` different tests at random, their horizons times `scale`.

    Examples
    --------
    >>> tests = synthetic_tests(seed=1, n_tests=9)
    >>> [test.name for test in draw_tests(tests, 3, scale=1.0, seed=7)]
    ['sample-006', 'sample-007', 'sample-009']
    """
    if not 1 <= n_tests <= len(tests):
        raise ValueError(
            f"tests == {n_tests}, must be in 1 … {len(tests)}, the tests there are."
        )
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(tests), size=n_tests, replace=False)
    return tuple(_scaled(tests[index], scale) for index in sorted(drawn))


def _scaled(test: Environment, scale: float) -> Environment:
    """The same test with its horizon times `scale`, at least one decision."""
    horizon = max(1, round(test.horizon * scale))
    return Environment(
        test.name, test.headlines, test.descriptions, test.click_rates, horizon
    )


class _Text(HTMLParser):
    """Collects the text of an HTML fragment; a tag separates words."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"br", "div", "li", "p"}:
            self.pieces.append(" ")


def plain_text(fragment: str) -> str:
    """The words of an HTML fragment, white space collapsed.

    Examples
    --------
    >>> plain_text("<p>Salt &amp; <b>pep</b>per</p><p>twice</p>")
    'Salt & pepper twice'
    """
    parser = _Text()
    parser.feed(fragment)
    parser.close()
    return re.sub(r"\s+", " ", html.unescape("".join(parser.pieces))).strip()
