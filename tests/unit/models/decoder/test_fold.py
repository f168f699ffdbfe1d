"""Paths through a stack of blocks: what they compute, what they cost, what cannot be folded."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge import InputError
from jevomerge.methods.bank import Merge, build, in_scan, make_bank
from jevomerge.methods.registry import get_method
from jevomerge.models.decoder.blocks import init
from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.readers.gemma import SANDWICH
from jevomerge.models.decoder.readers.olmo import BEHIND
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.model import apply, unembed
from jevomerge.models.route import Route
from jevomerge.models.specs import flatten, unflatten

CONFIG = DecoderConfig(
    vocab_size=53,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    kinds=(LayerKind(Rope()),),
    layer_kinds=(0,) * 5,
)
GEMMA = dataclasses.replace(
    CONFIG,
    kinds=(LayerKind(Rope(theta=1e6)), LayerKind(Rope(), window=3)),
    layer_kinds=(1, 0, 1, 1, 0),
    norm_plus_one=True,
    norms=SANDWICH,
    qk_norm="head",
    tie_word_embeddings=True,
    embed_scale=32**0.5,
)
OLMO2 = dataclasses.replace(CONFIG, norms=BEHIND, qk_norm="whole")
NEOX = dataclasses.replace(
    CONFIG, num_key_value_heads=4, norm="layer", norm_bias=True, parallel=True, fused_qkv="heads", gated=False
)
LLAMA = Decoder(CONFIG)
CONFIGS = {"llama": LLAMA, "gemma": Decoder(GEMMA)}
TOKENS = np.random.default_rng(0).integers(0, 53, (3, 9), dtype=np.int32)
VALID = np.arange(9) >= np.array([[0], [4], [1]])  # padded on the left
HOPS, SCALES = [0, 3, 3, 1, 2, 0, 4], [0.8, -1.2, 0.5, 1.0, 1.7, -0.6, 1.1]


@functools.partial(jax.jit, static_argnums=0)
def random_params(config, seed=0):
    params = nn.unbox(init(jax.random.key(seed), config.config))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def hidden(config, path=None, params=None, **options):
    params = random_params(config) if params is None else params
    run = jax.jit(apply, static_argnums=1, static_argnames=("scale", "dtype"))
    return np.asarray(run(params, config, TOKENS, VALID, route=path, **options)[0])[VALID]


@pytest.mark.parametrize(
    ("scale", "dtype", "tolerance"),
    [("stream", jnp.float32, 5e-6), ("delta", jnp.float32, 5e-6), ("stream", jnp.bfloat16, 2e-2)],
)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_path_through_all_layers_is_the_plain_model(config, dtype, scale, tolerance):
    plain = hidden(config, dtype=dtype).astype(np.float32)
    found = hidden(config, Route.of(range(5), slots=8), dtype=dtype, scale=scale).astype(np.float32)
    np.testing.assert_allclose(found, plain, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_two_meanings_of_a_scale_differ_and_agree_at_the_first_hop(config):
    found = {s: hidden(config, Route.of(HOPS, SCALES), scale=s) for s in ("stream", "delta")}
    assert np.abs(found["stream"] - found["delta"]).max() > 0.1
    first = Route.of(HOPS, [-0.3] + [1.0] * 6)
    np.testing.assert_allclose(hidden(config, first, scale="stream"), hidden(config, first, scale="delta"), atol=5e-6)


def test_scales_are_not_rounded_to_the_dtype_of_the_activations():
    """Folding divides by them; bfloat16 makes 1.296875 of 1.3."""
    params = random_params(LLAMA)
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])  # blocks add nothing: the scales remain
    linear = Decoder(dataclasses.replace(CONFIG, rms_norm_eps=1e4))  # a norm that shows its input's size
    scaled, plain = (
        hidden(linear, Route.of([0, 0], [1.0, s]), params, dtype=jnp.bfloat16).astype(np.float64) for s in (1.3, 1.0)
    )
    np.testing.assert_allclose(np.abs(scaled).sum() / np.abs(plain).sum(), 1.3, atol=1e-3)


@pytest.mark.parametrize("scale", ["stream", "delta"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_cached_decoding_of_a_path_with_repeats_is_the_full_forward_pass(config, scale):
    params, path = random_params(config), Route.of(HOPS, SCALES, slots=10)
    full = hidden(config, path, params, scale=scale)
    cache = config.cache(3, 12, jnp.float32, path)
    assert cache.memory[""][0].shape[0] == 10
    run = jax.jit(apply, static_argnums=1, static_argnames="scale")
    steps = []
    for start, stop in [(0, 4), (4, 5), (5, 7), (7, 8), (8, 9)]:
        step, cache = run(params, config, TOKENS[:, start:stop], VALID[:, start:stop], cache, route=path, scale=scale)
        steps.append(np.asarray(step))
    np.testing.assert_allclose(np.concatenate(steps, axis=1)[VALID], full, atol=2e-5)


def test_slots_beyond_the_length_are_never_run():
    params = random_params(LLAMA)
    params["layers"] = jax.tree.map(lambda x: x.at[4].set(jnp.nan), params["layers"])
    path = Route.of([0, 2, 1, 4], [1.0, 0.5, 2.0, jnp.nan])
    assert np.isnan(hidden(LLAMA, path, params)).all()
    short = path.replace(length=jnp.asarray(3, jnp.int32))
    np.testing.assert_array_equal(
        hidden(LLAMA, short, params), hidden(LLAMA, Route.of([0, 2, 1], [1.0, 0.5, 2.0]), params)
    )


def test_one_trace_serves_every_length_order_and_scale():
    params, traces = random_params(LLAMA), 0

    @jax.jit
    def run(path):
        nonlocal traces
        traces += 1
        return apply(params, LLAMA, TOKENS, VALID, route=path)[0]

    results = [run(Route.of(h, slots=12)) for h in ([0], [0, 1, 2, 3, 4], [4, 4, 4], [0] * 12)]
    results.append(run(Route.of(HOPS, SCALES, slots=12)))
    assert traces == 1
    assert len({np.asarray(r).tobytes() for r in results}) == len(results)


@pytest.mark.parametrize("cached", [False, True])
def test_temporaries_do_not_grow_with_slots(cached):
    params = jax.eval_shape(lambda: random_params(LLAMA))

    def memory(slots):
        path = Route.of([0], slots=slots)
        cache = LLAMA.cache(3, 9, jnp.float32, path) if cached else None
        run = jax.jit(lambda params, path, cache: apply(params, LLAMA, TOKENS, VALID, cache, route=path))
        return run.lower(params, path, cache).compile().memory_analysis().temp_size_in_bytes

    assert memory(512) <= memory(8) + 64


def test_merged_blocks_are_hops():
    """Merging inside the path gives the path through the merged model."""
    merge, specs = Merge(get_method("linear")), LLAMA.specs
    keys = {s.path: np.zeros((*([5] if s.stack else []), 2, 2), np.uint32) for s in specs}
    bank = make_bank(merge, specs, [random_params(LLAMA, 0), random_params(LLAMA, 7)], None, keys)
    shape = {s.path: ([5] if s.stack else []) for s in specs}
    rng = np.random.default_rng(1)
    numbers = {
        p: {"weight": jnp.asarray(rng.uniform(size=(*n, 2)), jnp.float32), "normalize": jnp.ones(n)}
        for p, n in shape.items()
    }
    path = Route.of(HOPS, SCALES, slots=9)
    params, layer = in_scan(merge, bank, numbers)
    run = jax.jit(lambda params, path: apply(params, LLAMA, TOKENS, VALID, layer=layer, route=path)[0])
    expected = hidden(LLAMA, path, build(merge, bank, numbers))
    np.testing.assert_allclose(np.asarray(run(params, path))[VALID], expected, atol=1e-5)


def test_without_a_path_gradients_flow():
    def loss(params):
        return jnp.sum(apply(params, LLAMA, TOKENS, VALID)[0] ** 2)

    gradients = jax.jit(jax.grad(loss))(random_params(LLAMA))
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradients["layers"]))


@pytest.mark.parametrize(
    ("scales", "scale", "hop"),
    [
        ([1.0, 0.0, 1.0], "stream", 1),
        ([0.0, 1.0, 1.0], "delta", 0),
        ([0.0, 1.0, 1.0], "stream", 0),
        ([1.0, 1.0, np.nan], "stream", 2),
        ([1.0, np.inf, 1.0], "delta", 1),
        ([1.0, 1e-20, 1e-20], "stream", 2),
        ([1.0, 1e20, 1e20], "stream", 2),
    ],
)
def test_scales_that_cannot_be_folded(scales, scale, hop):
    with pytest.raises(InputError, match=rf"hop {hop} .* keep the scales away from zero"):
        LLAMA.fold(Route.of([0, 1, 2], scales), scale)


def test_a_delta_scale_of_zero_folds():
    folding = LLAMA.fold(Route.of([0, 1, 2], [1.0, 0.0, 1.0]), "delta")
    assert folding.mlp.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("hops", [[0, 5], [-1]])
def test_a_path_outside_the_stack(hops):
    with pytest.raises(InputError, match=f"visits block {hops[-1]}; the stack has 5"):
        LLAMA.fold(Route.of(hops))


@pytest.mark.parametrize("length", [0, 4])
def test_a_length_that_the_slots_do_not_have(length):
    path = Route.of([0, 1, 2]).replace(length=jnp.asarray(length, jnp.int32))
    with pytest.raises(InputError, match=f"3 slots cannot have {length} hops"):
        LLAMA.fold(path)


def test_a_folded_path_keeps_what_need_not_change_bit_for_bit():
    folding = LLAMA.fold(Route.of([0, 1, 2], [1.0, -1.0, 1.0]))
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    same = ("embed_tokens.weight", "lm_head.weight")
    assert all(np.array_equal(folding.tensor(p, None, x), x) for p in same)
    for path, factors in {
        "layers.self_attn.q_proj.weight": (1, -1, -1),
        "layers.self_attn.q_proj.bias": (1, 1, 1),
        "layers.mlp.gate_proj.weight": (1, -1, -1),
        "layers.self_attn.o_proj.weight": (1, -1, -1),
        "layers.self_attn.o_proj.bias": (1, -1, -1),
        "layers.mlp.down_proj.bias": (1, -1, -1),
        "layers.input_layernorm.weight": (1, 1, 1),
        "layers.post_attention_layernorm.weight": (1, 1, 1),
    }.items():
        for t, factor in enumerate(factors):
            np.testing.assert_array_equal(folding.tensor(path, t, x), factor * x, err_msg=f"{path} {t}")
    np.testing.assert_array_equal(folding.tensor("norm.weight", None, x), -x)


@pytest.mark.parametrize("config", [OLMO2, NEOX], ids=["olmo2", "neox"])
def test_what_is_read_without_a_norm_and_norms_with_a_bias_fold(config):
    """Through a small eps: what a norm's eps does is another test's."""
    stack = Decoder(dataclasses.replace(config, rms_norm_eps=1e-12))
    params, path = random_params(stack), Route.of(HOPS, SCALES)
    folding = stack.fold(path)
    leaves = {path: np.asarray(x) for path, x in flatten(params).items()}
    specs = Decoder(folding.config).specs
    folded = {
        s.path: np.stack([folding.tensor(s.path, t, leaves[s.path][b]) for t, b in enumerate(folding.blocks)])
        if s.stack
        else folding.tensor(s.path, None, leaves[s.path])
        for s in specs
    }
    ordinary = Decoder(folding.config)
    found = unembed(unflatten(folded), ordinary, hidden(ordinary, params=unflatten(folded)))
    expected = unembed(params, stack, hidden(stack, path, params))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert {1.0, -1.0} == set(folding.reading.tolist())
