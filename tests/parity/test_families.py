"""Every family against transformers: logits, cached decoding, padding, and the bytes of a round trip."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from jevomerge.checkpoint.export import export_folder, tensors_of, write_model
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.models.model import apply, unembed
from tests.families import FAMILIES, SIZES, make

BATCH, LENGTH = 3, 20
TOKENS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (BATCH, LENGTH), dtype=np.int32)


@functools.partial(jax.jit, static_argnums=1)
def run(params, config, tokens, valid, cache):
    hidden, cache = apply(params, config, tokens, valid, cache)
    return unembed(params, config, hidden), cache


def logits(checkpoint, tokens, valid=None, cache=None):
    valid = np.ones_like(tokens, bool) if valid is None else valid
    found, cache = run(checkpoint.load(), checkpoint.model, jnp.asarray(tokens), jnp.asarray(valid), cache)
    return np.asarray(found), cache


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A model of transformers, and its folder opened."""
    folder = tmp_path_factory.mktemp(request.param)
    return make(request.param, folder), Checkpoint(folder)


def test_logits_match_transformers(family):
    model, checkpoint = family
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    found, _ = logits(checkpoint, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert np.ptp(expected) > 1  # the comparison is about something


def test_cached_decoding_is_the_full_forward_pass(family):
    _, checkpoint = family
    full, _ = logits(checkpoint, TOKENS)
    cache = checkpoint.model.cache(BATCH, LENGTH + 3, jnp.float32)
    steps = []
    for start, stop in [(0, 7), (7, 8), (8, 9), (9, 14), *((i, i + 1) for i in range(14, LENGTH))]:
        step, cache = logits(checkpoint, TOKENS[:, start:stop], cache=cache)
        steps.append(step)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), full, atol=2e-5)


def test_left_padding_changes_nothing(family):
    _, checkpoint = family
    full, _ = logits(checkpoint, TOKENS)
    pad = 6
    tokens = np.concatenate([np.full((BATCH, pad), 13, np.int32), TOKENS], axis=1)
    valid = np.arange(LENGTH + pad)[None, :] >= pad
    padded, _ = logits(checkpoint, tokens, np.broadcast_to(valid, tokens.shape))
    np.testing.assert_allclose(padded[:, pad:], full, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_is_bit_exact_and_opens_in_transformers(name, dtype, tmp_path):
    # 20 KB shards: the sharded reader and the single-file writer.
    make(name, tmp_path / "m", getattr(torch, dtype), shard="20KB")
    source = Checkpoint(tmp_path / "m")
    assert len({tensor.path for tensor in source.tensors.values()}) > 1
    with export_folder(tmp_path / "out") as folder:
        write_model(folder, source.model.files, source.specs, dtype, tensors_of(source.load()))
    written = load_file(tmp_path / "out" / "model.safetensors")
    originals = {k: v for f in (tmp_path / "m").glob("*.safetensors") for k, v in load_file(f).items()}
    assert written.keys() == originals.keys()
    for key, original in originals.items():
        assert written[key].dtype == original.dtype
        assert written[key].tobytes() == original.tobytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.dtype == getattr(torch, dtype)
    with torch.no_grad():
        tokens = torch.tensor(TOKENS, dtype=torch.long)
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_old_spelling_of_config_is_the_same_model(tmp_path):
    """transformers 4 wrote rope_theta, rope_scaling and torch_dtype at the top level."""
    make("llama3-rope-tied", tmp_path / "m")
    new = Checkpoint(tmp_path / "m").model
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config |= {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
        "torch_dtype": config.pop("dtype"),
    }
    path.write_text(json.dumps(config))
    assert Checkpoint(tmp_path / "m").model == new


def test_old_spelling_of_gemma_rope(tmp_path):
    make("gemma3", tmp_path / "m")
    new = Checkpoint(tmp_path / "m").model
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    config |= {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 10000.0,
    }
    path.write_text(json.dumps(config))
    assert Checkpoint(tmp_path / "m").model == new


def test_real_model_tells_its_story(stories260k: Path):
    """A trained model, against transformers: random weights hide bugs that trained ones show."""
    tokens = np.array([[1, 403, 407, 261, 378]], np.int32)
    model = AutoModelForCausalLM.from_pretrained(stories260k)
    with torch.no_grad():
        expected = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    found, _ = logits(Checkpoint(stories260k), tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
