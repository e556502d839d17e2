"""Bytes, blocks and draw numbers: what is written is read, and draws are uniform."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from scipy import stats

import reference
from bandolero.codec import DamagedBytesError, pack, unpack
from bandolero.draws import draws, experiment_key, shard_of
from bandolero.log import (
    DECISIONS,
    DECISIONS_TABLE,
    EVENTS,
    EVENTS_TABLE,
    log_ms,
    log_order,
    read_block,
    read_blocks,
    write_block,
)

FALSE_ALARM_RATE = 1e-6
"""With other tokens, one test in a million would fail for nothing."""
N_DRAWS = 20_000

# --- codec ------------------------------------------------------------------------------

dtypes = (
    arrays_of.integer_dtypes()
    | arrays_of.floating_dtypes()
    | arrays_of.boolean_dtypes()
)
arrays = arrays_of.arrays(
    dtypes, arrays_of.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4)
)
headers = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    max_size=4,
)


@given(headers, st.dictionaries(st.text(max_size=8), arrays, max_size=4))
def test_unpack_reads_what_pack_wrote(
    header: dict[str, Any], named: dict[str, np.ndarray[Any, Any]]
) -> None:
    """Any header and arrays, of any shape, type and byte order, come back bit for bit."""
    found = unpack(pack(header, named))
    assert found.header == header
    assert list(found.arrays) == list(named)
    for name, array in named.items():
        other = found.arrays[name]
        assert (other.dtype, other.shape) == (array.dtype, array.shape)
        assert other.tobytes() == array.tobytes()


@given(st.text(max_size=20), st.integers(0, 9))
def test_arrays_read_back_are_read_only_and_aligned(name: str, n: int) -> None:
    """Arrays read back cannot be written to, and lie where kernels want them."""
    data = pack({name: n}, {"a": np.arange(n, dtype=np.int8), "b": np.arange(3.0)})
    for array in unpack(data).arrays.values():
        assert array.flags.aligned
        assert not array.flags.writeable


def test_strided_arrays_are_packed_in_order() -> None:
    """A view with gaps or a transposed one is packed by its items."""
    grid = np.arange(12).reshape(3, 4)
    found = unpack(pack({}, {"gaps": grid[:, ::2], "turned": grid.T})).arrays
    assert found["gaps"].tolist() == grid[:, ::2].tolist()
    assert found["turned"].tolist() == grid.T.tolist()


@given(st.binary(max_size=64))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    """Bytes that `pack` did not write are damage, with our magic too."""
    for foreign in (data, b"BDL1" + data):
        with pytest.raises(DamagedBytesError):
            unpack(foreign)


# --- log -----------------------------------------------------------------------------------

words = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
whole_numbers = st.none() | st.integers(-(2**63), 2**63 - 1)
single = st.floats(width=32, allow_nan=False)
COLUMNS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): words,
    pa.int32(): st.none() | st.integers(-(2**31), 2**31 - 1),
    pa.int64(): whole_numbers,
    pa.float64(): st.none() | st.floats(allow_nan=False),
    pa.list_(pa.string()): st.none() | st.lists(words, max_size=3),
    pa.list_(pa.float32()): st.none() | st.lists(single, max_size=3),
}


def rows_of(schema: pa.Schema) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Rows of a block: any values, any of them missing."""
    return st.lists(
        st.tuples(*(COLUMNS[field.type] for field in schema)), min_size=1, max_size=4
    )


@pytest.mark.parametrize(
    ("schema", "table"), [(DECISIONS, DECISIONS_TABLE), (EVENTS, EVENTS_TABLE)]
)
@given(data=st.data())
def test_blocks_hold_what_was_written(
    schema: pa.Schema, table: pa.Schema, data: st.DataObject
) -> None:
    """Rows of a block, nulls too, are read as written, each with the block's place."""
    rows = data.draw(rows_of(schema))
    found = read_block(write_block(rows, schema), "1795219200000-7")
    assert found.schema.equals(table)
    place = ("1795219200000-7", 1_795_219_200_000)
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (*row, *place) for row in rows
    ]


def test_blocks_are_read_in_the_order_given() -> None:
    """Several blocks are one table, in order; none is a table without rows."""
    blocks = []
    for i, log_id in enumerate(("5-0", "5-1", "6-0")):
        row = ("acme", f"e{i}", "d1", "hats", "click", 1, None, 1, 2, 3)
        blocks.append((log_id, write_block([row, row], EVENTS)))
    table = read_blocks(blocks, EVENTS_TABLE)
    assert table["event_id"].to_pylist() == ["e0", "e0", "e1", "e1", "e2", "e2"]
    assert table["log_ms"].to_pylist() == [5, 5, 5, 5, 6, 6]
    assert read_blocks([], EVENTS_TABLE).equals(EVENTS_TABLE.empty_table())


def test_log_ids_sort_as_numbers() -> None:
    """A log id is a time and a number within it: 5-10 comes after 5-9."""
    assert log_order("5-10") > log_order("5-9") > log_order("5")
    assert log_order("10-0") > log_order("9-99")
    assert log_ms("1795219200000-7") == 1_795_219_200_000


# --- draws ---------------------------------------------------------------------------------


def many(tenant: str, experiment_id: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers for the arm and for the holdout of many tokens, (n, 2)."""
    key = experiment_key(tenant, experiment_id)
    return np.array([draws(key, i.to_bytes(8, "little")) for i in range(N_DRAWS)])


@given(st.text(max_size=9), st.text(max_size=9), st.binary(max_size=40))
def test_draws_equal_twin(tenant: str, experiment_id: str, token: bytes) -> None:
    """Both numbers are the ones that hashing by hand gives, in [0, 1)."""
    both = draws(experiment_key(tenant, experiment_id), token)
    assert both == reference.draw_numbers(tenant, experiment_id, token)
    assert 0.0 <= min(both) <= max(both) < 1.0


def test_draws_are_uniform() -> None:
    """Numbers of 20,000 tokens are uniform (Kolmogorov-Smirnov; false alarm 1e-6)."""
    for column in many("acme", "hats").T:
        assert stats.kstest(column, "uniform").pvalue > FALSE_ALARM_RATE


def test_draws_of_experiments_are_independent() -> None:
    """Arm, holdout, and the same tokens elsewhere fall evenly on a grid of 10 x 10.

    Chi-square of each pair against independence; false alarm 1e-6 each.
    """
    acme, bolt = many("acme", "hats"), many("bolt", "hats")
    coats = many("acme", "coats")
    mine = acme[:, 0]
    for other in (acme[:, 1], coats[:, 0], coats[:, 1], bolt[:, 0]):
        counts, _, _ = np.histogram2d(mine, other, bins=10, range=[[0, 1], [0, 1]])
        assert stats.chisquare(counts.ravel()).pvalue > FALSE_ALARM_RATE


def test_keys_part_tenants_and_experiments() -> None:
    """No two pairs of names share a key, however the letters are split."""
    pairs = [("acme", "hats"), ("acm", "ehats"), ("acme", "coats"), ("hats", "acme")]
    keys = {experiment_key(*pair) for pair in pairs}
    assert len(keys) == len(pairs)
    assert {len(key) for key in keys} == {8}


def test_shards_share_the_experiments() -> None:
    """2,000 experiments spread evenly over 7 shards (chi-square; false alarm 1e-6)."""
    shards = [shard_of(experiment_key("acme", f"x{i}"), 7) for i in range(2000)]
    counts = np.bincount(shards, minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > FALSE_ALARM_RATE
