"""Rows of data files: as they stand, and what is no row is refused."""

import json
import os
import subprocess
import sys
from datetime import date
from decimal import Decimal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevomerge.errors import InputError
from jevomerge.fitness.rows import choose, read_rows
from jevomerge.fitness.schema import DataSource
from jevomerge.fitness.template import as_text


def rows_of(path, content=None, **source):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(DataSource(path=str(path), **source), "task t, search")


def texts(rows):
    return [{name: as_text(value) for name, value in row.items()} for row in rows]


def test_json_lines_are_read_row_by_row_and_nothing_is_re_typed(tmp_path):
    lines = [
        '{"a": "2024-05-01", "b": 5, "c": 9007199254740993}',
        '{"a": "5", "b": 2.50, "c": true}',
        "",
        '{"a": "", "b": "two", "c": ["x", 1.0, {"é": null}], "extra": null}',
        '{"a": "\\u3042\\u2028\\t", "b": -0, "c": 1E5}',
    ]
    rows = rows_of(tmp_path / "d.jsonl", "\n".join(lines))
    assert rows == [json.loads(line) for line in lines if line]
    assert texts([{k: row[k] for k in "ab"} for row in rows]) == [
        {"a": "2024-05-01", "b": "5"},
        {"a": "5", "b": "2.50"},
        {"a": "", "b": "two"},
        {"a": "あ\u2028\t", "b": "-0"},
    ]
    assert [as_text(rows[i]["c"]) for i in (0, 1, 3)] == ["9007199254740993", "true", "1E5"]
    assert (rows[0]["b"] + 1, rows[1]["b"] * 2, rows[3]["c"]) == (
        6,
        5.0,
        100000,
    )  # numbers, to a function of the user's


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_bytes_that_do_not_matter(start, end, tmp_path):
    rows = [{"q": "問い", "a": "x\ny"}, {"q": "z", "a": '"'}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    assert rows_of(tmp_path / "d.jsonl", start + end.join([*lines, "", "  "])) == rows
    assert rows_of(tmp_path / "d.JSON", start + json.dumps(rows, indent=1).replace("\n", end)) == rows
    table = end.join(["q,a", '問い,"x\ny"', "", 'z,""""', ""])
    assert rows_of(tmp_path / "d.csv", start + table) == rows


def test_tables_parquet_and_hub_rows_are_the_texts_of_their_json(tmp_path, monkeypatch):
    lines = [
        '{"q": "x, y", "n": 5, "f": 2.5, "t": true, "d": "2024-05-01", "l": ["a", "b"], "s": {"k": 1}, "e": ""}',
        '{"q": "\\"z\\"", "n": 9007199254740993, "f": 1e-07, "t": false, "d": "07", "l": [], "s": {"k": 2}, "e": "NA"}',
    ]
    expected = texts(rows := rows_of(tmp_path / "d.jsonl", "\n".join(lines)))
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), tmp_path / "d.parquet")
    assert texts(rows_of(tmp_path / "d.parquet")) == expected
    with monkeypatch.context() as patch:
        found = datasets.Dataset.from_list(rows)
        patch.setattr(datasets, "load_dataset", lambda *given, split: found)  # there is no hub here
        assert texts(rows_of("owner/name")) == expected
    csv = ["q,n,f,t,d,e", '"x, y",5,2.5,true,2024-05-01,', '"""z""",9007199254740993,1e-07,false,07,NA']
    flat = [{k: v for k, v in row.items() if k not in ("l", "s")} for row in expected]
    assert texts(rows_of(tmp_path / "d.csv", "\n".join(csv))) == flat
    tsv = ["\t".join(flat[0]), *("\t".join(row.values()) for row in flat)]
    assert texts(rows_of(tmp_path / "d.tsv", "\n".join(tsv))) == flat


def test_narrow_floats_and_decimals_of_parquet(tmp_path):
    columns = {"f": pa.array([0.1], pa.float32()), "m": pa.array([Decimal("2.50")]), "d": pa.array([date(2024, 5, 1)])}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    assert texts(rows_of(tmp_path / "d.parquet")) == [{"f": "0.1", "m": "2.50", "d": "2024-05-01"}]


VALUES = st.recursive(
    st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
FEW = settings(max_examples=25, deadline=None)


@FEW
@given(st.lists(st.dictionaries(st.text(), VALUES, min_size=1, max_size=1), min_size=1))
def test_what_json_can_say_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "d.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    found = rows_of(path, "\n".join(lines))
    assert found == rows
    assert rows_of(path, f"[{','.join(lines)}]") == rows
    for row in found:
        for value in row.values():
            assert isinstance(value, str) or as_text(value) == json.dumps(value, ensure_ascii=False)


@FEW
@given(st.binary())
def test_any_bytes_are_rows_or_refused(tmp_path_factory, content):
    for suffix in ("jsonl", "csv", "tsv"):
        try:
            rows = rows_of(tmp_path_factory.mktemp("rows") / f"d.{suffix}", content)
        except InputError:
            continue
        assert all(isinstance(row, dict) for row in rows)


def test_new_content_of_the_same_age_is_what_is_read(tmp_path):
    for suffix in ("jsonl", "json", "csv", "parquet"):
        path = tmp_path / f"d.{suffix}"
        for value in ("old", "new"):
            if suffix == "parquet":
                pq.write_table(pa.table({"a": [value]}), path)
            else:
                path.write_text(f"a\n{value}\n" if suffix == "csv" else json.dumps({"a": value}))
            os.utime(path, ns=(10**18, 10**18))
            assert rows_of(path) == [{"a": value}]


def test_own_files_take_neither_datasets_nor_the_locale(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"q": "問い"}\n', encoding="utf-8")
    (tmp_path / "d.csv").write_text("q\n問い\n", encoding="utf-8")
    code = (
        "import sys; from jevomerge.fitness.rows import read_rows; from jevomerge.fitness.schema import DataSource\n"
        "for p in sys.argv[1:]: assert read_rows(DataSource(path=p), 't') == [{'q': '\\u554f\\u3044'}]\n"
        "assert not {'datasets', 'pyarrow', 'pandas'} & sys.modules.keys()"
    )
    paths = [str(tmp_path / name) for name in ("d.jsonl", "d.csv")]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, *paths], check=True, env=environment)


BAD = [
    ("d.jsonl", '{"a": 1}\n{"a": 2\n', "line 2, column 8: Expecting ',' delimiter"),
    ("d.jsonl", '{"a": 1}\n\n{"a": 1} {"a": 2}\n', "line 3, column 10: Extra data"),
    ("d.jsonl", "{\n  'a': 1\n}", "line 1, column 2: Expecting property name"),
    ("d.jsonl", '{"a": 1}\n{"a": 1, "a": 2}', "line 2: `a` is given twice"),
    ("d.jsonl", '{"a": "x\ty"}', "line 1, column 9: Invalid control character"),
    ("d.jsonl", '{"a": 1}\n5\n', "line 2: a row is an object, {field: value}, not int"),
    ("d.jsonl", '{"a": ' + "[" * 100_000, "line 1: nested too deeply"),
    ("d.jsonl", '{"a": ' + "1" * 5000 + "}", "line 1: Exceeds the limit"),
    ("d.jsonl", b'{"a": 1}\n{"a": "\xe9"}', "line 2: byte 0xe9 is not UTF-8"),
    ("d.jsonl", '{"a": 1}'.encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
    ("d.json", '[{"a": 1},\n {"a": }]', "line 2, column 8: Expecting value"),
    ("d.json", '[{"a": 1}, ["a"]]', "item 1: a row is an object, {field: value}, not list"),
    ("d.json", '{"a": [1, 2], "b": [3, 4]}', "it holds one object of columns"),
    ("d.json", '{"a": {"0": 1}, "b": {"0": 3}}', "it holds one object of columns"),
    ("d.csv", "a,b\n1,2\n\n1,2,3\n", "line 4 has 3 fields for the columns a, b"),
    ("d.csv", "a,b\n1\n", "line 2 has 1 fields for the columns a, b"),
    ("d.csv", "a,b,a\n1,2,3\n", "two columns have the name `a`"),
    ("d.csv", 'a,b\n1,"2\n3,4\n', "line 3: unexpected end of data"),
    ("d.csv", 'a,b\n1,"2"3\n', "line 2: ',' expected after '\"'"),
    ("d.tsv", "a\tb\n1 2\n", "line 2 has 1 fields for the columns a, b"),
    ("d.parquet", "a,b\n1,2\n", "Parquet magic bytes not found"),
    ("d.txt", "a\n", "a data file is one of .jsonl, .json, .parquet, .tsv, .csv"),
    ("d.jsonl.gz", b"\x1f\x8b\x08", "a data file is one of"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_broken_files_are_named_with_the_line(name, content, message, tmp_path):
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path / name, content)
    assert str(caught.value).startswith(f"task t, search: {tmp_path / name} cannot be read: {message}")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        *((suffix, text) for suffix in ("json", "jsonl", "csv", "tsv") for text in ("", "\n\n")),
        ("json", "[]"),
        ("csv", "a,b"),
    ],
)
def test_empty_files(suffix, content, tmp_path):
    with pytest.raises(InputError, match="there are no rows"):
        rows_of(tmp_path / f"d.{suffix}", content)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "d.csv")
    (tmp_path / "d.json").mkdir()
    for name in ("d.csv", "d.json", "."):
        with pytest.raises(InputError, match="it is no file; name one with the rows in it"):
            rows_of(tmp_path / name)
    for path in (
        tmp_path / "none.jsonl",
        "none.jsonl",
        tmp_path / "none",
        "a/b/c",
        "../none",
        "owner/name.parquet",
        "x" * 300 + ".csv",
        "a\0b",
    ):
        with pytest.raises(InputError, match="cannot be read: it does not exist"):
            rows_of(path)
    with pytest.raises(InputError, match=r"those of a local \.tsv or \.csv file"):
        rows_of(tmp_path / "t.jsonl", '{"q": 1}\n', columns=("q",))


def test_which_rows():
    assert [*choose(10, None, None)] == [*range(10)]
    assert [*choose(10, (2, 9), 3)] == [2, 3, 4]
    assert [*choose(4, (0, 4), 1000)] == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"rows: \[0, 1000\] of 4 rows; for so many at most, `limit: 1000`"):
        choose(4, (0, 1000), None)
    for rows in ((-2, -1), (3, 3), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="the first row is 0"):
            DataSource(path="d.csv", rows=rows)
