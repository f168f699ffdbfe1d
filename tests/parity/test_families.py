"""Every family against transformers: logits, cached decoding, padding, and the bytes of a round trip."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from jevomerge.checkpoint.export import export_folder, tensors_of, write_model
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.fitness.rollouts.generation import Prompts, generate
from jevomerge.genome.schema import Gene
from jevomerge.genome.space import express, make_space
from jevomerge.models.model import apply, unembed
from jevomerge.problems.problem import Instance
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import merge_to_folder
from jevomerge.recipe.write import write_recipe
from tests.families import FAMILIES, MORE, SIZES, make

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


# A component that others have, too, is proved once in CI.
ONCE = ("gemma2", "gpt_neox", "glm4_moe", "gpt_oss", "gemma4", "qwen3_next", "ministral3")
IN_FULL = [*FAMILIES, *(pytest.param(name, marks=[] if name in ONCE else pytest.mark.slow) for name in MORE)]
in_full = pytest.mark.parametrize("family", IN_FULL, indirect=True)


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
    np.testing.assert_allclose(found, expected, atol=1e-4 * min(1, expected.std()), rtol=1e-4)
    assert np.ptp(expected) > 0.1  # the comparison is about something


@in_full
def test_cached_decoding_is_the_full_forward_pass(family):
    _, checkpoint = family
    if {"longrope", "dynamic"} & {k.rope and k.rope.rope_type for k in checkpoint.model.config.kinds}:
        pytest.skip("longer texts turn by other angles; what was turned before is left so, as in transformers")
    full, _ = logits(checkpoint, TOKENS)
    cache = checkpoint.model.cache(BATCH, LENGTH + 3, jnp.float32)
    steps = []
    for start, stop in [(0, 7), (7, 8), (8, 9), (9, 14), *((i, i + 1) for i in range(14, LENGTH))]:
        step, cache = logits(checkpoint, TOKENS[:, start:stop], cache=cache)
        steps.append(step)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), full, atol=2e-5)


@in_full
def test_left_padding_changes_nothing(family):
    _, checkpoint = family
    full, _ = logits(checkpoint, TOKENS)
    pad = 6
    tokens = np.concatenate([np.full((BATCH, pad), 13, np.int32), TOKENS], axis=1)
    valid = np.arange(LENGTH + pad)[None, :] >= pad
    padded, _ = logits(checkpoint, tokens, np.broadcast_to(valid, tokens.shape))
    np.testing.assert_allclose(padded[:, pad:], full, atol=2e-5)


GREEDY = ("qwen3_next", "gpt_oss", "gemma4")


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in GREEDY else pytest.mark.slow) for name in (*FAMILIES, *MORE)],
    indirect=True,
)
def test_greedy_texts_are_those_of_transformers(family):
    """Of a batch that is padded on the left; and one by one, behind what they share, of blocks that are taken apart.

    There each alone: in a batch the longest decides by which angles all of them turn (longrope, dynamic).
    """
    model, checkpoint = family
    valid, new = np.arange(8) >= np.array([[0], [3]]), 6
    batch = Prompts(TOKENS[:2, :8], valid, np.int32(new), np.array([-1], np.int32), beginning=TOKENS[2, :4])
    whole = jax.jit(Prompts.whole)(batch)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        texts = [
            torch.tensor(np.asarray(row)[np.asarray(valid)][None].astype(int))
            for row, valid in zip(whole.tokens, whole.valid, strict=True)
        ]
        found = [
            model.generate(x, attention_mask=torch.ones_like(x), do_sample=False, max_new_tokens=new) for x in texts
        ]
    expected = np.concatenate([x[:, -new:] for x in found])
    write = jax.jit(lambda m, params, b, rows: generate(Instance(params), m, b, new, rows), static_argnums=(0, 3))
    params = checkpoint.load()
    np.testing.assert_array_equal(write(checkpoint.model, params, whole, None), expected)
    np.testing.assert_array_equal(write(*checkpoint.model.taken_apart(params), batch, 1), expected)


@pytest.mark.parametrize(
    ("name", "tensor", "there"),
    [
        ("qwen3_next", "mtp.fc.weight", "mtp.fc.weight"),
        ("glm4_moe", "model.layers.4.enorm.weight", "model.layers.6.enorm.weight"),
    ],
)
def test_what_predicts_later_tokens_is_carried(name, tensor, there, tmp_path):
    """To the bit, from the model that `carry` names; layers behind the last are behind the last of a deeper one."""
    for i, model in enumerate("ab"):
        make(name, tmp_path / model, seed=i)
        tensors = load_file(tmp_path / model / "model.safetensors")
        more = {tensor: np.full(3, i, np.float32)}
        save_file(tensors | more, tmp_path / model / "model.safetensors", {"format": "pt"})
        path = tmp_path / model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": i + 1}))
    models = [{"model": str(tmp_path / model), "parameters": {"weight": 0.5}} for model in "ab"]
    given = {"merge_method": "linear", "models": models}
    with pytest.raises(InputError, match="say whose with `carry`"):
        Sources(Recipe.model_validate(given))
    sources = Sources(Recipe.model_validate(given | {"carry": str(tmp_path / "b")}))
    merge_to_folder(sources, sources.coefficients, tmp_path / "out")
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")[tensor], np.ones(3))
    assert "all 1 tensors are those of b, unchanged" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 2
    assert "carry: " in (tmp_path / "out" / "recipe.yaml").read_text()
    slices = [{"sources": [{"model": str(tmp_path / "b"), "layer_range": at}]} for at in ([0, 3], [1, 4])]
    deeper = Sources(Recipe.model_validate({"merge_method": "passthrough", "slices": slices}))
    merge_to_folder(deeper, deeper.coefficients, tmp_path / "deeper")
    made = load_file(tmp_path / "deeper" / "model.safetensors")
    np.testing.assert_array_equal(made[there], np.ones(3))
    assert len(Checkpoint(tmp_path / "deeper").frame.tensors) == 1


def test_a_recipe_for_layers_of_several_kinds_reads_back(tmp_path):
    """Genes by component and group of layers: every tensor's numbers, of each expert, too."""
    for i in range(2):
        make("qwen3_next", tmp_path / str(i), seed=i)
    models = [{"model": str(tmp_path / str(i)), "parameters": {"weight": 0.5}} for i in range(2)]
    sources = Sources(Recipe.model_validate({"merge_method": "linear", "models": models}), ["weight"])
    gene = {"range": [0, 1], "layers_per_group": 2, "by": "component"}
    space = make_space(sources, {"weight": Gene.model_validate(gene)})
    parts = {name.split("/")[0].split(" ", 2)[-1] for name in space.names}
    assert {"router", "experts", "linear_attention", "attention", "mlp", "norms"} <= parts
    genome = np.random.default_rng(0).uniform(size=len(space.names)).astype(np.float32)
    coefficients = jax.tree.map(np.asarray, jax.jit(express)(space, genome))
    text = write_recipe(sources, coefficients)
    again = Sources(Recipe.model_validate(yaml.safe_load(text))).coefficients
    for path, numbers in coefficients.items():
        np.testing.assert_allclose(again[path]["weight"], numbers["weight"], atol=1e-6, err_msg=path)
    (note,) = (note for note in sources.notes if "mixtures of experts" in note)
    assert "routers weights of their own" in note


@pytest.mark.parametrize("name", MORE)
def test_a_family_is_read_merged_and_written(name, tmp_path):
    """Logits, every bit of a folder that is written as it was read, and a merge that transformers opens."""
    model = make(name, tmp_path / "a")
    make(name, tmp_path / "b", seed=1)
    source = Checkpoint(tmp_path / "a")
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    found, _ = logits(source, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std(), rtol=1e-4)
    (tmp_path / "same").mkdir()
    write_model(tmp_path / "same", source.model.files, source.specs, "float32", tensors_of(source.load()))
    recipe = Recipe.model_validate(
        {
            "merge_method": "linear",
            "models": [{"model": str(tmp_path / m), "parameters": {"weight": w}} for m, w in (("a", 1), ("b", 3))],
        }
    )
    sources = Sources(recipe)
    merge_to_folder(sources, sources.coefficients, tmp_path / "out")
    a, b, same, merged = (load_file(tmp_path / f / "model.safetensors") for f in ("a", "b", "same", "out"))
    assert a.keys() == same.keys() == merged.keys()
    for key, x in a.items():
        assert same[key].tobytes() == x.tobytes()
        np.testing.assert_allclose(merged[key], 0.25 * x + 0.75 * b[key], atol=1e-6)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


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
