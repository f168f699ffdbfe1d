"""Rows of data as they stand in their files, without a cache: nothing is re-typed, and what is no row is refused.

JSON, JSON lines, CSV and TSV are read here; Parquet takes pyarrow, a dataset on the hub the package `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jevomerge.errors import InputError
from jevomerge.fitness.schema import DataSource
from jevomerge.fitness.template import Number

Row = dict[str, Any]
SEPARATORS = {".tsv": "\t", ".csv": ","}
FILES = (".jsonl", ".json", ".parquet", *SEPARATORS)


def read_rows(source: DataSource, where: str) -> list[Row]:
    """The rows of a data source that are wanted, in order.

    Raises:
        InputError: for what cannot be read, is no row, or is not there.
    """
    try:
        rows = _read(source)
    except Exception as error:  # of other packages, in any way
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: {source.path} cannot be read: {message}") from error
    try:
        return [rows[i] for i in choose(len(rows), source.rows, source.limit)]
    except InputError as error:
        raise InputError(f"{where}: {source.path}: {error}") from None


def choose(count: int, rows: tuple[int, int] | None, limit: int | None) -> range:
    """Which of `count` rows are wanted.

    Raises:
        InputError: if there are none, or fewer than `rows` says.
    """
    start, stop = rows or (0, count)
    if stop > count:
        raise InputError(f"rows: [{start}, {stop}] of {count} rows; for so many at most, `limit: {stop - start}`")
    if not count:
        raise InputError("there are no rows")
    return range(start, stop)[:limit]


def _read(source: DataSource) -> Sequence[Row]:
    path = Path(source.path).expanduser()
    kind = path.suffix.lower()
    if source.columns is not None and kind not in SEPARATORS:
        raise ValueError("`columns` are those of a local .tsv or .csv file")
    if not os.path.exists(path):
        if kind in FILES or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source.path):
            raise FileNotFoundError("it does not exist")
        return _hub(source)
    if not path.is_file():
        raise ValueError("it is no file; name one with the rows in it")
    if kind not in FILES:
        raise ValueError(f"a data file is one of {', '.join(FILES)}")
    if kind == ".parquet":
        from pyarrow.parquet import ParquetFile  # imported late: few need it

        return _arrow(ParquetFile(path).read())
    text = _text(path)
    return _table(text, SEPARATORS[kind], source.columns) if kind in SEPARATORS else _objects(text)


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: byte {data[error.start]:#04x} is not UTF-8; save it as such") from None


# --- JSON ---------------------------------------------------------------------------------------------------


def _objects(text: str) -> list[Row]:
    """The objects in a text: one a line, or all of them in a list."""
    if text.lstrip().startswith("["):
        rows = _parsed(text)
        places = [f"item {i}" for i in range(len(rows))]
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if not line.isspace() and line]
        rows = [_parsed(line, i) for i, line in lines]
        places = [f"line {i}" for i, _ in lines]
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise ValueError(f"{place}: a row is an object, {{field: value}}, not {type(row).__name__}")
    if len(rows) == 1 and _is_columns(list(rows[0].values())):
        raise ValueError("it holds one object of columns; write one object for each row")
    return rows


def _is_columns(values: Sequence[Any]) -> bool:
    """Whether the fields of an object are as many lists or objects, all as long."""
    return len(values) > 1 and all(isinstance(v, list | dict) for v in values) and len(set(map(len, values))) == 1


def _parsed(text: str, line: int | None = None) -> Any:
    """A text as JSON; numbers keep their spelling."""
    place = "" if line is None else f"line {line}: "
    try:
        return json.loads(text, parse_float=Number, parse_int=_whole, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {(line or 1) + error.lineno - 1}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{place}nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{place}{error}") from None


def _whole(spelled: str) -> int | Number:
    return Number(spelled) if spelled == "-0" else int(spelled)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    if twice := _twice([key for key, _ in pairs]):
        raise ValueError(f"`{twice}` is given twice")
    return dict(pairs)


def _twice(names: Sequence[str]) -> str | None:
    """The first name that has been there before."""
    return None if len(set(names)) == len(names) else next(n for i, n in enumerate(names) if n in names[:i])


# --- tables -------------------------------------------------------------------------------------------------


def _table(text: str, separator: str, columns: Sequence[str] | None) -> list[Row]:
    """The lines of a TSV or CSV text, all fields as texts; in TSV quotes are text."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a picture in base64 can be all there is
    quoting: Literal[0, 3] = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True)
    filled = filter(None, lines)
    rows = []
    try:
        names = list(columns) if columns is not None else next(filled, [])
        if (twice := _twice(names)) is not None:
            raise ValueError(f"two columns have the name `{twice}`")
        for fields in filled:
            if len(fields) != len(names):
                raise ValueError(f"line {lines.line_num} has {len(fields)} fields for the columns {', '.join(names)}")
            rows.append(dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from None
    return rows


def _hub(source: DataSource) -> list[Row]:
    import datasets  # imported late: it takes seconds

    datasets.disable_progress_bars()
    return _arrow(datasets.load_dataset(source.path, source.name, split=source.split).with_format("arrow")[:])


def _arrow(table: Any) -> list[Row]:
    """The rows of a pyarrow.Table; a narrow float is spelled as shortly as can be (0.1, not 0.10000000149011612)."""
    if (twice := _twice(table.column_names)) is not None:
        raise ValueError(f"two columns have the name `{twice}`")
    columns = []
    for column in table.columns:
        values = column.to_pylist()
        if str(column.type) in ("halffloat", "float"):
            narrow = column.type.to_pandas_dtype()
            values = [None if value is None else Number(str(narrow(value))) for value in values]
        columns.append(values)
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
