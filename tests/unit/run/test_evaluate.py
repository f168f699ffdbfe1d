"""`jevomerge evaluate`: what a task's data must be, said before a model is read."""

import json

import pytest
import yaml

from jevomerge.cli import main

GOOD = {"q": "Once", "a": "upon a time"}
GENERATION = {"score": "generation", "pattern": "(.)", "max_new_tokens": 4}
HOPELESS = r"^(\w|\w\w)+\d$"


@pytest.fixture
def evaluated(stories260k, tmp_path, capsys):
    """(exit status, messages) of evaluating rows, or the text of a data file, with changes to the task."""

    def run(rows, **changes):
        data = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))
        (tmp_path / "d.jsonl").write_text(data)
        task = {"name": "t", "search": "d.jsonl", "heldout": "d.jsonl", "prompt": "{q}", "answer": "{a}"} | changes
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(task))
        status = main(["evaluate", str(stories260k), "--task", str(tmp_path / "t.yaml")])
        return status, [line for line in capsys.readouterr().err.splitlines() if not line.endswith("...")]

    return run


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([GOOD, {"q": "x"}], {}, "d.jsonl, row 1 (the first is 0): field `a` is missing; there are q"),
        ([GOOD, GOOD | {"q": None}], {}, "d.jsonl, row 1 (the first is 0): field `q` is null"),
        ([GOOD] * 3 + [{}], {"heldout": {"path": "d.jsonl", "rows": [2, 4]}}, "row 3 (the first is 0): field `q`"),
        ([GOOD | {"a": ""}], {"answer": " {a}"}, "row 0 (the first is 0): the answer is empty"),
        ('{"q": "x", "a": NaN}', {}, "field `a` is nan, which is no number in JSON"),
        ('{"q": "x", "a": "\\ud83d"}', {}, "field `a` has half of a surrogate pair"),
        ('{"q": "x", "a": "y"', {}, "d.jsonl cannot be read: line 1, column 20: Expecting ',' delimiter"),
        ([GOOD], {"heldout": {"path": "d.jsonl", "rows": [0, 1000]}}, "rows: [0, 1000] of 1 rows"),
        ([GOOD], {"heldout": {"path": "d.jsonl", "rows": [-2, -1]}}, "t.yaml:4: `heldout.rows`: [-2, -1] are no rows"),
        ([GOOD], {"prompt": 'Q: {"q": 1}'}, "`prompt`: not a template"),
        ([GOOD | {"q": "Once upon a time " * 200}], {}, "is longer than the model takes, 512 (max_position"),
        ([GOOD], GENERATION | {"max_new_tokens": 512}, "leave it out or lower max_new_tokens (512)"),
        ([GOOD | {"q": "a" * 60}], GENERATION | {"pattern": HOPELESS}, f"pattern: `{HOPELESS}` takes more than 2 s"),
        ([GOOD], GENERATION | {"pattern": "x{e}"}, "write \\{ for a brace before a letter"),
        ([GOOD], {"score": "generation", "extract": "last_number"}, "the answer 'upon a time' has no number"),
    ],
)  # fmt: skip
def test_bad_data_is_refused_before_weights_are_read(rows, changes, message, evaluated):
    status, [said] = evaluated(rows, **changes)
    assert message in said
    assert status == 2


def test_a_pattern_that_meets_its_text_only_later(evaluated):
    """Prompt and answer do no harm; what the model writes does, and the pattern is named."""
    assert evaluated([GOOD | {"a": "1"}], **GENERATION | {"pattern": r"(\d)$"})[0] == 0
    hopeless = r"^([^~]|[^~]{2})+\d$"
    status, [said] = evaluated([GOOD], **GENERATION | {"pattern": hopeless, "max_new_tokens": 99})
    assert f"task t: pattern: `{hopeless}` takes more than 2 s" in said
    assert status == 2


def test_the_longest_text_that_fits(evaluated):
    """511 tokens are read of 512: the last is only predicted."""
    assert evaluated([{"q": "Once", "a": "1"}], **GENERATION | {"max_new_tokens": 509})[0] == 0


def test_a_task_of_the_harness_by_its_bare_name(stories260k, capsys):
    assert main(["evaluate", str(stories260k), "--task", "arc_easy"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("is named in a YAML file: `harness: {task: arc_easy}`\n")
