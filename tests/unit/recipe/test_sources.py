"""Recipes: mergekit's rules for values, slices and stages, what is refused, and what is written."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.recipe.resolve import _at
from jevomerge.recipe.schema import Recipe, read_recipe, read_stages
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import merge_to_folder
from jevomerge.recipe.write import explain, write_recipe
from jevomerge.run.merge import rehearse

MODELS = Path(__file__).parents[2] / "data" / "parity" / "models"
A, B, C, BASE, DEEP = (str(MODELS / m) for m in ("a", "b", "c", "base", "deep"))


def sources(**changes):
    recipe = {"merge_method": "ties", "base_model": BASE, "models": [model(A), model(B)]}
    return Sources(Recipe.model_validate(recipe | changes))


def model(path, weight=1.0, **more):
    return {"model": path, "parameters": {"weight": weight}, **more}


def weights(*settings):
    """The `weight`s of sources a and b: {path: ([L,] 2)}."""
    found = sources(models=[model(m, s) for m, s in zip((A, B), settings, strict=True)]).coefficients
    return {path: n["weight"] for path, n in found.items()}


# --- values -------------------------------------------------------------------------------------------------


def test_gradient_over_four_layers():
    found = weights([0, 1], 0.5)
    np.testing.assert_allclose(found["layers.mlp.up_proj.weight"][:, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-7)
    # mergekit plans embeddings, final norm and head at the first layer's position
    for path in ("embed_tokens.weight", "norm.weight", "lm_head.weight"):
        assert found[path].tolist() == [0, 0.5]


def test_documented_gradient():
    """mergekit's own example: [0, .5, .3, .7, 1] over 40 layers at layers 0, 10, 20, 30, 39."""
    values = [_at((0, 0.5, 0.3, 0.7, 1), i / 39) for i in (0, 10, 20, 30, 39)]
    one_hot = [_at(tuple(float(j == 8) for j in range(26)), i / 25) for i in range(26)]
    assert one_hot == [float(i == 8) for i in range(26)]  # a gradient of one value per layer is exactly that
    np.testing.assert_allclose(values, [0, 0.4949, 0.3205, 0.7231, 1], atol=5e-5)


def test_first_matching_filter_wins():
    found = weights([{"filter": "q_proj", "value": 0.1}, {"filter": "self_attn", "value": 0.2}, {"value": 1}], 1.0)
    assert found["layers.self_attn.q_proj.weight"][0, 0] == np.float32(0.1)
    assert found["layers.self_attn.k_proj.weight"][0, 0] == np.float32(0.2)
    assert found["norm.weight"][0] == 1
    assert weights({"filter": "*", "value": 0.5}, 1.0)["norm.weight"][0] == 0.5  # a single condition need not be a list


def test_source_beats_slice_beats_module_beats_recipe():
    density = [{"filter": "mlp", "value": 0.3}]  # where no filter matches, the next scope decides
    slices = [
        {
            "sources": [
                {"model": A, "layer_range": [0, 2], "parameters": {"weight": 1, "density": density}},
                {"model": B, "layer_range": [0, 2], "parameters": {"weight": 1}},
            ],
            "parameters": {"density": [{"filter": "mlp.up", "value": 0.4}]},
        }
    ]
    module = {"slices": slices, "parameters": {"density": [{"filter": "norm", "value": 0.5}]}}
    found = sources(models=[], modules={"default": module}, parameters={"density": 0.6}).coefficients
    assert found["layers.mlp.up_proj.weight"]["density"][0].tolist() == [np.float32(0.3), np.float32(0.4)]
    assert found["layers.mlp.gate_proj.weight"]["density"][0].tolist() == [np.float32(0.3), np.float32(0.6)]
    assert found["norm.weight"]["density"].tolist() == [0.5, 0.5]
    assert found["lm_head.weight"]["density"].tolist() == [np.float32(0.6)] * 2


# --- slices -------------------------------------------------------------------------------------------------

STACK = [
    {"sources": [{"model": A, "layer_range": [0, 3]}]},
    {"sources": [{"model": B, "layer_range": [1, 4]}], "parameters": {"scale": [0.5, 2]}},
]


def test_slices_stack_layers_and_outer_tensors_come_from_the_outer_slices(tmp_path):
    stack = Sources(Recipe.model_validate({"merge_method": "passthrough", "slices": STACK}))
    assert stack.model.config.num_hidden_layers == 6
    merge_to_folder(stack, stack.coefficients, tmp_path / "out")
    found, a, b = (load_file(Path(p) / "model.safetensors") for p in (tmp_path / "out", A, B))
    name = "model.layers.{}.mlp.up_proj.weight"
    for layer in range(3):
        np.testing.assert_array_equal(found[name.format(layer)], a[name.format(layer)])
        scale = np.float32((0.5, 1.25, 2)[layer])  # a gradient runs over its slice
        np.testing.assert_array_equal(found[name.format(layer + 3)], scale * b[name.format(layer + 1)])
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    np.testing.assert_array_equal(found["lm_head.weight"], np.float32(0.5) * b["lm_head.weight"])  # at t = 0
    assert Checkpoint(tmp_path / "out").model.config.num_hidden_layers == 6


def test_models_of_different_depth_can_be_sliced(tmp_path):
    layers = {"merge_method": "linear", "dtype": "float32"}
    slices = [{"sources": [model(A, 0.3, layer_range=[0, 4]), model(DEEP, 0.7, layer_range=[2, 6])]}]
    found = Sources(Recipe.model_validate(layers | {"slices": slices}))
    merge_to_folder(found, found.coefficients, tmp_path / "out")
    out, a, deep = (load_file(Path(p) / "model.safetensors") for p in (tmp_path / "out", A, DEEP))
    for layer in range(4):
        name = "model.layers.{}.self_attn.q_proj.weight"
        expected = 0.3 * a[name.format(layer)].astype(np.float64) + 0.7 * deep[name.format(layer + 2)]
        np.testing.assert_allclose(out[name.format(layer)], expected, atol=1e-6)


def test_the_base_takes_part_with_its_own_layers():
    slices = [{"sources": [{"model": BASE, "layer_range": [2, 4]}, model(A, layer_range=[0, 2])]}]
    found = sources(models=[], slices=slices)
    tensor = next(t for t in found.tensors if t.name == "model.layers.1.mlp.up_proj.weight")
    inputs, base = found.read(tensor)
    np.testing.assert_array_equal(inputs[0], Checkpoint(A).tensor("model.layers.1.mlp.up_proj.weight"))
    np.testing.assert_array_equal(base, Checkpoint(BASE).tensor("model.layers.3.mlp.up_proj.weight"))


def test_a_stack_in_memory_is_the_stack_on_disk(tmp_path):
    stack = Sources(Recipe.model_validate({"merge_method": "passthrough", "slices": STACK}))
    (tree,), base = stack.load()
    assert base is None
    merge_to_folder(stack, stack.coefficients, tmp_path / "out")
    np.testing.assert_array_equal(
        np.asarray(tree["layers"]["mlp"]["up_proj"]["weight"])[:3],
        np.asarray(Checkpoint(tmp_path / "out").load()["layers"]["mlp"]["up_proj"]["weight"])[:3],
    )


# --- writing and explaining ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"models": [model(A, [0, 1]), model(B, [{"filter": "mlp", "value": [1, 0.5, 0.2]}, {"value": 0.1}])]},
        {"models": [], "slices": [
            {"sources": [model(A, [0, 1], layer_range=[0, 2]), model(B, layer_range=[2, 4])]},
            {"sources": [model(C, 0.3, layer_range=[1, 2]), {"model": BASE, "layer_range": [3, 4]}],
             "parameters": {"density": 0.4, "normalize": False}},
        ]},
    ],
)  # fmt: skip
def test_a_written_recipe_reads_back_exactly(changes):
    first = sources(**changes)
    again = Sources(Recipe.model_validate(yaml.safe_load(write_recipe(first, first.coefficients))))
    assert list(explain(again)) == list(explain(first))
    for path, values in first.coefficients.items():
        for name, value in values.items():
            np.testing.assert_array_equal(again.coefficients[path][name], value)


def merged(recipe, out):
    """A recipe's merged tensors, and those of the recipe that was written beside them."""
    found = Sources(Recipe.model_validate(recipe))
    merge_to_folder(found, found.coefficients, out)
    again = Sources(read_recipe(out / "recipe.yaml"))
    merge_to_folder(again, again.coefficients, out.with_name("again"))
    return load_file(out / "model.safetensors"), load_file(out.with_name("again") / "model.safetensors")


def ranged(path, first, last, **parameters):
    return {"model": path, "layer_range": [first, last], "parameters": parameters}


@pytest.mark.parametrize(
    "recipe",
    [
        {"merge_method": "slerp", "parameters": {"t": 0.2}, "slices": [  # a base per slice, as mergekit-evolve writes
            {"sources": [ranged(A, 0, 2), ranged(B, 0, 2)], "base_model": A},
            {"sources": [ranged(A, 2, 4), ranged(B, 2, 4)], "base_model": B}]},
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.5}, "slices": [
            {"sources": [ranged(A, 0, 4), ranged(B, 0, 4)], "base_model": BASE}]},
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.5}, "base_model": C, "slices": [
            {"sources": [ranged(A, 0, 4), ranged(B, 0, 4)], "base_model": BASE}]},
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.5}, "base_model": DEEP, "slices": [
            {"sources": [ranged(A, 0, 4), ranged(DEEP, 2, 6)]}]},
        {"merge_method": "linear", "parameters": {"weight": 1}, "base_model": BASE, "models": [{"model": A}]},
        {"merge_method": "ties", "base_model": BASE, "models": [model(A), model(B, 0.5)],
         "parameters": {"normalize": [False, True], "density": [1, 0.3]}},
    ],
)  # fmt: skip
def test_the_written_recipe_makes_the_same_model(recipe, tmp_path):
    first, again = merged(recipe, tmp_path / "out")
    for name, value in first.items():
        np.testing.assert_allclose(again[name], value, atol=1e-7, err_msg=name)


def test_an_unlisted_base_is_one_more_model_to_linear_if_it_has_a_weight(tmp_path):
    """mergekit appends it to `models`; with weights only under the models it cannot take part."""
    recipe = {"merge_method": "linear", "models": [{"model": A}, {"model": B}], "base_model": BASE}
    found, _ = merged(recipe | {"parameters": {"weight": 1}}, tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    three = [load_file(Path(m) / "model.safetensors")[name] for m in (A, B, BASE)]
    np.testing.assert_allclose(found[name], np.mean(three, axis=0), atol=1e-6)
    own = Sources(Recipe.model_validate(recipe | {"models": [model(A), model(B)]}))
    assert own.names == ["a", "b"]
    assert "merges the base model too" in write_recipe(own, own.coefficients)


def test_slerp_begins_at_an_unlisted_base():
    found = sources(merge_method="slerp", models=[{"model": B}], base_model=A, parameters={"t": 0.5})
    assert found.names == ["a", "b"]


def test_switches_and_whole_numbers_are_picked_not_interpolated():
    found = sources(parameters={"normalize": [False, True]})
    assert found.coefficients["layers.mlp.up_proj.weight"]["normalize"].tolist() == [0, 0, 0, 1]
    karcher = {"merge_method": "karcher", "models": [{"model": m} for m in (A, B)], "base_model": None}
    found = sources(**karcher, parameters={"max_iter": [5, 10]})
    assert found.coefficients["layers.mlp.up_proj.weight"]["max_iter"].tolist() == [5, 5, 5, 10]


def test_models_that_are_called_alike_get_longer_names(tmp_path):
    for run in "xy":
        shutil.copytree(A, tmp_path / run / "best")
    models = [model(str(tmp_path / run / "best")) for run in "xy"]
    assert sources(models=models).names == ["x/best", "y/best"]


def test_words_are_folders_where_models_are_meant(tmp_path, monkeypatch):
    shutil.copytree(BASE, tmp_path / "base")
    (tmp_path / "r.yml").write_text(f"merge_method: ties\nbase_model: base\nmodels: [{{model: {A}}}]\nparameters:\n")
    assert read_recipe(tmp_path / "r.yml").base_model == str(tmp_path / "base")


def test_a_trailing_separator_is_no_document(tmp_path):
    (tmp_path / "r.yml").write_text(f"merge_method: passthrough\nmodels: [{{model: {A}}}]\n---\n")
    assert len(read_stages(tmp_path / "r.yml")) == 1


def test_a_filter_may_match_in_another_slice():
    weight = [{"filter": "embed_tokens", "value": 0.5}, {"value": 1}]
    slices = [{"sources": [ranged(A, i, i + 2, weight=weight), ranged(B, i, i + 2, weight=1)]} for i in (0, 2)]
    found = sources(models=[], slices=slices)
    assert found.coefficients["embed_tokens.weight"]["weight"].tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "makes the same model"),
        ({"semantics": "paper"}, "makes another model"),
        ({"merge_method": "della"}, "makes a sibling"),
    ],
)
def test_a_written_recipe_says_what_mergekit_makes_of_it(changes, expected):
    found = sources(**changes)
    assert expected in write_recipe(found, found.coefficients).splitlines()[0]


def test_a_single_model_of_a_slice_is_kept_as_it_is_by_slerp(tmp_path):
    slices = [{"sources": [{"model": A, "layer_range": [0, 2]}]},
              {"sources": [{"model": m, "layer_range": [2, 4]} for m in (A, B)]}]  # fmt: skip
    recipe = {"merge_method": "slerp", "slices": slices, "base_model": A, "parameters": {"t": 1.0}}
    found = Sources(Recipe.model_validate(recipe))
    merge_to_folder(found, found.coefficients, tmp_path / "out")
    out, a, b = (load_file(Path(p) / "model.safetensors") for p in (tmp_path / "out", A, B))
    np.testing.assert_array_equal(out["model.layers.1.mlp.up_proj.weight"], a["model.layers.1.mlp.up_proj.weight"])
    expected = b["model.layers.2.mlp.up_proj.weight"]
    np.testing.assert_allclose(out["model.layers.2.mlp.up_proj.weight"], expected, atol=1e-6)


def test_explain_names_inputs_and_coefficients(tmp_path, capsys):
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": STACK}))
    assert main(["merge", str(tmp_path / "r.yml"), "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "6 layers" in lines[0]
    assert "model.layers.4.mlp.up_proj.weight [80, 32] = b:2(scale=1.25)" in lines
    assert "model.embed_tokens.weight [96, 32] = a(scale=1)" in lines


# --- references, stages -------------------------------------------------------------------------------------


def test_long_references():
    long = {"model": {"path": A, "revision": "main"}, "lora": {"path": "lora"}}
    assert Recipe.model_validate({"merge_method": "linear", "models": [{"model": long}]}).models[0].model == (
        f"{A}@main+lora"
    )


STAGES = f"""
name: half
merge_method: linear
models:
  - {{model: {A}, parameters: {{weight: 1}}}}
  - {{model: {B}, parameters: {{weight: 1}}}}
---
merge_method: slerp
base_model: half
models: [{{model: half}}, {{model: {C}}}]
parameters: {{t: 0.25}}
dtype: float32
"""


def test_stages_use_the_results_of_earlier_ones(tmp_path, capsys):
    (tmp_path / "stages.yml").write_text(STAGES)
    assert main(["merge", str(tmp_path / "stages.yml"), str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "stages.yml"]  # nothing is left of the half

    half = sources(merge_method="linear", base_model=None)
    merge_to_folder(half, half.coefficients, tmp_path / "half")
    second = {"merge_method": "slerp", "models": [{"model": str(tmp_path / "half")}, {"model": C}]}
    by_hand = Sources(Recipe.model_validate(second | {"parameters": {"t": 0.25}}))
    merge_to_folder(by_hand, by_hand.coefficients, tmp_path / "by_hand")
    found, expected = (load_file(tmp_path / x / "model.safetensors") for x in ("out", "by_hand"))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)

    # The recipe that was kept makes the same model again.
    (tmp_path / "half").rename(tmp_path / "other")
    assert main(["merge", str(tmp_path / "out" / "recipe.yaml"), str(tmp_path / "again")]) == 0
    for name, value in load_file(tmp_path / "again" / "model.safetensors").items():
        np.testing.assert_array_equal(found[name], value)


def test_a_mistake_in_the_last_stage_is_found_before_the_first_is_merged(tmp_path):
    (tmp_path / "stages.yml").write_text(STAGES.replace("{t: 0.25}", "{t: [{filter: nothing, value: 1}]}"))
    assert main(["merge", str(tmp_path / "stages.yml"), str(tmp_path / "out")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stages.yml"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("name: half\n", ""), "needs a `name`"),
        (("name: half", "name: ../half"), "must be of letters"),
        (("name: half", f"name: {MODELS.name}"), "half"),  # then nothing is called half
    ],
)
def test_bad_stages(change, expected, tmp_path):
    (tmp_path / "stages.yml").write_text(STAGES.replace(*change))
    with pytest.raises(InputError, match=expected):
        list(rehearse(read_stages(tmp_path / "stages.yml")))


# --- what is refused ----------------------------------------------------------------------------------------


def refused(tmp_path, **changes):
    recipe = {"merge_method": "ties", "base_model": BASE, "models": [model(A), model(B)]} | changes
    (tmp_path / "bad.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    with pytest.raises(InputError) as error:
        Sources(read_recipe(tmp_path / "bad.yml"))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"merge_method": "tie"}, "bad.yml:1: `merge_method`: `tie` is not known; did you mean `ties`?"),
        ({"parameters": {"wieght": 1}}, "`parameters.wieght`: ties has no such parameter; did you mean `weight`?"),
        ({"models": [model(A), {"model": B}]}, "`models.1`: `weight` is missing for tensor"),
        ({"models": [model(A, [{"filter": "mlpp", "value": 1}]), model(B)]}, "filter `mlpp` matches no tensor"),
        ({"models": [model(A), model(DEEP)]}, "takes part with 6 layers, the first model with 4"),
        ({"models": [], "slices": [{"sources": [model(A, layer_range=[2, 5])]}]}, "ends outside a, which has 4 layers"),
        ({"models": [model(A), model(A)]}, "is listed more than once"),
        ({"base_model": None}, "ties needs a `base_model`"),
        (
            {"merge_method": "slerp", "models": [], "slices": [{"sources": [model(A), model(B)]}]},
            "`base_model`: slerp starts from one of its models",
        ),
        (
            {"merge_method": "slerp", "models": [model(A), model(B), model(C)], "base_model": A},
            "needs 1 to 2 models, not 3",
        ),
        ({"base_model": DEEP}, "`base_model`: deep, the base model, takes part with layers [0, 6] of its 6"),
        ({"models": [], "slices": [{"sources": [ranged(A, 0, 2, weight=1), ranged(BASE, 0, 4)]}]}, "the models with 2"),
        ({"parameters": {"normalize": -1}}, "`parameters.normalize`: is on or off, not -1"),
        ({"parameters": {"lambda": "much"}}, "'much' is not a number"),
        ({"parameters": {"lambda": []}}, "an empty list has no values"),
        ({"models": [{"model": {"model": 5}}]}, "does not name a model"),
        (
            {
                "semantics": "paper",
                "models": [],
                "slices": [{"sources": [ranged(A, 0, 2, weight=1)]}, {"sources": [ranged(B, 2, 4, weight=1)]}],
            },
            "whole models",
        ),
        ({"models": [model("nowhere"), model(A)]}, "nowhere is neither a folder nor a hub name"),
    ],
)
def test_bad_recipes(changes, expected, tmp_path):
    assert expected in refused(tmp_path, **changes)


def test_all_problems_at_once_with_their_lines(tmp_path):
    text = f"""\
merge_method: ties
base_model: {BASE}
models:
  - model: {A}
    parameters:
      weight:
        - filter: nothing
          value: 1
  - model: {B}
parameters:
  lamda: 2
"""
    (tmp_path / "bad.yml").write_text(text)
    with pytest.raises(InputError) as error:
        Sources(read_recipe(tmp_path / "bad.yml"))
    found = str(error.value).splitlines()
    for line, word in ((7, "nothing"), (4, "weight"), (9, "weight"), (11, "did you mean `lambda`")):
        assert any(f"bad.yml:{line}:" in f and word in f for f in found), (line, found)


def test_parameters_of_other_methods_are_noted_not_refused():
    found = sources(parameters={"t": 0.5, "int8_mask": True})
    assert list(found.notes) == ["`parameters.t`: ties does not use it"]


def test_shared_parameters_under_a_model_are_noted():
    found = sources(models=[{"model": A, "parameters": {"weight": 1, "lambda": 0.5}}, model(B)])
    assert list(found.notes) == ["`models.0.parameters.lambda`: is shared by all models and has no effect under one"]
    assert found.coefficients["norm.weight"]["lambda"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: []", "give one of"),
        (f"models: [{{model: {A}}}]\nslices: [{{sources: [{{model: {A}}}]}}]", "give one of"),
        (f"models: [{{model: {A}, layer_range: [3, 1]}}]", "not a range of layers"),
        (f"models: [{{model: {A}}}]\nmodels: []", "given twice"),
        (f"models: [{{model: {A}}}]\ntokenizer_source: base\ntokenizer: {{}}", "give either"),
    ],
)
def test_bad_schemas(text, expected, tmp_path):
    (tmp_path / "bad.yml").write_text(f"merge_method: linear\n{text}\n")
    with pytest.raises(InputError, match=expected):
        read_recipe(tmp_path / "bad.yml")


def test_what_licences_forbid_is_said_before_the_work(tmp_path):
    for name, licence in (("a", "cc-by-nd-4.0"), ("b", "mit")):
        shutil.copytree(A, tmp_path / name)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in "ab"]
    sources = Sources(Recipe.model_validate({"merge_method": "linear", "models": models}))
    told = "before you publish what comes out: cc-by-nd-4.0 (a) allows no changed version"
    assert told in list(sources.notes)
