"""Models of several parts: their language parts merge with text models, the rest is carried along and opens again."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText

import jevomerge as jm
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.genome.schema import Gene, PathSearch
from jevomerge.models.model import apply, unembed
from jevomerge.models.specs import flatten
from jevomerge.problems.path import PathProblem
from jevomerge.problems.weights import WeightProblem
from jevomerge.recipe.schema import read_recipe
from jevomerge.recipe.sources import Sources
from tests.composites import IMAGE, LAYOUTS, ROWS, WORDS, write_text_model, write_vlm


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("composite")
    write_text_model(folder / "base", 0)
    write_text_model(folder / "japanese", 1)
    write_vlm(folder / "llava", 2)
    return folder


def recipe(folder, **more):
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / "llava"), "parameters": {"weight": 0.75}},
            {"model": str(folder / "japanese"), "parameters": {"weight": 0.5}},
        ],
        "dtype": "float32",
        **more,
    }


def language(name):
    return name.startswith("language_model.")


def test_what_is_not_language_is_carried_along(folder, tmp_path):
    jm.merge_folder(recipe(folder), tmp_path / "out")
    result, llava = (load_file(p / "model.safetensors") for p in (tmp_path / "out", folder / "llava"))
    base, japanese = (load_file(folder / name / "model.safetensors") for name in ("base", "japanese"))
    assert result.keys() == llava.keys()
    for name, array in result.items():
        if not language(name):
            np.testing.assert_array_equal(array, llava[name])
            continue
        alone = name.removeprefix("language_model.")
        known = slice(None, len(WORDS)) if len(array) == ROWS else slice(None)
        wanted = base[alone] + 0.75 * (llava[name][known] - base[alone]) + 0.5 * (japanese[alone] - base[alone])
        np.testing.assert_allclose(array[known], wanted, atol=1e-6)
        if len(array) == ROWS:  # the picture's token, padding, and rows without a token
            np.testing.assert_array_equal(array[len(WORDS) :], llava[name][len(WORDS) :])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["image_token_index"] == IMAGE
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    assert Checkpoint(tmp_path / "out").vocabulary()["<image>"] == IMAGE


def test_the_result_is_transformers_own_and_computes_as_the_base(folder, tmp_path):
    jm.merge_folder(recipe(folder), tmp_path / "out")
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.text_config.rope_parameters["rope_theta"] == 10000.0
    jm.merge_folder(recipe(folder, compute_as=str(folder / "llava")), tmp_path / "other")
    other = AutoModelForImageTextToText.from_pretrained(tmp_path / "other")
    assert other.config.text_config.rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_every_layout_of_names_is_read_and_written_again(folder, layout, model_type, tmp_path):
    write_vlm(tmp_path / "vlm", 2, model_type, layout)
    passed = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "vlm")}], "dtype": "float32"}
    jm.merge_folder(passed, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("vlm", "out"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_logits_of_the_language_part_alone(folder):
    checkpoint = Checkpoint(folder / "llava")
    model = AutoModelForImageTextToText.from_pretrained(folder / "llava")
    tokens = np.arange(3, 15)[None]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(tokens)).logits.numpy()
    hidden, _ = apply(checkpoint.load(), checkpoint.model, tokens, np.ones_like(tokens, bool))
    found = unembed(checkpoint.load(), checkpoint.model, hidden)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_modules_as_mergekit_writes_them(folder):
    models = recipe(folder).pop("models")
    alone = {"models": [{"model": str(folder / "llava")}]}
    given = {key: value for key, value in recipe(folder).items() if key != "models"}
    modules = {"text_decoder": {"models": models}, "vision_tower": alone, "multi_modal_projector": alone}
    sources = Sources(read_recipe(given | {"modules": modules}))
    assert sources.carrier.reference == str(folder / "llava")
    assert sources.names == ["llava", "japanese"]


def test_what_is_wrong_is_said(folder, tmp_path):
    write_vlm(tmp_path / "second", 3)
    two = recipe(folder)
    two["models"][1]["model"] = str(tmp_path / "second")
    with pytest.raises(InputError, match="say whose with `carry`"):
        Sources(read_recipe(two))
    assert Sources(read_recipe(two | {"vision": str(tmp_path / "second")})).carrier.name == "second"
    with pytest.raises(InputError, match="japanese has no parts beside its language model"):
        Sources(read_recipe(recipe(folder, carry=str(folder / "japanese"))))
    with pytest.raises(InputError, match="take its tokenizer"):
        Sources(read_recipe(recipe(folder, tokenizer_source="base")))


def test_what_is_scored_is_what_is_exported(folder, tmp_path):
    """Also the rows that are kept, whether a merge is made in memory or in the layer scan."""
    given = recipe(folder)
    for model in given["models"]:
        del model["parameters"]
    problem = WeightProblem(read_recipe(given), {"weight": Gene(range=(0, 1))})
    genome = np.array([0.7, 0.2], np.float32)
    problem.export(genome, tmp_path / "out")
    exported = Checkpoint(tmp_path / "out")
    candidates = problem.load()
    made = candidates.make(genome)
    for path, leaf in flatten(exported.load()).items():
        np.testing.assert_allclose(flatten(made)[path], leaf, atol=1e-7, err_msg=path)  # compiled as another program
    tokens = jnp.asarray([[3, 7, IMAGE, 91, 95, 4]])
    hidden = [
        apply(i.params, problem.model, tokens, jnp.ones_like(tokens, bool), layer=i.layer)[0]
        for i in (candidates.model(made, genome), candidates.model(None, genome))
    ]
    np.testing.assert_allclose(hidden[0], hidden[1], atol=1e-6)
    assert problem.tokenizer().convert_tokens_to_ids("<image>") == IMAGE


def test_a_path_leads_through_language_parts(folder, tmp_path):
    path = {"models": [str(folder / "llava"), str(folder / "japanese")], "repeats": 1, "scaling": "per_hop"}
    given = json.loads((folder / "japanese" / "config.json").read_text())
    llava = json.loads((folder / "llava" / "config.json").read_text())["text_config"]
    changed = {key: llava[key] for key in ("rope_parameters", "sliding_window")}
    (tmp_path / "japanese").mkdir()
    for file in (folder / "japanese").iterdir():
        (tmp_path / "japanese" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "japanese" / "config.json").write_text(json.dumps(given | changed))
    path["models"][1] = str(tmp_path / "japanese")
    problem = PathProblem(PathSearch.model_validate(path))
    problem.export(np.random.default_rng(0).uniform(0.4, 0.9, len(problem.names)), tmp_path / "out")
    before, after = (load_file(p / "model.safetensors") for p in (folder / "llava", tmp_path / "out"))
    for name in before:
        if not language(name):
            np.testing.assert_array_equal(after[name], before[name])
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
