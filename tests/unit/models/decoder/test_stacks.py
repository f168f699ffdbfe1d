"""Blocks of several kinds: one stack each, in every way in which a decoder is run, merged and folded."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.devices.collectives import collectives
from jevomerge.devices.mesh import make_mesh, spread
from jevomerge.methods.bank import Merge, build, in_scan, make_bank
from jevomerge.methods.registry import get_method
from jevomerge.models.decoder.blocks import init
from jevomerge.models.decoder.config import DecoderConfig, Delta, LayerKind, Mixture
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.delta import delta_rule
from jevomerge.models.decoder.experts import grouped
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.decoder.stacks import repetition
from jevomerge.models.model import apply
from jevomerge.models.route import Route
from jevomerge.models.specs import flatten, shardings, unflatten

CONFIG = DecoderConfig(
    vocab_size=53,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    kinds=(
        LayerKind(None, stack="linear", mixer="delta"),
        LayerKind(Rope(partial=0.5), stack="full_sparse", sparse=True),
        LayerKind(Rope(partial=0.5), window=3, stack="full_sparse", sparse=True),
    ),
    layer_kinds=(0, 0, 1, 0, 0, 2),
    mixture=Mixture(experts=4, active=2, size=16, renormalise=True, shared=8, shared_gate=True),
    delta=Delta(key_heads=2, value_heads=4, key_dim=8, value_dim=4, kernel=3),
    query_gate=True,
)
HYBRID = Decoder(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 53, (3, 9), dtype=np.int32)
VALID = np.arange(9) >= np.array([[0], [4], [1]])  # padded on the left
SOURCES = 2


@functools.cache
def random_params(seed=0, model=HYBRID):
    leaves, tree = jax.tree.flatten(jax.jit(lambda k: nn.unbox(init(k, model.config)))(jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


run = jax.jit(apply, static_argnums=1, static_argnames=("layer", "scale"))


def hidden(params, route=None, model=HYBRID, **options):
    return np.asarray(run(params, model, TOKENS, VALID, route=route, **options)[0])[VALID]


def test_what_repeats_is_scanned_over():
    assert repetition("dmmmm") == (1, 1, 4)
    assert repetition("lllflllf") == (0, 4, 2)
    assert repetition("a") == (0, 1, 1)
    first, period, times = repetition("ccfccfcccfccfcf")
    assert "ccfccfcccfccfcf"[first : first + period * times] == "ccfccfcccfccfcf"[first : first + period] * times


def test_each_tensor_has_its_layers_number_and_the_genes_group():
    names = {name: spec for spec in HYBRID.specs for name in spec.names()}
    assert names["model.layers.3.linear_attn.in_proj_qkv.weight"].component == "linear_attention"
    assert names["model.layers.5.mlp.experts.3.down_proj.weight"].component == "experts"
    assert names["model.layers.5.mlp.gate.weight"].component == "router"
    assert names["model.layers.2.mlp.shared_expert.up_proj.weight"].component == "mlp"
    assert "model.layers.2.linear_attn.out_proj.weight" not in names
    assert {spec.layers_in_all for spec in HYBRID.specs if spec.stack} == {6}


def test_layers_one_by_one_are_the_model():
    """The scan over what repeats, against a route, which picks each block by its number."""
    params = random_params()
    np.testing.assert_allclose(hidden(params, Route.of(range(6), slots=8)), hidden(params), atol=5e-6)
    swapped = HYBRID.resized([1, 0, 0, 2, 0, 0])
    stacks = {"linear": (1, 2, 4, 5), "full_sparse": (0, 3)}
    assert swapped.config.stacks == stacks
    np.testing.assert_allclose(hidden(params, Route.of([2, 0, 1, 5, 3, 4])), hidden(params, model=swapped), atol=5e-6)


@pytest.mark.parametrize("route", [None, Route.of([0, 2, 2, 3, 5], [1.0, -0.5, 1.2, 1.0, 0.8], slots=6)])
def test_cached_decoding_is_the_full_forward_pass(route):
    params = random_params()
    full = hidden(params, route)
    cache, steps = HYBRID.cache(3, 12, jnp.float32, route), []
    for start, stop in [(0, 5), *((i, i + 1) for i in range(5, 9))]:
        step, cache = run(params, HYBRID, TOKENS[:, start:stop], VALID[:, start:stop], cache, route=route)
        steps.append(np.asarray(step))
    np.testing.assert_allclose(np.concatenate(steps, axis=1)[VALID], full, atol=2e-5)


def test_cached_decoding_of_blocks_that_are_taken_apart_is_the_full_forward_pass():
    params = random_params()
    model, apart = HYBRID.taken_apart(params)
    assert [jax.tree.leaves(b)[0].ndim for b in apart["layers"]["linear"]] == [1] * 4
    cache, steps = model.cache(3, 12, jnp.float32), []
    assert not [x for x in jax.tree.leaves(cache.memory) if x.shape[0] != 3]  # (B, ...): no stack
    for start, stop in [(0, 5), *((i, i + 1) for i in range(5, 9))]:
        step, cache = run(apart, model, TOKENS[:, start:stop], VALID[:, start:stop], cache)
        steps.append(np.asarray(step))
    np.testing.assert_allclose(np.concatenate(steps, axis=1)[VALID], hidden(params), atol=2e-5)


@pytest.mark.slow
def test_merging_in_the_scan_is_merging_before_it_whatever_the_mesh():
    merge, specs = Merge(get_method("linear")), HYBRID.specs
    keys = {s.path: np.zeros((*s.leading, SOURCES, 2), np.uint32) for s in specs}
    rng = np.random.default_rng(1)
    numbers = {
        s.path: {
            "weight": jnp.asarray(rng.uniform(0.2, 1, (*s.leading, SOURCES)), jnp.float32),
            "normalize": jnp.ones(s.leading),
        }
        for s in specs
    }
    sources = [random_params(0), random_params(7)]
    expected = hidden(build(merge, make_bank(merge, specs, sources, None, keys), numbers))
    mesh = make_mesh(1, 4, jax.devices()[:4])
    where = unflatten(shardings(mesh, specs))
    split = [jax.device_put(source, where) for source in sources]
    experts = split[0]["layers"]["full_sparse"]["mlp"]["experts"]["up_proj"]["weight"]
    assert {shard.data.shape for shard in experts.addressable_shards} == {(2, 1, 16, 32)}  # one expert of four
    for found in (sources, split):
        bank = make_bank(merge, specs, found, None, keys, None if found is sources else mesh)

        @jax.jit
        def inside(bank, numbers):
            params, layer = in_scan(merge, bank, numbers)
            return apply(params, HYBRID, TOKENS, VALID, layer=layer)[0]

        np.testing.assert_allclose(np.asarray(inside(bank, numbers))[VALID], expected, atol=3e-5)


@pytest.mark.parametrize(
    ("experts", "part"), [(8, (2, 2, 16, 32)), pytest.param(6, (2, 6, 4, 32), marks=pytest.mark.slow)]
)
def test_experts_on_four_devices_give_what_one_gives(experts, part):
    """Each has whole experts or, where their number cannot be divided, a part of each; for two members at once."""
    model = Decoder(dataclasses.replace(CONFIG, mixture=dataclasses.replace(CONFIG.mixture, experts=experts)))
    params, mesh = random_params(model=model), make_mesh(1, 4, jax.devices()[:4])
    split = jax.device_put(params, unflatten(shardings(mesh, model.specs)))
    up = split["layers"]["full_sparse"]["mlp"]["experts"]["up_proj"]["weight"]
    assert {shard.data.shape for shard in up.addressable_shards} == {part}

    def member(params, factor):
        return params | {"embed_tokens": {"weight": params["embed_tokens"]["weight"] * factor}}

    def members(params, factors):
        return jax.vmap(lambda factor: apply(member(params, factor), model, TOKENS, VALID)[0])(factors)

    factors = np.array([1, -3], np.float32)
    compiled = jax.jit(spread(mesh, members)).lower(split, factors).compile()
    for factor, found in zip(factors, np.asarray(compiled(split, factors)), strict=True):
        np.testing.assert_allclose(found[VALID], hidden(member(params, factor), model=model), atol=3e-5)
    gathered = [c for c in collectives(compiled.as_text(), mesh) if c.kind == "all-gather"]
    assert all(c.bytes < up.nbytes / 4 for c in gathered)  # no expert goes from one device to another


def test_a_path_through_them_folds():
    model = Decoder(dataclasses.replace(CONFIG, rms_norm_eps=1e-12))
    params, path = random_params(model=model), Route.of([0, 2, 2, 3, 5], [0.9, -0.5, 1.2, -1.0, 0.8])
    folding = model.fold(path)
    ordinary = Decoder(folding.config)
    leaves = {path: np.asarray(x) for path, x in flatten(params).items()}
    rows = {spec.path: {layer: row for row, layer in enumerate(spec.layers)} for spec in model.specs if spec.stack}
    folded = {}
    for spec in ordinary.specs:
        if spec.stack:
            found = [
                folding.tensor(spec.path, t, leaves[spec.path][rows[spec.path][folding.blocks[t]]]) for t in spec.layers
            ]
            folded[spec.path] = np.stack(found)
        else:
            folded[spec.path] = folding.tensor(spec.path, None, leaves[spec.path])
    np.testing.assert_allclose(hidden(unflatten(folded), model=ordinary), hidden(params, path, model), atol=5e-5)


def test_the_delta_rule_is_its_recurrence():
    """In float64 token by token, over more than one chunk."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 150, 3, n)) for n in (4, 4, 5))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay, beta = -rng.uniform(0, 2, (2, 150, 3)), rng.uniform(0, 1, (2, 150, 3))
    state, y = rng.normal(size=(2, 3, 4, 5)), []
    arguments = [jnp.asarray(x, jnp.float32) for x in (q, k, v, decay, beta, state)]
    for t in range(150):
        state = state * np.exp(decay[:, t])[..., None, None]
        missed = (v[:, t] - np.einsum("bnkv,bnk->bnv", state, k[:, t])) * beta[:, t, :, None]
        state = state + np.einsum("bnk,bnv->bnkv", k[:, t], missed)
        y.append(np.einsum("bnkv,bnk->bnv", state, q[:, t]))
    found, last = jax.jit(delta_rule)(*arguments)
    np.testing.assert_allclose(found, np.stack(y, 1), atol=1e-4)
    np.testing.assert_allclose(last, state, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 50])
def test_grouped_tokens_are_computed_by_their_experts(tokens):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(tokens, 6)), rng.normal(size=(5, 6, 6))
    chosen = np.stack([rng.permutation(5)[:2] for _ in range(tokens)]).astype(np.int32)
    chosen[: tokens // 2] = [0, 4]  # one expert has most, others have none
    shares = rng.uniform(size=(tokens, 2))
    w, *rest = (jnp.asarray(a, jnp.float32) for a in (weights, x, shares))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def some(first, stop, x, s):
        return grouped(lambda w, x: jnp.swapaxes(w, -1, -2) @ x, w[first:stop], x, jnp.asarray(chosen) - first, s, 5)

    expected = sum(shares[:, i, None] * np.einsum("td,tde->te", x, weights[chosen[:, i]]) for i in range(2))
    np.testing.assert_allclose(some(0, 5, *rest), expected, atol=1e-4)
    np.testing.assert_allclose(some(0, 2, *rest) + some(2, 5, *rest), expected, atol=1e-4)


def test_a_router_that_is_merged_is_told_from_experts_that_are():
    """Of two models that differ in both, neither half of a merge is the other."""
    a, b = (flatten(random_params(seed)) for seed in (0, 7))
    component = {spec.path: spec.component for spec in HYBRID.specs}

    def mixed(which):
        leaves = {p: (a[p] + b[p]) / 2 if component[p] == which else a[p] for p in a}
        return hidden(unflatten(leaves))

    plain, router, experts = hidden(unflatten(a)), mixed("router"), mixed("experts")
    for one, other in ((plain, router), (plain, experts), (router, experts)):
        assert np.abs(one - other).max() > 1e-3
