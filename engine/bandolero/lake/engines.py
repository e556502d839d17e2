"""Who computes a night: DuckDB in this process, or Spark; one expression serves both.

Here is all that Ibis has no word for: reading listed files with the place of each row,
the text of a JSON field, keeping what is used twice, and a Python function over batches.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import ibis
import ibis.expr.types as ir
import pyarrow as pa

ENGINES = ("duckdb", "spark")
BATCH_ROWS = 100_000
_UNITS = {"MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(MB|GB)", re.IGNORECASE)
_LEAST = 100_000_000

Batches = Iterator[pa.RecordBatch]
OverBatches = Callable[[Batches], Batches]


class Engine(Protocol):
    """Computes Ibis expressions over tables it has read."""

    def read(self, paths: Sequence[str], schema: pa.Schema) -> ir.Table:
        """Rows of Parquet files of this schema, and `file`, `place`: where each stands."""
        ...

    def table(self, rows: pa.Table) -> ir.Table:
        """A small table of our own."""
        ...

    def keep(self, expr: ir.Table) -> ir.Table:
        """The same rows, computed once and for all later uses."""
        ...

    def with_said(self, rows: ir.Table, fields: Mapping[str, str]) -> ir.Table:
        """Rows with fields of their `context`, a JSON object, as columns of texts.

        fields: the field by the name of its column. Null where there is none.
        """
        ...

    def to_arrow(self, expr: ir.Table) -> pa.Table:
        """The rows of an expression, which must be few."""
        ...

    def over_batches(
        self, expr: ir.Table, function: OverBatches, schema: pa.Schema
    ) -> pa.Table:
        """What a function makes of an expression's rows, all parts of it together.

        It runs once for each part of the rows: in threads, or where the rows are on a
        cluster; so it must be picklable, and what it yields must add up.
        """
        ...


class EngineChoice(NamedTuple):
    """Who is to compute, and with what.

    kind: one of `ENGINES`. memory_limit: such as `3GB`; what the engine may hold before it
    goes to disk, and the process holds some 200 MB more. spark_master: where Spark runs.
    """

    kind: str = "duckdb"
    memory_limit: str = "3GB"
    spark_master: str = "local[*]"


def checked(choice: EngineChoice) -> EngineChoice:
    """The choice, if there is such an engine.

    Raises
    ------
    ValueError
        Naming the field, its value and the rule.
    """
    if choice.kind not in ENGINES:
        rule = f"must be one of {', '.join(ENGINES)}."
        raise ValueError(f"engine == {choice.kind!r}, {rule}")
    if choice.kind == "spark" and find_spec("pyspark") is None:
        raise ValueError("engine == 'spark', must be installed: bandolero[spark].")
    parse_bytes(choice.memory_limit)
    return choice


@contextmanager
def open_engine(choice: EngineChoice = EngineChoice()) -> Iterator[Engine]:  # noqa: B008
    """An engine until the end of the block; raises as `checked`."""
    n_bytes = parse_bytes(checked(choice).memory_limit)
    with tempfile.TemporaryDirectory(prefix="bandolero-refresh-") as folder:
        engine = (
            DuckDB(n_bytes, folder)
            if choice.kind == "duckdb"
            else Spark(n_bytes, folder, choice.spark_master)
        )
        try:
            yield engine
        finally:
            engine.close()


class DuckDB:
    """In this process, on all cores, out of core above the limit."""

    def __init__(self, memory_limit: int, folder: str) -> None:
        self._con = ibis.duckdb.connect(
            memory_limit=f"{memory_limit // 1_000_000}MB",
            temp_directory=folder,
            threads=pa.cpu_count(),
            preserve_insertion_order=False,
        )

    def read(self, paths: Sequence[str], schema: pa.Schema) -> ir.Table:
        """As `Engine.read`."""
        if not paths:
            return self.table(_placed(schema).empty_table())
        read = self._con.read_parquet(
            list(paths), hive_partitioning=False, filename=True, file_row_number=True
        )
        return read.rename(file="filename", place="file_row_number")

    def table(self, rows: pa.Table) -> ir.Table:
        """As `Engine.table`."""
        name = _name()
        self._con.con.register(name, rows)
        return self._con.table(name)

    def keep(self, expr: ir.Table) -> ir.Table:
        """As `Engine.keep`."""
        return self._con.create_table(_name(), expr, temp=True)

    def with_said(self, rows: ir.Table, fields: Mapping[str, str]) -> ir.Table:
        """As `Engine.with_said`; every text is taken apart once."""
        if not fields:
            return rows
        paths = ibis.array([f'$."{field}"' for field in fields.values()])
        read = rows.mutate(said=_try(_json_extract_strings(rows.context, paths)))
        columns = {name: read.said[i] for i, name in enumerate(fields)}
        return read.mutate(**columns).drop("said")

    def to_arrow(self, expr: ir.Table) -> pa.Table:
        """As `Engine.to_arrow`."""
        return self._con.to_pyarrow(expr)

    def over_batches(
        self, expr: ir.Table, function: OverBatches, schema: pa.Schema
    ) -> pa.Table:
        """As `Engine.over_batches`."""
        rows = self._con.con.sql(self._con.compile(expr))
        n_threads = pa.cpu_count()
        with (
            rows.to_arrow_reader(BATCH_ROWS) as batches,
            ThreadPoolExecutor(n_threads) as threads,
        ):
            shared = _InTurn(batches)
            made = [threads.submit(list, function(shared)) for _ in range(n_threads)]
            parts = [part for each in made for part in each.result()]
        return pa.Table.from_batches(parts, schema)

    def close(self) -> None:
        """Forget all that was read."""
        self._con.disconnect()


class _InTurn:
    """Batches that several threads take, each the next one."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._lock = Lock()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> pa.RecordBatch:
        with self._lock:
            return next(self._batches)


class Spark:
    """Through PySpark, on the session's master; the lake lies where its workers see it."""

    def __init__(self, memory_limit: int, folder: str, master: str) -> None:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        from pyspark.sql import SparkSession

        builder: Any = SparkSession.builder
        builder = (
            builder.master(master)
            .appName("bandolero refresh")
            .config("spark.driver.memory", f"{memory_limit // 1_000_000}m")
            .config("spark.local.dir", folder)
            .config("spark.sql.warehouse.dir", f"{folder}/warehouse")
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.log.level", "ERROR")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        )
        if master.startswith("local"):
            builder = builder.config("spark.sql.shuffle.partitions", pa.cpu_count())
        self._session = builder.getOrCreate()
        self._con = ibis.pyspark.connect(self._session)

    def read(self, paths: Sequence[str], schema: pa.Schema) -> ir.Table:
        """As `Engine.read`."""
        if not paths:
            return self.table(_placed(schema).empty_table())
        frame = self._session.read.schema(_spark_schema(schema)).parquet(*paths)
        place = ("_metadata.file_path as file", "_metadata.row_index as place")
        return self._named(frame.selectExpr("*", *place))

    def table(self, rows: pa.Table) -> ir.Table:
        """As `Engine.table`."""
        frame = self._session.createDataFrame(rows, _spark_schema(rows.schema))
        return self._named(frame)

    def keep(self, expr: ir.Table) -> ir.Table:
        """As `Engine.keep`."""
        # Not `persist`: each plan over it would be told with all that came before, twice.
        return self._named(self._frame(expr).localCheckpoint())

    def with_said(self, rows: ir.Table, fields: Mapping[str, str]) -> ir.Table:
        """As `Engine.with_said`."""
        columns = {
            name: _get_json_object(rows.context, f"$['{field}']")
            for name, field in fields.items()
        }
        return rows.mutate(**columns) if fields else rows

    def to_arrow(self, expr: ir.Table) -> pa.Table:
        """As `Engine.to_arrow`."""
        return self._frame(expr).toArrow().cast(expr.schema().to_pyarrow())

    def over_batches(
        self, expr: ir.Table, function: OverBatches, schema: pa.Schema
    ) -> pa.Table:
        """As `Engine.over_batches`."""
        frame = self._frame(expr).mapInArrow(function, _spark_schema(schema))
        return frame.toArrow().cast(schema)

    def close(self) -> None:
        """Forget all that was read."""
        self._session.stop()

    def _frame(self, expr: ir.Table) -> Any:
        return self._session.sql(self._con.compile(expr))

    def _named(self, frame: Any) -> ir.Table:
        name = _name()
        frame.createOrReplaceTempView(name)
        return self._con.table(name)


def parse_bytes(text: str) -> int:
    """Bytes of a text such as `500MB` or `1.5 GB`, at least 100 MB.

    >>> parse_bytes("500MB")
    500000000
    """
    found = _SIZE.fullmatch(text.strip())
    n_bytes = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if n_bytes < _LEAST:
        rule = "must be a number of MB or GB, at least 100MB."
        raise ValueError(f"memory_limit == {text!r}, {rule}")
    return n_bytes


def _placed(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*schema, ("file", pa.string()), ("place", pa.int64())])


def _spark_schema(schema: pa.Schema) -> Any:
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(schema)


def _name() -> str:
    return f"t{uuid4().hex}"


def _builtin(name: str, given: tuple[str, ...], result: str) -> Callable[..., Any]:
    """A function by the name that an engine has for it, of values of these types."""

    def function(value: Any, path: Any = None) -> None: ...

    call: Callable[..., Any] = ibis.udf.scalar.builtin(
        function, name=name, signature=(given, result)
    )
    return call


_TEXTS = "array<string>"
_json_extract_strings = _builtin("json_extract_string", ("string", _TEXTS), _TEXTS)
_try = _builtin("try", (_TEXTS,), _TEXTS)
"""Null in place of an error: what is no JSON says nothing."""
_get_json_object = _builtin("get_json_object", ("string", "string"), "string")
