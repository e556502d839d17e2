"""Contexts become features as their schema says, whatever is sent."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bandolero.experiment import (
    CategoricalField,
    ContextField,
    CyclicField,
    NumericField,
)
from bandolero.features import (
    NUMERIC_MAX,
    FeatureMap,
    context_encoder,
    encode,
    known_context,
)
from bandolero.fold import features_of
from bandolero.recorded import columns_of
from strategies import experiment

SCHEMA: list[ContextField] = [
    CategoricalField(kind="categorical", name="device", levels=["tv", "pc"]),
    CyclicField(kind="cyclic", name="hour", period=24.0, default=12.0),
    NumericField(kind="numeric", name="age", default=0.5),
]

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["tv", "pc", "other", 10**400]),
    st.lists(st.integers(), max_size=2),
)


def test_by_hand() -> None:
    """Intercept, one of three levels, sine and cosine of six o'clock, a number."""
    x = encode(SCHEMA, {"device": "pc", "hour": 6, "age": 2.5})
    assert_allclose(x, [1, 0, 1, 0, 1, 0, 2.5], atol=1e-12)
    assert FeatureMap(SCHEMA).n_features == 7
    assert FeatureMap(SCHEMA).names[3] == "device=other"


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, [1, 0, 0, 1, 0, -1, 0.5]),
        (
            {"device": "fridge", "hour": "late", "age": math.nan},
            [1, 0, 0, 1, 0, -1, 0.5],
        ),
        ({"device": 3, "hour": True, "age": None}, [1, 0, 0, 1, 0, -1, 0.5]),
        ({"device": "tv", "hour": 30, "age": -1}, [1, 1, 0, 0, 1, 0, -1]),
        ({"device": "tv", "hour": -18, "age": 1e300}, [1, 1, 0, 0, 1, 0, NUMERIC_MAX]),
    ],
)
def test_missing_unknown_and_odd(
    context: dict[str, object], expected: list[float]
) -> None:
    """Unknown levels are "other", missing or wrong values the default, hours go round."""
    assert_allclose(encode(SCHEMA, context), np.array(expected), atol=1e-12)


@given(st.dictionaries(st.sampled_from(["device", "hour", "age", "zip"]), anything))
def test_always_finite_and_of_one_length(context: dict[str, object]) -> None:
    """Whatever is sent, features are finite, one level is set, and nothing raises."""
    features = FeatureMap(SCHEMA)
    x = features.encode(context)
    assert x.shape == (features.n_features,)
    assert np.isfinite(x).all()
    assert x[0] == 1.0
    assert x[1:4].sum() == 1.0
    assert x[4] ** 2 + x[5] ** 2 == pytest.approx(1.0)
    assert_array_equal(x, features.encode(dict(known_context(SCHEMA, context))))


def test_a_level_named_other_has_one_column() -> None:
    """ "other" among the levels is the level that unknown ones take."""
    field = CategoricalField(kind="categorical", name="d", levels=["other", "tv"])
    assert FeatureMap([field]).names == ("1", "d=other", "d=tv")
    assert_array_equal(encode([field], {"d": "fridge"}), [1, 1, 0])


def test_batch_is_one_by_one() -> None:
    """Many contexts are the rows of each; none give no rows of the right width."""
    features = FeatureMap(SCHEMA)
    contexts: list[dict[str, object]] = [{"device": "tv"}, {"hour": 3}]
    rows = features.encode_batch(contexts)
    assert_array_equal(rows, [features.encode(context) for context in contexts])
    assert features.encode_batch([]).shape == (0, 7)


def test_no_schema_is_the_intercept() -> None:
    """An experiment without context has one feature."""
    assert_array_equal(encode([], {"device": "tv"}), [1.0])


# --- recorded contexts, by column ---------------------------------------------------------

written = st.dictionaries(st.sampled_from(["device", "hour", "age"]), anything).map(
    context_encoder(SCHEMA)
)
numbers = st.sampled_from(["9" * 400, " 1"]) | st.sampled_from(
    """
    0 -0 -0.0 01 1. .5 1e5 1E+05 1e - +1 1e400 NaN 9007199254740993 5e-324 0x1 1_0
    123456789012345678901234567890 0.1234567890123456789012345678901 null true "7" [1] {}
    """.split()  # noqa: SIM905 - a list would be a line each
)
strings = st.sampled_from(
    [
        '"tv"',
        '"pc"',
        '"other"',
        '"é\u00fc\U0001f600"',
        '"t\\u0076"',
        '"a\nb"',
        '"',
        "3",
        "null",
    ]
)
by_hand = st.builds(
    '{{"device":{},"hour":{},"age":{}{}'.format,
    strings,
    numbers,
    numbers,
    st.sampled_from(["}", "", "}}", " }", ',"age":1}', ',"zip":1}', "}\n"]),
)
odd = st.sampled_from(
    [
        None,
        "",
        "{}",
        "null",
        "[]",
        "3",
        "{{{",
        '{"age":1}',
        '{"age":1,"device":"tv","hour":3}',
        '{"device": "tv", "hour": 3, "age": 1}',
        '{"device":"tv","device":"pc"}',
    ]
)


@given(st.lists(st.one_of(written, by_hand, odd), max_size=8), st.integers(0, 8))
def test_recorded_contexts_by_column_are_the_rows(
    texts: list[str | None], at: int
) -> None:
    """Bit for bit what each says alone: well written, by another hand, or no JSON at all."""
    given_texts = pa.chunked_array([texts[:at], texts[at:]], pa.string())
    rows = [_object(text or "") for text in texts]
    expected = FeatureMap(SCHEMA).encode_batch(rows)
    assert FeatureMap(SCHEMA).encode_texts(given_texts).tobytes() == expected.tobytes()


@given(st.lists(written, min_size=1, max_size=5))
def test_what_a_worker_records_is_read_by_column(texts: list[str]) -> None:
    """No context that a worker wrote is left to the slow way."""
    is_escaped = [chr(92) in text for text in texts]
    found = columns_of(pa.chunked_array([texts]), SCHEMA)
    assert found.plain.tolist() == [not escaped for escaped in is_escaped]
    assert found.numbers.shape == (len(SCHEMA), is_escaped.count(False))


def test_recorded_contexts_of_no_schema_are_the_intercept() -> None:
    """An experiment without context has one feature, whatever is recorded."""
    rows = pa.table({"context": pa.array([None, "{}", '{"device":"tv"}'])})
    assert_array_equal(features_of(experiment(), rows), np.ones((3, 1)))


def _object(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
