"""Attributes of variants as numbers, so that variants share what their values share.

A variant's attributes (tone: urgent, offer: sale) become 1 and an indicator for each
value it has, and where asked one for each pair of its values. Columns come in the order
in which variants bring them in: adding a variant adds columns at the end and moves none.
A number is a level like any other; an attribute that a variant lacks gives it no column.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Term = tuple[tuple[str, str], ...]
"""Levels (attribute, value) that a variant must all have; none is the constant."""


class FeatureTable(NamedTuple):
    """Attribute features of variants.

    names
        (n_columns,); the first is "1".
    matrix
        (n_arms, n_columns), of 0 and 1.
    """

    names: tuple[str, ...]
    matrix: NDArray[np.float64]


def attribute_features(variants: Sequence[Mapping[str, object]]) -> FeatureTable:
    """1, and one indicator per (attribute, value), in order of first appearance.

    Examples
    --------
    >>> table = attribute_features([{"tone": "calm"}, {"tone": "loud", "price": 9}])
    >>> table.names
    ('1', 'tone=calm', 'tone=loud', 'price=9')
    >>> table.matrix
    array([[1., 1., 0., 0.],
           [1., 0., 1., 1.]])
    """
    return _table([_effects(variant, 1) for variant in variants])


def paired_features(variants: Sequence[Mapping[str, object]]) -> FeatureTable:
    """As `attribute_features`, and one indicator per pair of values of a variant.

    Examples
    --------
    >>> paired_features([{"tone": "calm", "offer": "sale"}]).names
    ('1', 'tone=calm', 'offer=sale', 'tone=calm & offer=sale')
    """
    return _table([_effects(variant, 2) for variant in variants])


def _effects(variant: Mapping[str, object], order: int) -> list[Term]:
    """Sets of at most `order` levels of a variant, the smaller sets first."""
    levels = [(name, str(value)) for name, value in variant.items()]
    return [term for n in range(order + 1) for term in combinations(levels, n)]


def _table(effects: Sequence[Sequence[Term]]) -> FeatureTable:
    """Indicators of the terms that each variant has."""
    # A pair is the same whichever of its attributes a variant names first.
    columns: dict[frozenset[tuple[str, str]], int] = {frozenset(): 0}
    names = ["1"]
    for term in (term for terms in effects for term in terms):
        if columns.setdefault(frozenset(term), len(names)) == len(names):
            names.append(" & ".join(f"{name}={value}" for name, value in term))
    matrix = np.zeros((len(effects), len(names)))
    for arm, terms in enumerate(effects):
        matrix[arm, [columns[frozenset(term)] for term in terms]] = 1.0
    return FeatureTable(tuple(names), matrix)
