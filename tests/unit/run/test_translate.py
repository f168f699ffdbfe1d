"""mergekit-evolve's configs, in our words."""

import pytest
import yaml

from jevomerge.cli import main
from jevomerge.config import read_config
from jevomerge.errors import InputError
from jevomerge.run.translate import translate
from tests.families import make

EVOLVE = """
genome:
  models: [m, n]
  merge_method: ties
  base_model: base
  layer_granularity: 2
  allow_negative_weights: true
  filters: [self_attn, mlp]
tasks:
  - name: arithmetic
    weight: 0.5
    metric: exact_match,strict-match
  - name: perplexity
    weight: -1
    metric: ppl,none
limit: 40
num_fewshot: 3
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("m", "n", "base"):
        make("llama", tmp_path / name)
    (tmp_path / "evolve.yml").write_text(EVOLVE)
    return tmp_path


def test_a_config_is_read_back_as_a_run(folder, capsys):
    assert main(["translate", str(folder / "evolve.yml")]) == 0
    (folder / "run.yaml").write_text(capsys.readouterr().out)
    run = read_config(folder / "run.yaml")
    assert run.recipe.merge_method == "ties"
    assert [m.model for m in run.recipe.models] == [str(folder / "m"), str(folder / "n")]
    assert run.recipe.base_model == str(folder / "base")
    assert run.recipe.dtype == "bfloat16"  # which mergekit-evolve always writes
    assert run.recipe.models[0].parameters == {"weight": 0.5, "density": 1.0}  # where its search begins
    assert run.start_from == "recipe"
    assert (run.genome["weight"].range, run.genome["density"].range) == ((-1, 1), (0, 1))
    assert all((g.layers_per_group, g.by) == (2, ("self_attn", "mlp")) for g in run.genome.values())
    first, second = run.tasks
    assert (first.harness.task, first.harness.metric, first.harness.filter) == (
        "arithmetic",
        "exact_match",
        "strict-match",
    )
    assert (first.weight, first.harness.num_fewshot, first.harness.chat_template) == (0.5, 3, True)
    assert (second.harness.filter, second.harness.lower_is_better, second.weight) == (None, True, 1)
    assert (first.search.rows, first.heldout.rows) == ((0, 40), (40, 80))


def test_other_methods_and_settings(folder):
    def of(**genome):
        given = {"genome": {"models": ["m", "n"], **genome}, "tasks": ["a"], "random_init": True}
        (folder / "e.yml").write_text(yaml.safe_dump(given))
        return yaml.safe_load(translate(folder / "e.yml"))

    found = of(merge_method="slerp", layer_granularity=1)
    assert found["recipe"]["base_model"] == "m"
    assert found["genome"] == {"t": {"range": [0, 1], "layers_per_group": 1}}
    assert "start_from" not in found
    assert of(merge_method="task_arithmetic", base_model="base")["recipe"]["parameters"] == {"normalize": False}
    assert of(merge_method="linear", normalize=False)["recipe"]["parameters"] == {"normalize": False}
    smooth = of(merge_method="linear", smooth=True, layer_granularity=1)["genome"]["weight"]
    assert smooth == {"range": [0, 1], "smooth": 4}  # a knot for each of the model's layers
    with pytest.raises(InputError, match="between two models"):
        of(merge_method="slerp", models=["m", "n", "base"])
    with pytest.raises(InputError, match=r"e\.yml:\d+: `genome.merge_method`"):
        of(merge_method="della")


def test_evolve_says_what_to_do_with_one(folder, capsys):
    assert main(["evolve", str(folder / "evolve.yml")]) == 2
    assert (
        "evolve.yml:2: `genome`: this is a config of mergekit-evolve; `jevomerge translate`" in capsys.readouterr().err
    )
