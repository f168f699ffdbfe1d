"""Recipes are read as mergekit reads them; what it ignores in silence is refused or noted."""

from pathlib import Path

import numpy as np
import pytest

from jevomerge.errors import InputError
from jevomerge.recipe.schema import Recipe, read_recipe, read_stages, seen_from
from jevomerge.recipe.sources import Sources
from jevomerge.run.merge import explain

MODELS = Path(__file__).parents[2] / "data" / "parity" / "models"
A, B, BASE = (str(MODELS / m) for m in ("a", "b", "base"))


def linear(weights=(0.5, 0.5), **more):
    models = [{"model": m, "parameters": {"weight": w}} for m, w in zip((A, B), weights, strict=True)]
    return {"merge_method": "linear", "models": models, **more}


@pytest.mark.parametrize(("said", "meant"), [("false", 0), ("No", 0), ("off", 0), ("true", 1), ("YES", 1), (True, 1)])
def test_quoted_switches(said, meant):
    found = Sources(Recipe.model_validate(linear(parameters={"normalize": said}))).coefficients
    assert found["norm.weight"]["normalize"] == meant


def test_quoted_numbers_are_numbers_and_words_are_not():
    found = Sources(Recipe.model_validate(linear(("1e-3", "0.5")))).coefficients
    assert found["norm.weight"]["weight"].tolist() == [np.float32(1e-3), 0.5]
    with pytest.raises(ValueError, match="'maybe' is not a number"):
        Recipe.model_validate(linear(parameters={"normalize": "maybe"}))


def test_float64_is_noted():
    sources = Sources(Recipe.model_validate(linear(dtype="torch.float64")))
    assert sources.dtype == "float32"
    assert any("computed in float32" in note for note in sources.notes)
    assert Sources(Recipe.model_validate(linear(dtype="float64", out_dtype="float16"))).dtype == "float16"


ANCHORED = f"""
x-defaults: &defaults
  weight: 0.25
.others: {{deeper: [&more {{weight: 0.75}}]}}
merge_method: linear
models:
  - model: {A}
    parameters: *defaults
  - model: {B}
    parameters: {{<<: *more}}
"""


def test_holders_of_anchors_are_no_keys(tmp_path):
    (tmp_path / "r.yaml").write_text(ANCHORED)
    sources = Sources(read_recipe(tmp_path / "r.yaml"))
    assert sources.coefficients["norm.weight"]["weight"].tolist() == [0.25, 0.75]
    (tmp_path / "r.yaml").write_text(ANCHORED + "dtpe: float32\n")
    with pytest.raises(InputError, match="unknown key `dtpe`, did you mean `dtype`"):
        read_recipe(tmp_path / "r.yaml")


def test_layer_range_under_models_is_refused():
    recipe = linear()
    recipe["models"][0]["layer_range"] = [0, 2]
    with pytest.raises(InputError, match=r"models\.0\.layer_range.*write `slices`"):
        Sources(Recipe.model_validate(recipe))
    recipe["models"][0]["layer_range"] = [0, 4]  # all of them, as mergekit-evolve writes
    assert Sources(Recipe.model_validate(recipe)).plain


def test_weights_that_add_up_to_nothing_are_noted():
    recipe = linear(([0, 1], [{"filter": "q_proj", "value": 1}, {"value": 0}]))
    sources = Sources(Recipe.model_validate(recipe))
    (note,) = [n for n in sources.notes if "add up to 0" in n]
    assert note.startswith("the weights of model.embed_tokens.weight (and ")  # a gradient's first value is 0 there
    assert f"note: {note}" in explain(recipe)
    assert not any("add up to 0" in n for n in Sources(Recipe.model_validate(linear())).notes)


# --- documents ------------------------------------------------------------------------------------------------


def documents(*named):
    """(name, the models that it merges) each."""
    made = []
    for name, models in named:
        listed = [{"model": m, "parameters": {"weight": 1}} for m in models]
        made.append({"merge_method": "linear", "models": listed, **({"name": name} if name else {})})
    return made


def test_documents_come_in_any_order():
    given = documents((None, ["second", "first"]), ("second", ["first", A]), ("first", [A, B]))
    assert [s.name for s in read_stages(given)] == ["first", "second", None]
    given = documents(("last", ["first", B]), ("first", [A, B]))
    assert [s.name for s in read_stages(given)] == ["first", "last"]
    in_use = documents(("one", [A, B]), ("two", ["one", A]), ("three", ["two", B]))
    assert [s.name for s in read_stages(in_use)] == ["one", "two", "three"]


def test_documents_that_cannot_be_ordered():
    with pytest.raises(InputError, match="need each other's results"):
        read_stages(documents(("one", ["two", A]), ("two", ["one", A]), (None, ["one", B])))
    with pytest.raises(InputError, match="needs a `name`: only one document"):
        read_stages(documents((None, [A, B]), (None, [A, B])))
    with pytest.raises(InputError, match="`one` is taken already"):
        read_stages(documents(("one", [A, B]), ("one", [A, B]), (None, ["one", B])))


# --- paths ----------------------------------------------------------------------------------------------------


def test_a_recipe_says_where_models_are_from_where_it_lies(tmp_path):
    (tmp_path / "m").mkdir()
    called = seen_from(tmp_path / "runs" / "out", {"/tmp/stage": "first"})
    assert called(str(tmp_path / "m")) == "../../m"
    assert called(str(tmp_path / "runs" / "out" / "m")) == "./m"  # `m` alone might be a name on the hub
    assert called("owner/name@main") == "owner/name@main"
    assert called("/tmp/stage") == "first"
    assert called("union") == "union"
