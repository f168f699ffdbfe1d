"""Paths against transformers: its own layers run hop by hop, and the ordinary model that a path folds into."""

import copy
import functools
import json
import shutil
from pathlib import Path as Folder

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jevomerge import InputError
from jevomerge.checkpoint.export import export_folder, tensors_of, write_model
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.fitness.rollouts.generation import Prompts, generate
from jevomerge.genome.route import Hop, PathSpace, encode, express_path
from jevomerge.genome.schema import PathSearch
from jevomerge.models.model import apply, unembed
from jevomerge.models.route import Route
from jevomerge.models.specs import flatten
from jevomerge.problems.path import PathProblem, Routed, write_folded
from jevomerge.problems.stack import Stack
from tests.families import SIZES, make

FAMILIES = ["llama-biases", "smollm2", "mistral", "qwen2", "qwen2-window", "qwen3", "gemma3"]
DEPTHS = (4, 2, 3)
HOPS = [0, 4, 7, 1, 7, 8, 5, 2, 7, 3]  # blocks 0 to 3 of the first model, 4 and 5 of the second, 6 to 8 of the third
SCALES = [-0.7, 1.3, 0.05, -1.1, 6.0, 1.0, -0.9, 1.2, 0.8, -2.0]
TOKENS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 12), dtype=np.int32)
MINIATURES = Folder(__file__).parents[2] / "experiments" / "japanese_math_mini" / "models"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """(family, eps) -> three random models of one family and of different depth, and where they are saved."""

    @functools.cache
    def made(family: str, eps: float | None = None):
        folder, saved = tmp_path_factory.mktemp(family), []
        for i, depth in enumerate(DEPTHS):
            model = make(family, folder / "whole" / str(i), seed=i)
            model.model.layers = model.model.layers[:depth]
            model.config.num_hidden_layers = depth
            if getattr(model.config, "layer_types", None):
                model.config.layer_types = model.config.layer_types[:depth]
            if eps is not None:
                model.config.rms_norm_eps = eps
            model.save_pretrained(folder / str(i))
            saved.append(folder / str(i))
        return [AutoModelForCausalLM.from_pretrained(path).eval() for path in saved], saved

    return made


def walk(models, hops, scales, scale):
    """Logits of the first model with transformers' layers of all models in its place, inputs scaled by hooks."""
    whole = copy.deepcopy(models[0])
    layers = [layer for m in models for layer in m.model.layers]
    types = [t for m in models for t in getattr(m.config, "layer_types", None) or [None] * len(m.model.layers)]
    whole.config.num_hidden_layers = len(hops)
    if types[0] is not None:
        whole.config.layer_types = [types[i] for i in hops]
    whole.model.layers = torch.nn.ModuleList(copy.deepcopy(layers[i]) for i in hops)
    added = {}  # what the last MLP added to the stream

    def before(t):
        def hook(module, args):
            x, *rest = args
            part = x if scale == "stream" or t == 0 else added["mlp"]
            return (x + (scales[t] - 1) * part, *rest)

        return hook

    def after(module, args, output):
        added["mlp"] = output

    for t, layer in enumerate(whole.model.layers):
        layer.register_forward_pre_hook(before(t))
        getattr(layer, "post_feedforward_layernorm", layer.mlp).register_forward_hook(after)
    return logits_of(whole)


def logits_of(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long), use_cache=False).logits.float().numpy()


@functools.partial(jax.jit, static_argnums=(1, 4))
def run(params, config, tokens, path, scale):
    hidden, _ = apply(params, config, tokens, jnp.ones_like(tokens, bool), route=path, scale=scale)
    return unembed(params, config, hidden)


def ours(stack, path, scale, tokens=TOKENS):
    return np.asarray(run(stack.load(), stack.model, tokens, path, scale))


def export(folder, stack, path, scale, like, dtype="float32"):
    with export_folder(folder) as partial:
        write_folded(partial, stack.model, stack.model.fold(path, scale), stack.read, dtype)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("scale", ["stream", "delta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_path_is_transformers_own_layers_hop_by_hop(family, scale, sources):
    models, folders = sources(family)
    stack = Stack([Checkpoint(f) for f in folders])
    expected = walk(models, HOPS, SCALES, scale)
    assert np.abs(expected - walk(models, HOPS, [1.0] * len(HOPS), scale)).max() > 0.1  # the scales do something
    found = ours(stack, Route.of(HOPS, SCALES, slots=16), scale)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", ["stream", "delta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_folder_is_the_path(family, scale, sources, tmp_path):
    """With an eps of 1e-12, for with the usual one folding scales of 0.05 is not exact: see the next test."""
    models, folders = sources(family, eps=1e-12)
    checkpoints = [Checkpoint(f) for f in folders]
    stack, path = Stack(checkpoints), Route.of(HOPS, SCALES, slots=16)
    model = export(tmp_path / "out", stack, path, scale, checkpoints[0])
    assert model.config.num_hidden_layers == len(HOPS)
    found = ours(stack, path, scale)
    np.testing.assert_allclose(logits_of(model), found, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(walk(models, HOPS, SCALES, scale), found, atol=1e-4, rtol=1e-4)
    # It is an ordinary checkpoint for us, too.
    again = Stack([Checkpoint(tmp_path / "out")])
    np.testing.assert_allclose(ours(again, Route.of(range(len(HOPS))), scale), found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama-biases", "smollm2", "gemma3"])
def test_delta_scales_fold_whatever_eps(family, sources, tmp_path):
    _, folders = sources(family, eps=1e-2)
    checkpoints = [Checkpoint(f) for f in folders]
    stack, path = Stack(checkpoints), Route.of(HOPS, SCALES)
    model = export(tmp_path / "out", stack, path, "delta", checkpoints[0])
    np.testing.assert_allclose(logits_of(model), ours(stack, path, "delta"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("scale", "dtype", "smallest", "eps", "limit"),
    [
        ("delta", "float32", 0.05, None, 1e-5),
        ("stream", "float32", 0.5, None, 1e-4),
        ("stream", "float32", 0.05, None, 1e-2),  # what eps does: without it, as below, nothing of this is left
        ("stream", "float32", 0.05, 1e-12, 2e-5),
        ("delta", "bfloat16", 0.05, None, 0.05),
        ("stream", "bfloat16", 0.05, None, 0.05),
    ],
)
def test_trained_models(scale, dtype, smallest, eps, limit, tmp_path):
    """A path through three miniatures; the largest error of a logit, in standard deviations of logits."""
    checkpoints = []
    for name in ("addition", "japanese", "mathematics"):
        shutil.copytree(MINIATURES / name, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["rms_norm_eps"] = eps or config["rms_norm_eps"]
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        checkpoints.append(Checkpoint(tmp_path / name))
    stack = Stack(checkpoints)
    path = Route.of([0, 1, 5, 2, 6, 9, 10, 2, 3], [0.9, 1.2, -0.7, 1.1, smallest, 1.3, -2.0, 1.0, 0.8], slots=12)
    found = ours(stack, path, scale)
    model = export(tmp_path / "out", stack, path, scale, checkpoints[0], dtype)
    assert np.abs(logits_of(model.float()) - found).max() < limit * found.std()


def test_stories_with_repeats(stories260k, tmp_path):
    checkpoint = Checkpoint(stories260k)
    stack = Stack([checkpoint])
    tokens = np.array([[1, 403, 407, 261, 378, 40, 50, 60]], np.int32)
    path = Route.of([0, 1, 2, 1, 2, 3, 3, 4], [1.0, 0.8, -1.2, 0.9, 1.5, -0.7, 1.0, 1.1])
    found = ours(stack, path, "stream", tokens)
    model = export(tmp_path / "out", stack, path, "stream", checkpoint)
    assert np.abs(logits_of(model, tokens) - found).max() < 1e-4 * found.std()


def test_scales_of_powers_of_two_fold_exactly_in_bfloat16(tmp_path):
    """Neither signs nor exponents are rounded: unfolding gives back every bit."""
    checkpoint = Checkpoint(MINIATURES / "japanese")
    stack, path = Stack([checkpoint]), Route.of([0, 2, 1, 3], [1.0, -0.5, 4.0, -1.0])
    export(tmp_path / "out", stack, path, "stream", checkpoint, "bfloat16")
    written = Checkpoint(tmp_path / "out")
    for name, factor in (("self_attn.o_proj", [1, -2, -0.5, 0.5]), ("mlp.up_proj", [1, -1, -1, 1])):
        for t, block in enumerate([0, 2, 1, 3]):
            original = checkpoint.tensor(f"model.layers.{block}.{name}.weight").astype(np.float32)
            folded = written.tensor(f"model.layers.{t}.{name}.weight").astype(np.float32)
            np.testing.assert_array_equal(folded, factor[t] * original)


def test_what_is_in_memory_folds_like_what_is_on_disk(tmp_path):
    """Merged models are folded without being written first."""
    checkpoint = Checkpoint(MINIATURES / "japanese")
    stack, path = Stack([checkpoint]), Route.of([0, 2, 1, 3], [1.1, -0.5, 3.0, -1.0])
    leaves = flatten(stack.load())
    folding = stack.model.fold(path)
    for name, read in (
        ("disk", stack.read),
        ("memory", lambda path, block, rest: leaves[path] if block is None else leaves[path][block]),
    ):
        with export_folder(tmp_path / name) as folder:
            write_folded(folder, stack.model, folding, read, "bfloat16")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("disk", "memory")]
    assert files[0] == files[1]


def test_weights_too_large_for_the_dtype(tmp_path):
    checkpoint = Checkpoint(MINIATURES / "japanese")
    stack = Stack([checkpoint])
    folding = stack.model.fold(Route.of([0, 1, 2, 3], [1.0, 1e-7, 1.0, 1.0]))
    with pytest.raises(InputError, match=r"down_proj.*too large for float16.*write bfloat16.*scales closer to 1"):
        write_folded(tmp_path, stack.model, folding, stack.read, "float16")


def test_models_that_compute_different_functions_make_no_stack(tmp_path):
    make("mistral", tmp_path / "windowed")
    make("mistral-full", tmp_path / "full")
    with pytest.raises(InputError, match=r"differ in kinds \(config.json\)"):
        Stack([Checkpoint(tmp_path / "windowed"), Checkpoint(tmp_path / "full")])


def test_the_others_vocabulary_does_not_matter(tmp_path):
    checkpoint = Checkpoint(MINIATURES / "japanese")
    params = checkpoint.load()
    params["embed_tokens"]["weight"] = params["embed_tokens"]["weight"][:100]
    smaller = checkpoint.model.resized(vocab=100)
    (tmp_path / "m").mkdir()
    write_model(tmp_path / "m", smaller.files, smaller.specs, "bfloat16", tensors_of(params))
    stack = Stack([checkpoint, Checkpoint(tmp_path / "m")])
    tokens = np.array([[1, 300, 500, 7]], np.int32)
    path = Route.of([0, 5, 6, 3])
    assert ours(stack, path, "stream", tokens).shape == (1, 4, 512)
    same = ours(Stack([checkpoint]), Route.of([0, 1, 2, 3]), "stream", tokens)
    np.testing.assert_array_equal(ours(stack, path, "stream", tokens), same)


@pytest.mark.parametrize("repeated", [False, True])
def test_text_generated_along_a_path_is_that_of_the_exported_folder(repeated, tmp_path):
    """Greedily, with trained models, of a padded batch, with a cache per hop and with as few slots as needed."""
    checkpoints = [Checkpoint(MINIATURES / name) for name in ("mathematics", "addition")]
    stack = Stack(checkpoints)
    space = PathSpace(("mathematics", "addition"), (4, 4), repeats=3)
    first, second = ("mathematics", "addition")
    hops = [Hop(first, 0), Hop(first, 1, 1.1), Hop(second, 2, 0.9), Hop(first, 3)]
    if repeated:
        hops = [*hops[:2], Hop(first, 1, 0.8), *hops[2:], *(Hop(second, 3, 0.7), Hop(first, 3, 1.2))]
    genome = jnp.asarray(encode(space, hops), jnp.float32)
    routed = Routed(stack.load(), space, "stream")
    slots = routed.slots(np.asarray(genome)[None])
    assert routed.model(None, genome, slots).route.layers.shape == (16,)  # of 25
    tokenizer = AutoTokenizer.from_pretrained(MINIATURES / "base")
    prompts = json_lines(MINIATURES.parent / "data" / "two_skills_heldout.jsonl", "prompt")[:24]
    padded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="np")
    texts = padded["input_ids"].astype(np.int32), padded["attention_mask"].astype(bool)
    batch = Prompts(*texts, np.int32(16), np.array([tokenizer.eos_token_id], np.int32))

    @jax.jit
    def write(routed, genome, batch):
        return generate(routed.model(None, genome, slots), stack.model, batch, 16)

    written = np.asarray(write(routed, genome, batch))
    exported = export(tmp_path / "out", stack, express_path(space, genome), "stream", checkpoints[0])
    with torch.no_grad():
        tensors = {k: torch.tensor(v) for k, v in padded.items() if k != "token_type_ids"}
        expected = exported.generate(**tensors, do_sample=False, max_new_tokens=16)[:, padded["input_ids"].shape[1] :]
    texts = [tokenizer.batch_decode(np.asarray(t), skip_special_tokens=True) for t in (written, expected)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5


def json_lines(path, key):
    return [json.loads(line)[key] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("scale", "dtype", "written"), [(1.0, None, "bfloat16"), (0.9, None, "float32"), (0.9, "bfloat16", "bfloat16")]
)
def test_scaled_weights_are_not_rounded_unless_that_is_wanted(scale, dtype, written, tmp_path):
    problem = PathProblem(PathSearch(models=(str(MINIATURES / "addition"),), repeats=1, dtype=dtype))
    hops = [Hop("addition", 0), Hop("addition", 1), Hop("addition", 2, scale), Hop("addition", 3)]
    problem.export(encode(problem.space, hops), tmp_path / "out")
    assert Checkpoint(tmp_path / "out").dtype() == written
