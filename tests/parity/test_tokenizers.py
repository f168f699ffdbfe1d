"""Recipes over models with different tokenizers, against what mergekit 0.1.5 wrote for them.

Compared token by token: mergekit numbers the tokens of a union in a random order, ours is always the same.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from jevomerge.cli import main

FOLDER = Path(__file__).parents[1] / "data" / "tokenizers"
RECIPES = sorted(p.stem for p in (FOLDER / "recipes").glob("*.yml"))


@pytest.mark.parametrize("name", RECIPES)
def test_equals_mergekit(name, tmp_path):
    text = (FOLDER / "recipes" / f"{name}.yml").read_text().replace("MODELS", str(FOLDER / "models"))
    (tmp_path / "recipe.yml").write_text(text)
    out = tmp_path / "out"
    assert main(["merge", str(tmp_path / "recipe.yml"), str(out), "--debug"]) == 0

    vocabulary = AutoTokenizer.from_pretrained(out).get_vocab()
    tokens = json.loads((FOLDER / "expected" / f"{name}.json").read_text())
    assert set(vocabulary) == set(tokens)
    ours = [vocabulary[t] for t in tokens]
    expected, found = load_file(FOLDER / "expected" / f"{name}.safetensors"), load_file(out / "model.safetensors")
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        merged = found[tensor]
        assert merged.shape == expected[tensor].shape
        np.testing.assert_allclose(merged[ours], expected[tensor][: len(tokens)], atol=1e-5, rtol=0)
        # Rows without a token are all the same in mergekit's output, wherever they stand in ours.
        spare = np.setdiff1d(np.arange(len(merged)), ours)
        np.testing.assert_allclose(merged[spare], expected[tensor][len(tokens) :], atol=1e-5, rtol=0)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == len(found["lm_head.weight"])

    # The recipe that is kept makes the same model again.
    assert main(["merge", str(out / "recipe.yaml"), str(tmp_path / "again")]) == 0
    for tensor, values in load_file(tmp_path / "again" / "model.safetensors").items():
        np.testing.assert_array_equal(values, found[tensor], err_msg=tensor)
