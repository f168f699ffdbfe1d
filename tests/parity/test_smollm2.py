"""A real 135M model against transformers: greedy text token for token, logits, and the bytes of a round trip.

Needs the weights, which no test downloads; anything with SmolLM2's architecture does:

    JEVOMERGE_SMOLLM2=/tmp/smollm2/hf pytest -m slow tests/parity/test_smollm2.py
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from jevomerge.checkpoint.export import export_folder, tensors_of, write_model
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.fitness.rollouts.generation import Prompts, generate
from jevomerge.models.model import apply, unembed
from jevomerge.problems.problem import Instance

VARIABLE = "JEVOMERGE_SMOLLM2"
NEW_TOKENS = 32
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Tom has 3 apples and buys 5 more. How many apples does he have?",
    "List three colours.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Explain photosynthesis to a child.",
    "Give me a recipe for pancakes.",
    "def fibonacci(n):",
    "Once upon a time, in a village by the river,",
    "The three laws of thermodynamics are",
    "SELECT name, age FROM users WHERE",
    "2, 4, 8, 16, 32,",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: Is the sun a star?\nA:",
    "日本の首都は",
    "La capitale de l'Italie est",
    "A",
    "The quick brown fox jumps over the lazy dog. " * 6 + "The quick brown",
    "Summarise: The meeting was moved from Monday to Thursday because two of the four speakers were ill, and the "
    "room had been booked by another team. Everybody was told by e-mail, yet half of the guests came on Monday.",
)
CHAT = 8  # the first so many are asked in the chat template, the others are continued

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Path:
    """The checkpoint's folder, from the environment."""
    value = os.environ.get(VARIABLE)
    if not value:
        pytest.skip(f"set {VARIABLE} to a folder with SmolLM2-135M-Instruct (see the top of {Path(__file__).name})")
    return Path(value)


@pytest.fixture(scope="module")
def checkpoint(folder):
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def params(checkpoint):
    return checkpoint.load()


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(folder) -> list[list[int]]:
    """The tokens of every prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [f"<|im_start|>user\n{p}<|im_end|>\n<|im_start|>assistant\n" for p in PROMPTS[:CHAT]]
    return [tokenizer(text)["input_ids"] for text in (*asked, *PROMPTS[CHAT:])]


def test_greedy_text_is_transformers(checkpoint, params, model, prompts):
    """All prompts in one left-padded batch here, one at a time and unpadded there."""
    assert len(prompts) == 20
    (eos,) = np.unique(model.generation_config.eos_token_id)
    expected = np.full((len(prompts), NEW_TOKENS), eos, np.int32)
    with torch.no_grad():
        for row, prompt in zip(expected, prompts, strict=True):
            ids = torch.tensor([prompt])
            found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
            new = found[0, len(prompt) :].numpy()
            row[: len(new)] = new
    length = max(map(len, prompts))
    tokens = np.full((len(prompts), length), eos, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[length - len(prompt) :] = prompt
    valid = np.arange(length) >= length - np.array([[len(p)] for p in prompts])

    prompts = Prompts(jnp.asarray(tokens), jnp.asarray(valid), jnp.int32(NEW_TOKENS), jnp.asarray([eos], jnp.int32))

    @jax.jit
    def written(params, batch):
        return generate(Instance(params), checkpoint.model, batch, NEW_TOKENS)

    found = written(params, prompts)
    np.testing.assert_array_equal(np.asarray(found), expected)
    ended = (expected == eos).any(axis=1)
    assert ended.any()  # both kinds occur: texts that end themselves,
    assert not ended.all()  # and texts that are cut


def test_logits_match_transformers(checkpoint, params, model, prompts):
    tokens = np.asarray([prompts[-1]], np.int32)
    with torch.no_grad():
        expected = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    hidden, _ = jax.jit(apply, static_argnums=1)(
        params, checkpoint.model, jnp.asarray(tokens), jnp.ones(tokens.shape, bool)
    )
    found = np.asarray(unembed(params, checkpoint.model, hidden))
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-3)


def test_round_trip_is_bit_exact(folder, checkpoint, params, tmp_path):
    with export_folder(tmp_path / "out") as out:
        write_model(out, checkpoint.model.files, checkpoint.specs, "float32", tensors_of(params))
    written, original = (load_file(f / "model.safetensors") for f in (tmp_path / "out", folder))
    assert written.keys() == original.keys()
    for name, value in original.items():
        assert written[name].dtype == value.dtype
        assert written[name].shape == value.shape
        assert written[name].tobytes() == value.tobytes(), name
