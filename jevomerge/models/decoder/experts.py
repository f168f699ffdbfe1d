"""Mixtures of experts (Shazeer et al., 2017): a router that chooses a few of many MLPs for each token.

Dimensions in comments: T tokens, D hidden, E experts, k of them active, F inside of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.models.decoder.config import DecoderConfig, Mixture
from jevomerge.models.decoder.mlp import Mlp
from jevomerge.models.layers import ACTIVATIONS, Linear, declare

LARGEST = 64  # rows of a block of tokens that one expert computes


class SparseMlp(nn.Module):
    """A mixture of experts in the place of an MLP; what all tokens share is added."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, T, D) -> (B, T, D)."""
        m = self.config.mixture
        assert m is not None
        tokens = x.reshape(-1, x.shape[-1])
        chosen, shares = Router(m, name="gate")(tokens)
        y = Experts(self.config, name="experts")(tokens, chosen, shares).reshape(x.shape)
        if m.shared:
            common = Mlp(self.config, m.shared, name="shared_expert")(x)
            if m.shared_gate:
                common = jax.nn.sigmoid(Linear(1, ("", "embed"), name="shared_expert_gate")(x)) * common
            y = y + common
        return y


class Router(nn.Module):
    """Which experts a token is sent to, and their shares."""

    mixture: Mixture

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(T, D) -> (T, k) int32 experts and (T, k) float32 shares."""
        m = self.mixture
        weight = declare(self, "weight", nn.initializers.normal(0.02), (m.experts, x.shape[-1]), ("router", "embed"))
        scores = jnp.einsum("td,ed->te", x, weight.astype(x.dtype)).astype(jnp.float32)
        if m.router_bias:
            scores = scores + declare(self, "bias", nn.initializers.zeros, (m.experts,), ("router",))[None]
        if m.router == "chosen":
            best, chosen = jax.lax.top_k(scores, m.active)
            return chosen, jax.nn.softmax(best, axis=-1)
        if m.router == "softmax":
            shares, chosen = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), m.active)
            return chosen, shares / jnp.sum(shares, axis=-1, keepdims=True) if m.renormalise else shares
        # DeepSeek V3: a bias that the loads have taught only helps to choose, first groups of experts, then experts.
        scores = jax.nn.sigmoid(scores)
        bias = declare(self, "e_score_correction_bias", nn.initializers.zeros, (m.experts,), ("router",))
        wanted = scores + bias.astype(jnp.float32)[None]
        groups = wanted.reshape(-1, m.groups, m.experts // m.groups)
        of_groups = jnp.sum(jax.lax.top_k(groups, min(2, groups.shape[-1]))[0], axis=-1)
        _, best_groups = jax.lax.top_k(of_groups, m.active_groups)
        allowed = jnp.any(best_groups[:, :, None] == jnp.arange(m.groups)[None, None], axis=1)
        wanted = jnp.where(allowed[:, :, None], groups, -jnp.inf).reshape(wanted.shape)
        _, chosen = jax.lax.top_k(wanted, m.active)
        shares = jnp.take_along_axis(scores, chosen, axis=-1)
        if m.renormalise:
            shares = shares / (jnp.sum(shares, axis=-1, keepdims=True) + 1e-20)
        return chosen, shares * m.scaling


class Matrices(nn.Module):
    """One matrix of all experts, and their biases."""

    shape: tuple[int, int, int]
    axes: tuple[str, str, str]
    use_bias: bool = False

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        """(E, ...) each."""
        weight = declare(self, "weight", nn.initializers.normal(0.02), self.shape, self.axes)
        if not self.use_bias:
            return weight, None
        shape = (self.shape[0], self.shape[-1])
        return weight, declare(self, "bias", nn.initializers.zeros, shape, (self.axes[0], self.axes[-1]))


class Experts(nn.Module):
    """The experts, in the form in which they are stored: `Mixture.stored`."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array, chosen: Array, shares: Array) -> Array:
        """(T, D), (T, k), (T, k) -> (T, D)."""
        m, width = self.config.mixture, x.shape[-1]
        assert m is not None
        n, f, act = m.experts, m.size, ACTIVATIONS[self.config.hidden_act]
        if m.stored == "transposed":  # as rows are multiplied, gate and up in turn, with biases
            (inward, first), (outward, last) = (
                Matrices((n, width, 2 * f), ("expert", "embed", "expert_ff"), True, name="gate_up_proj")(),
                Matrices((n, f, width), ("expert", "expert_ff", "embed"), True, name="down_proj")(),
            )
            assert first is not None
            assert last is not None

            def run(x: Array, e: Array) -> Array:
                both = x @ inward[e].astype(x.dtype) + first[e].astype(x.dtype)[None]
                gate = jnp.minimum(both[:, 0::2], m.limit)
                up = jnp.clip(both[:, 1::2], -m.limit, m.limit)
                y = (up + 1) * gate * jax.nn.sigmoid(m.alpha * gate)
                return y @ outward[e].astype(x.dtype) + last[e].astype(x.dtype)[None]

            return grouped(run, x, chosen, shares, n)
        one = "experts" if m.stored == "each" else "expert"  # a tensor of each expert's own, or one of all
        outward, _ = Matrices((n, width, f), (one, "embed", "expert_ff"), name="down_proj")()
        if m.stored == "each":
            gates, _ = Matrices((n, f, width), (one, "expert_ff", "embed"), name="gate_proj")()
            ups, _ = Matrices((n, f, width), (one, "expert_ff", "embed"), name="up_proj")()

            def inside(x: Array, e: Array) -> tuple[Array, Array]:
                return _linear(x, gates[e]), _linear(x, ups[e])
        else:
            boths, _ = Matrices((n, 2 * f, width), (one, "expert_ff", "embed"), name="gate_up_proj")()

            def inside(x: Array, e: Array) -> tuple[Array, Array]:
                gate, up = jnp.split(_linear(x, boths[e]), 2, axis=-1)
                return gate, up

        def gated(x: Array, e: Array) -> Array:
            gate, up = inside(x, e)
            return _linear(act(gate) * up, outward[e])

        return grouped(gated, x, chosen, shares, n)


def _linear(x: Array, weight: Array) -> Array:
    return jnp.einsum("ti,oi->to", x, weight.astype(x.dtype))


def grouped(run: Callable[[Array, Any], Array], x: Array, chosen: Array, shares: Array, experts: int) -> Array:
    """The sum over a token's experts of share x what the expert makes of it.

    The tokens of each expert are laid into blocks of equal size, filled up with others, and computed block by block:
    with E experts at most E blocks more than there are full ones. (`jax.lax.ragged_dot` multiplies all tokens by all
    experts on a CPU, and cannot be vmapped over members in jax 0.10.)

    Args:
        run: (rows, D) and an expert's number -> (rows, D).
        x: (T, D).
        chosen: (T, k) int32.
        shares: (T, k).
        experts: E.
    """
    tokens, active = chosen.shape
    pairs = tokens * active
    size = min(LARGEST, 1 << max(0, round(np.log2(max(1, pairs / experts)))))
    most = min(pairs, pairs // size + experts)  # blocks
    flat = chosen.reshape(-1)
    mine = (flat[:, None] == jnp.arange(experts, dtype=flat.dtype)[None]).astype(jnp.int32)  # (T k, E)
    before = jnp.take_along_axis(jnp.cumsum(mine, axis=0), flat[:, None], axis=1)[:, 0] - 1
    blocks = -(-jnp.sum(mine, axis=0) // size)
    ends = jnp.cumsum(blocks)
    place = (ends - blocks)[flat] * size + before  # of each pair among all rows of all blocks
    rows = jnp.zeros(most * size, jnp.int32).at[place].set(jnp.arange(pairs, dtype=jnp.int32) // active)
    owners = jnp.searchsorted(ends, jnp.arange(most, dtype=ends.dtype), side="right")
    owners = jnp.minimum(owners, experts - 1)
    y = jax.lax.map(lambda block: run(*block), (x[rows].reshape(most, size, -1), owners))
    y = y.reshape(most * size, -1)[place].reshape(tokens, active, -1)
    return jnp.sum(y * shares[:, :, None].astype(y.dtype), axis=1)
