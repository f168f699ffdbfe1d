"""What the experiments share: their command lines and their files of results; and that the index has all of them."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "experiments"
FOLDERS = {path.parent.name for path in ROOT.glob("*/*")}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


arguments = load(ROOT / "arguments.py")


def test_the_index_has_a_line_for_each_folder():
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    names = [name for name, _ in rows]
    assert names == sorted(names)
    assert all(name == target for name, target in rows)
    assert FOLDERS - {"__pycache__", "guides"} <= set(names)


def test_what_is_shared_is_there_once():
    for name in ("arguments.py", "landscape.py", "tables.py"):
        links = list(ROOT.glob(f"*/{name}"))
        assert links
        assert all(link.is_symlink() and link.resolve() == ROOT / name for link in links)


def test_a_parser_has_what_was_asked_for():
    doc = "What it measures.\n\nMore."
    parser = arguments.make_parser(doc, "experiments/it/run.py", work=True, seeds=5, parts=("a", "b"), table=True)
    assert parser.description == "What it measures."
    expected = {"parts": ["a", "b"], "output": Path("experiments/it/results.json"), "work": Path("runs/it")}
    assert vars(parser.parse_args([])) == {**expected, "seeds": 5, "table": False}
    given = parser.parse_args(["b", "--output", "x.json", "--work", "w", "--seeds", "2", "--table"])
    assert vars(given) == {"parts": ["b"], "output": Path("x.json"), "work": Path("w"), "seeds": 2, "table": True}
    assert vars(arguments.make_parser(doc, "run.py", None).parse_args([])) == {}
    assert arguments.make_parser(doc, "run.py", seeds="3 of a").parse_args([]).seeds is None


def test_a_part_that_is_none_is_refused(capsys):
    parser = arguments.make_parser("What.", "run.py", parts=("a", "b"))
    with pytest.raises(SystemExit):
        parser.parse_args(["c"])
    assert "'c' is none of them: a, b" in capsys.readouterr().err


def test_an_interval_is_over_seeds_and_examples():
    tables = load(ROOT / "tables.py")
    rows = {"a": {"0": {"bits": "1110"}, "1": {"bits": "1111"}}, "b": {"1": {"bits": "0101"}, "2": {"bits": "0000"}}}
    mean, low, high = tables.interval(tables.solved(rows["a"]))
    assert mean == 87.5
    assert 40 < low < mean < high == 100
    [(one, other, seeds, (mean, *_))] = tables.differences(rows, [("a", "b"), ("a", "c")])
    assert (one, other, seeds, mean) == ("a", "b", 1, 50)  # only the seed that both have


def test_results_are_added_to_those_on_file(tmp_path):
    file = tmp_path / "new" / "results.json"
    assert arguments.known(file) is arguments.known(file, "a", "0") is None
    arguments.record(file, {"é": 1}, "a", "0")
    arguments.record(file, 2, "a", "1")
    arguments.record(file, [3], "b")
    assert json.loads(file.read_text()) == {"a": {"0": {"é": 1}, "1": 2}, "b": [3]}
    assert arguments.known(file, "a", "0", "é") == 1
    assert arguments.known(file, "a", "2") is arguments.known(file, "c", "d") is None
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]
