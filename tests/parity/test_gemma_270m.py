"""A real multilingual model, Gemma 3 270M, against transformers.

Needs the weights, which no test downloads:

    JEVOMERGE_GEMMA=FOLDER pytest -m slow tests/parity/test_gemma_270m.py
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.models.model import apply, unembed

VARIABLE = "JEVOMERGE_GEMMA"
TEXTS = (
    "Q: Tom has 3 apples and buys 4 more. How many apples does he have?\nA: 3+4=7",
    "日本の首都は、東京です。りんごが三個あります。",
    "The quick brown fox jumps over the lazy dog. " * 8,
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder():
    value = os.environ.get(VARIABLE)
    if not value:
        pytest.skip(f"set {VARIABLE} to a folder with Gemma 3 270M (see the top of {Path(__file__).name})")
    return Path(value)


@pytest.mark.parametrize("text", TEXTS)
def test_logits_match_transformers(folder, text):
    checkpoint, tokens = Checkpoint(folder), np.asarray([AutoTokenizer.from_pretrained(folder)(text)["input_ids"]])
    params = jax.tree.map(lambda x: x.astype(jnp.float32), checkpoint.load())
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        expected = model(torch.tensor(tokens)).logits.numpy()
    given = jnp.asarray(tokens, jnp.int32), jnp.ones(tokens.shape, bool)
    hidden, _ = jax.jit(apply, static_argnums=1)(params, checkpoint.model, *given)
    found = np.asarray(unembed(params, checkpoint.model, hidden))
    np.testing.assert_allclose(found, expected, atol=1e-3)  # of logits up to some 40
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
    assert np.ptp(expected) > 20
