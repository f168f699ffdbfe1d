"""Models of a recipe against each other: those that tie their head and those that do not."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from jevomerge.checkpoint.memory import InMemory
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import merge_to_folder
from tests.families import make


def recipe(*models, **more):
    listed = [{"model": str(m), "parameters": {"weight": 0.25 + 0.5 * i}} for i, m in enumerate(models)]
    return Recipe.model_validate({"merge_method": "linear", "models": listed, "dtype": "float32"} | more)


@pytest.fixture
def tied_and_untied(tmp_path):
    """Two Llamas of one rope, of which one ties its head."""
    make("smollm2", tmp_path / "tied", seed=1)
    make("llama", tmp_path / "untied", seed=2)
    return tmp_path / "tied", tmp_path / "untied"


@pytest.mark.parametrize("order", [1, -1])
def test_a_tied_model_takes_part_with_its_embeddings_as_its_head(tied_and_untied, order, tmp_path):
    sources = Sources(recipe(*tied_and_untied[::order]))
    merge_to_folder(sources, sources.coefficients, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    parts = [load_file(m / "model.safetensors") for m in tied_and_untied[::order]]
    for weights in parts:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == parts[0].keys()
    for name, tensor in written.items():
        np.testing.assert_allclose(tensor, 0.25 * parts[0][name] + 0.75 * parts[1][name], atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    (tree, _), _ = sources.load()  # the same in memory
    np.testing.assert_array_equal(tree["lm_head"]["weight"], parts[0]["lm_head.weight"])


def test_tied_models_stay_tied(tmp_path):
    for seed in (1, 2):
        make("smollm2", tmp_path / str(seed), seed=seed)
    sources = Sources(recipe(tmp_path / "1", tmp_path / "2"))
    assert sources.model == Checkpoint(tmp_path / "1").model
    assert "lm_head.weight" not in [t.name for t in sources.tensors]


def test_a_base_model_that_is_tied(tied_and_untied):
    tied, untied = tied_and_untied
    sources = Sources(recipe(untied, base_model=str(tied), merge_method="task_arithmetic"))
    _, base = sources.load()
    np.testing.assert_array_equal(base["lm_head"]["weight"], base["embed_tokens"]["weight"])


def test_a_tied_model_in_memory(tied_and_untied):
    opened = {str(m): Checkpoint(m) for m in tied_and_untied}
    held = {name: InMemory(name, c.model, c.load()) for name, c in opened.items()}
    trees, _ = Sources(recipe(*tied_and_untied), opener=lambda name, **_: held[name]).load()
    for tree, expected in zip(trees, Sources(recipe(*tied_and_untied)).load()[0], strict=True):
        np.testing.assert_array_equal(tree["lm_head"]["weight"], expected["lm_head"]["weight"])


def test_what_a_model_says_that_nobody_reads_is_noted(tied_and_untied):
    path = tied_and_untied[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mup_scale": 3.0}))
    assert any("mup_scale: no key of llama models" in note for note in Sources(recipe(*tied_and_untied)).notes)
