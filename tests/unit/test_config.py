"""Bad files get one clear message: the file, the line, the field, the remedy; all problems at once."""

import copy

import pytest
import yaml

from jevomerge.config import StagedConfig, read_config, read_run
from jevomerge.errors import InputError
from jevomerge.fitness.tasks import read_tasks
from jevomerge.genome.space import make_space
from jevomerge.recipe.schema import read_recipe, read_stages
from tests.unit.genome.test_space import MODELS, sources

TASK = "name: t\nsearch: a.jsonl\nheldout: b.jsonl\nprompt: '{q}'\nanswer: '{a}'\n"
RECIPE = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"


def message(read, text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        read(tmp_path / "x.yaml")
    return str(error.value)


def test_unknown_key_gets_a_suggestion_and_a_line(tmp_path):
    text = message(read_tasks, TASK + "scor: match\n", tmp_path)
    assert "x.yaml:6" in text
    assert "did you mean `score`" in text


def test_unknown_nested_key(tmp_path):
    text = message(read_recipe, RECIPE + "    paramters: {weight: 2}\n", tmp_path)
    assert "x.yaml:5" in text
    assert "did you mean `parameters`" in text


def test_all_problems_at_once(tmp_path):
    text = message(read_tasks, "name: 3\nscore: maybe\nsearch: a\nheldout: b\nanswer: '{a}'\n", tmp_path)
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
    assert expected in message(read_tasks, text, tmp_path)


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


# --- mappings instead of files ------------------------------------------------------------------------------


def test_a_mapping_is_read_as_its_file(siblings, monkeypatch):
    monkeypatch.chdir(siblings)
    data = yaml.safe_load((siblings / "run.yaml").read_text())
    before = copy.deepcopy(data)
    config = read_run(data)
    assert config.model_dump() == read_run(siblings / "run.yaml").model_dump()
    assert read_config(config) is config
    assert data == before  # what paths are made absolute in is a copy
    pairs = data | {"genome": {"weight": (0, 1)}, "tasks": (siblings / "task.yaml",)}
    assert read_run(pairs).tasks == config.tasks
    stages = {"name": "both", "stages": [{k: data[k] for k in ("name", "recipe", "genome")}], "tasks": data["tasks"]}
    staged = read_config(stages)
    assert isinstance(staged, StagedConfig)
    assert staged.stages[0].recipe.model_dump() == config.recipe.model_dump()
    with pytest.raises(InputError, match="both has stages: repair"):
        read_run(stages)


def test_recipes_as_mappings(monkeypatch):
    monkeypatch.chdir(MODELS)
    linear = {"merge_method": "linear", "models": ({"model": MODELS / "a"}, {"model": "b"})}
    recipe = read_recipe(linear)
    assert [m.model for m in recipe.models] == [str(MODELS / m) for m in "ab"]
    assert read_stages(linear) == read_stages([linear]) == read_stages(recipe) == [recipe]
    with pytest.raises(InputError, match="it needs a `name`: only one document"):
        read_stages([linear, linear])


def test_all_problems_of_a_mapping_by_their_keys():
    data = yaml.safe_load(RECIPE) | {"merge_methd": "ties", "dtype": "int8"}
    data["models"][0]["paramters"] = {}
    with pytest.raises(InputError) as error:
        read_recipe(data)
    assert sorted(line.partition(": ")[0] for line in str(error.value).splitlines()) == [
        "`dtype`", "`merge_methd`", "`models.0.paramters`",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("genome", "expected"),
    [
        ({"weight": [1, 0]}, "`genome.weight`: the range"),
        ({"weight": {"rnge": [0, 1]}}, "`genome.weight.rnge`: unknown key `rnge`, did you mean `range`"),
        ({"wait": [0, 1]}, "ties has no parameter `wait`"),
    ],
)
def test_bad_genes(genome, expected):
    with pytest.raises(InputError, match=expected):
        make_space(sources(), genome)
