"""Models in memory where a recipe expects folders."""

import numpy as np
import pytest

from jevomerge.checkpoint.memory import InMemory
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.methods.bank import Merge, build, make_bank
from jevomerge.models.own import own_model
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources


def test_a_checkpoint_in_memory_is_the_one_in_its_folder(stories260k):
    checkpoint = Checkpoint(stories260k)
    held = InMemory("stories", checkpoint.model, checkpoint.load())
    for spec in checkpoint.specs:
        for name in spec.names():
            np.testing.assert_array_equal(held.tensor(name), checkpoint.tensor(name))
    part = np.s_[1:3, 2:5]
    name = "model.layers.2.mlp.up_proj.weight"
    np.testing.assert_array_equal(held.tensor(name, index=part), checkpoint.tensor(name)[part])
    assert held.dtype() == checkpoint.dtype()
    other = InMemory("stories", checkpoint.model, checkpoint.load())
    assert held.fingerprint() == other.fingerprint()


def test_a_recipe_merges_models_in_memory():
    rng = np.random.default_rng(0)
    trees = {name: {"w": rng.normal(size=(3, 4)).astype(np.float32)} for name in ("base", "a", "b")}
    model = own_model(lambda p: p, trees["base"])
    held = {name: InMemory(name, model, model.as_dict(tree)) for name, tree in trees.items()}
    recipe = {"merge_method": "task_arithmetic", "base_model": "base"}
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("a", "b")]
    sources = Sources(Recipe.model_validate(recipe | {"models": models}), opener=lambda name, **_: held[name])
    merge = Merge(sources.method, sources.dtype)
    bank = make_bank(merge, sources.specs, *sources.load(), sources.keys())
    expected = 0.5 * (trees["a"]["w"] + trees["b"]["w"])
    np.testing.assert_allclose(build(merge, bank, sources.coefficients)["w"], expected, atol=1e-6)


def test_broken_weights_are_noticed():
    model = own_model(lambda p: p, {"w": np.zeros((2, 2), np.float32)})
    with pytest.raises(InputError, match=r"a: w is float64\[2, 2\]; it must be float32"):
        InMemory("a", model, {"w": np.zeros((2, 2))})
    held = InMemory("a", model, {"w": np.array([[np.nan, 0], [0, 0]], np.float32)})
    with pytest.raises(InputError, match="a: w contains NaN"):
        held.tensor("w")
