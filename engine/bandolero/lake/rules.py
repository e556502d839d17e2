"""What a row of another system must keep to be taken in, checked for many rows at once.

The rules are those of the service's border where it has them; what they refuse there, a
file may not bring in by the back door.
"""

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.lake.columns import Bools, Broken
from bandolero.log import MAX_UNIT_CHARACTERS
from bandolero.micros import MAX_MICROS

REQUIRED = {
    "decisions": (
        "tenant_id",
        "decision_id",
        "experiment_id",
        "variant_id",
        "decided_at_ms",
        "propensity",
        "mode",
    ),
    "events": ("tenant_id", "event_id", "decision_id", "type", "at_ms"),
}
CLOCK_SKEW_MS = 300_000
"""So far ahead of ours may another system's clock be."""
MAX_ID_CHARACTERS = 256
MAX_CONTEXT_BYTES = 16_384
MAX_VARIANTS = 1000
MODES = ("explore", "holdout", "fixed", "fallback")
KEPT_FROM_VIEW = "unit"
"""The column whose values are told to nobody, refused ones neither."""

UNKNOWN = {
    "experiment_id": "must be an experiment of its tenant.",
    "variant_id": "must be a variant of its experiment.",
}
"""What may be mended here, by applying it; looked at last."""

_IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_TEXT = r'"[^"\\\x00-\x1f]*"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_PAIR = rf"\s*{_TEXT}\s*:\s*(?:{_TEXT}|{_NUMBER}|true|false|null)\s*"
_FLAT_OBJECT = rf"^\{{(?:{_PAIR}(?:,{_PAIR})*)?\}}$"
"""JSON objects without nesting and escapes: nearly all contexts, and cheap to tell."""

Known = Mapping[str, frozenset[str]]
"""Variants by `tenant/experiment`."""


class Checks(NamedTuple):
    """What rows are checked against.

    known
        Experiments and their variants; None where nobody can say.
    now_ms
        The time; later ones are of a clock that is wrong.
    """

    now_ms: int
    known: Known | None = None


def broken_cells(table: str, rows: pa.RecordBatch, checks: Checks) -> Iterator[Broken]:
    """Cells of rows, in the columns of a table, that break a rule; the gravest first."""
    for name in REQUIRED[table]:
        yield Broken(name, "must be given.", _bools(rows[name].is_null()), rows[name])
    yield from (
        _decision_cells(rows, checks)
        if table == "decisions"
        else _event_cells(rows, checks)
    )
    if checks.known is not None:
        yield from unknown_cells(rows, checks.known)


def _decision_cells(rows: pa.RecordBatch, checks: Checks) -> Iterator[Broken]:
    for name in ("tenant_id", "experiment_id", "variant_id"):
        rule = "must be 1 to 64 letters, digits, '.', '_' or '-'."
        yield _unlike(rows, name, _IDENTIFIER, rule)
    yield from _too_long(rows, ("decision_id", "engine_version", "rule", "serving"))
    yield _outside(rows, "decided_at_ms", 0, checks.now_ms + CLOCK_SKEW_MS, _TIME_RULE)
    propensity = _floats(rows["propensity"], 1.0)
    fine = (propensity > 0.0) & (propensity <= 1.0)
    yield Broken("propensity", "must be > 0 and <= 1.", ~fine, rows["propensity"])
    draw = _floats(rows["draw"], 0.0)
    yield Broken(
        "draw", "must be >= 0 and < 1.", ~((draw >= 0) & (draw < 1)), rows["draw"]
    )
    yield _foreign(rows, "mode", MODES)
    yield _odd_units(rows["unit"])
    yield _odd_contexts(rows["context"])
    yield from _odd_probabilities(rows)


def _event_cells(rows: pa.RecordBatch, checks: Checks) -> Iterator[Broken]:
    yield _unlike(rows, "tenant_id", _IDENTIFIER, "must be the name of a tenant.")
    yield _unlike(rows, "type", "^[a-z][a-z0-9_]{0,31}$", "must be a lower-case word.")
    yield from _too_long(rows, ("event_id", "decision_id", "experiment_id", "retracts"))
    for name in ("at_ms", "received_at_ms", "decided_at_ms"):
        yield _outside(rows, name, 0, checks.now_ms + CLOCK_SKEW_MS, _TIME_RULE)
    early = pc.less(rows["at_ms"], rows["decided_at_ms"])
    yield Broken(
        "at_ms", "must not be before the decision.", _bools(early), rows["at_ms"]
    )
    rule = f"must lie between 0 and {MAX_MICROS}: a refund or a retract takes back."
    yield _outside(rows, "value_micros", 0, MAX_MICROS, rule)
    is_retract = pc.equal(rows["type"], "retract")
    odd = pc.xor(is_retract.fill_null(False), rows["retracts"].is_valid())
    rule = "must name an event_id in a retract, and only there."
    yield Broken("retracts", rule, _bools(odd), rows["retracts"])
    itself = pc.equal(rows["retracts"], rows["event_id"])
    yield Broken(
        "retracts", "must name another event.", _bools(itself), rows["retracts"]
    )
    no_value = pc.equal(rows["value_micros"].fill_null(0), 0)
    odd = pc.and_kleene(pc.equal(rows["type"], "refund"), no_value)
    rule = "must be given and > 0 in a refund, which subtracts."
    yield Broken("value_micros", rule, _bools(odd), rows["value_micros"])


_TIME_RULE = "must lie between 1970 and now."


def _outside(rows: pa.RecordBatch, name: str, low: int, high: int, rule: str) -> Broken:
    values = rows[name]
    odd = pc.or_(pc.less(values, low), pc.greater(values, high))
    return Broken(name, rule, _bools(odd), values)


def _unlike(rows: pa.RecordBatch, name: str, pattern: str, rule: str) -> Broken:
    """Texts that do not match; each distinct one is looked at once."""
    coded = rows[name].dictionary_encode()
    fits = pc.match_substring_regex(coded.dictionary, pattern)
    return Broken(name, rule, _bools(pc.invert(fits.take(coded.indices))), rows[name])


def _foreign(rows: pa.RecordBatch, name: str, words: tuple[str, ...]) -> Broken:
    odd = pc.and_(
        rows[name].is_valid(), pc.invert(pc.is_in(rows[name], pa.array(words)))
    )
    return Broken(name, f"must be one of {', '.join(words)}.", _bools(odd), rows[name])


def _too_long(rows: pa.RecordBatch, names: tuple[str, ...]) -> Iterator[Broken]:
    rule = f"must have 1 to {MAX_ID_CHARACTERS} characters."
    for name in names:
        yield Broken(
            name, rule, _lengths_outside(rows[name], MAX_ID_CHARACTERS), rows[name]
        )


def _lengths_outside(texts: pa.Array, most: int) -> Bools:
    lengths = pc.utf8_length(texts)
    return _bools(pc.or_(pc.less(lengths, 1), pc.greater(lengths, most)))


def _odd_units(units: pa.Array) -> Broken:
    """Units that no erasure could name."""
    rule = f"must have 1 to {MAX_UNIT_CHARACTERS} characters."
    return Broken(
        KEPT_FROM_VIEW, rule, _lengths_outside(units, MAX_UNIT_CHARACTERS), units
    )


def _odd_contexts(contexts: pa.Array) -> Broken:
    """Contexts that are no objects; each distinct one is looked at once."""
    rule = f"must be a JSON object of at most {MAX_CONTEXT_BYTES} bytes."
    coded = contexts.dictionary_encode()
    texts = coded.dictionary
    too_long = pc.greater(pc.binary_length(texts), MAX_CONTEXT_BYTES)
    flat = pc.match_substring_regex(pc.if_else(too_long, "", texts), _FLAT_OBJECT)
    fits = np.array(flat.to_numpy(zero_copy_only=False))
    for i in np.flatnonzero(~fits & ~_bools(too_long)).tolist():
        fits[i] = _is_object(texts[i].as_py())
    odd = pc.invert(pa.array(fits).take(coded.indices))
    return Broken("context", rule, _bools(odd), contexts)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _odd_probabilities(rows: pa.RecordBatch) -> Iterator[Broken]:
    for name in ("eligible", "probabilities"):
        lengths = pc.list_value_length(rows[name])
        odd = pc.or_(pc.less(lengths, 1), pc.greater(lengths, MAX_VARIANTS))
        yield Broken(
            name, f"must have 1 to {MAX_VARIANTS} items.", _bools(odd), rows[name]
        )
    n_given = pc.list_value_length(rows["probabilities"])
    n_wanted = pc.list_value_length(rows["eligible"]).fill_null(-1)
    rule = "must be given for eligible, one each."
    unpaired = _bools(pc.not_equal(n_given, n_wanted))
    yield Broken("probabilities", rule, unpaired, rows["probabilities"])
    for name, rule in (
        ("eligible", "must name variants of 1 to 64 characters."),
        ("probabilities", "must lie between 0 and 1."),
    ):
        parents = pc.list_parent_indices(rows[name])
        items = pc.list_flatten(rows[name])
        if name == "eligible":
            lengths = pc.utf8_length(items).fill_null(0)
            odd = pc.or_(pc.less(lengths, 1), pc.greater(lengths, 64))
        else:
            inside = pc.and_(pc.greater_equal(items, 0.0), pc.less_equal(items, 1.0))
            odd = pc.invert(inside.fill_null(False))
        mask = np.zeros(len(rows), np.bool_)
        mask[np.asarray(parents.filter(odd))] = True
        yield Broken(name, rule, mask, rows[name])


def unknown_cells(rows: pa.RecordBatch, known: Known) -> Iterator[Broken]:
    """Experiments that nobody has applied, and variants that these do not have."""
    names = pc.binary_join_element_wise(rows["tenant_id"], rows["experiment_id"], "/")
    coded = names.dictionary_encode()
    there = [name in known for name in coded.dictionary.to_pylist()]
    odd = pc.invert(pa.array(there, pa.bool_()).take(coded.indices))
    yield _not_known("experiment_id", odd, rows)
    if "variant_id" not in rows.schema.names:
        return
    full = pc.binary_join_element_wise(names, rows["variant_id"], "/")
    coded = full.dictionary_encode()
    pairs = [name.rpartition("/") for name in coded.dictionary.to_pylist()]
    there = [v in known.get(name, frozenset((v,))) for name, _, v in pairs]
    odd = pc.invert(pa.array(there, pa.bool_()).take(coded.indices))
    yield _not_known("variant_id", odd, rows)


def _not_known(name: str, odd: pa.Array, rows: pa.RecordBatch) -> Broken:
    return Broken(name, UNKNOWN[name], _bools(odd), rows[name])


def _floats(values: pa.Array, instead: float) -> np.ndarray:
    return np.asarray(values.fill_null(instead).to_numpy(zero_copy_only=False))


def _bools(values: pa.Array) -> Bools:
    """Where it is true, (n_rows,); unknown is not."""
    return np.asarray(values.fill_null(False).to_numpy(zero_copy_only=False), np.bool_)
