"""Bad files get one clear message: the file, the line, the field, the remedy; all problems at once."""

import pytest

from jevomerge.config import read_run
from jevomerge.errors import InputError
from jevomerge.fitness.schema import read_task
from jevomerge.recipe import read_recipe

TASK = "name: t\nsearch: a.jsonl\nheldout: b.jsonl\nprompt: '{q}'\nanswer: '{a}'\n"
RECIPE = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"


def message(read, text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        read(tmp_path / "x.yaml")
    return str(error.value)


def test_unknown_key_gets_a_suggestion_and_a_line(tmp_path):
    text = message(read_task, TASK + "scor: match\n", tmp_path)
    assert "x.yaml:6" in text
    assert "did you mean `score`" in text


def test_unknown_nested_key(tmp_path):
    text = message(read_recipe, RECIPE + "    paramters: {weight: 2}\n", tmp_path)
    assert "x.yaml:5" in text
    assert "did you mean `parameters`" in text


def test_all_problems_at_once(tmp_path):
    text = message(read_task, "name: 3\nscore: maybe\nsearch: a\nheldout: b\nanswer: '{a}'\n", tmp_path)
    assert len(text.splitlines()) == 3  # name, score, and prompt is missing
    assert "`prompt`: is required" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "mapping"),
        ("name: [", "not valid YAML"),
        (TASK + "score: generation\n", "needs either `extract`"),
        (TASK + "extract: last_number\n", "judge generated text"),
        (TASK + "score: generation\npattern: '('\n", "not a regular expression"),
        (TASK + "weight: 0\n", "greater than 0"),
    ],
)
def test_bad_tasks(text, expected, tmp_path):
    assert expected in message(read_task, text, tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("genome: {weight: [1, 0]}", "low < high"),
        ("genome: {}", "`recipe` and `genome` go together"),
        ("genome: {weight: [0, 1]}\nsearch: {evaluations: 0}", "greater than 0"),
        ("genome: {weight: [0, 1]}\nsearch: {stratgy: cma_es}", "did you mean `strategy`"),
    ],
)
def test_bad_runs(change, expected, tmp_path):
    (tmp_path / "t.yaml").write_text(TASK)
    recipe = "".join(f"  {line}\n" for line in RECIPE.splitlines())
    assert expected in message(read_run, f"name: r\nrecipe:\n{recipe}tasks: [t.yaml]\n{change}\n", tmp_path)


def test_paths_are_relative_to_the_file_that_names_them(siblings):
    config = read_run(siblings / "run.yaml")
    assert config.recipe.models[0].model == str(siblings / "front")
    assert config.tasks[0].search.path == str(siblings / "search.jsonl")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path / "none.yaml")
