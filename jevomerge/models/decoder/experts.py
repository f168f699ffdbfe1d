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

from jevomerge.devices.mesh import platform, summed
from jevomerge.models.decoder.config import DecoderConfig, Mixture
from jevomerge.models.decoder.mlp import Mlp
from jevomerge.models.layers import ACTIVATIONS, Linear, declare, rms_norm

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


class NormedRouter(nn.Module):
    """One that reads the stream through a norm, and scales each expert's share (Gemma 4)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(T, D) -> (T, k) int32 experts and (T, k) float32 shares."""
        m, width = self.config.mixture, x.shape[-1]
        assert m is not None
        scale = declare(self, "scale", nn.initializers.ones, (width,), ("embed",))
        read = rms_norm(x, jnp.ones(width), self.config.rms_norm_eps, False) * scale.astype(x.dtype)[None]
        scores = Linear(m.experts, ("router", "embed"), name="proj")(read * jnp.asarray(width**-0.5, x.dtype))
        shares, chosen = jax.lax.top_k(jax.nn.softmax(scores.astype(jnp.float32), axis=-1), m.active)
        factors = declare(self, "per_expert_scale", nn.initializers.ones, (m.experts,), ("router",))
        return chosen, shares / jnp.sum(shares, axis=-1, keepdims=True) * factors.astype(jnp.float32)[chosen]


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
        matrices: tuple[tuple[Array, Array | None], ...]
        if m.stored == "transposed":  # as rows are multiplied, gate and up in turn, with biases
            matrices = (
                Matrices((n, width, 2 * f), ("expert", "embed", "expert_ff"), True, name="gate_up_proj")(),
                Matrices((n, f, width), ("expert", "expert_ff", "embed"), True, name="down_proj")(),
            )  # fmt: skip

            def run(own: Any, x: Array) -> Array:
                (inward, first), (outward, last) = own
                rows = jnp.swapaxes(x, -1, -2)
                both = rows @ inward.astype(x.dtype) + first.astype(x.dtype)[..., None, :]
                gate = jnp.minimum(both[..., 0::2], m.limit)
                up = jnp.clip(both[..., 1::2], -m.limit, m.limit)
                y = (up + 1) * gate * jax.nn.sigmoid(m.alpha * gate)
                return jnp.swapaxes(y @ outward.astype(x.dtype) + last.astype(x.dtype)[..., None, :], -1, -2)
        else:
            one = "experts" if m.stored == "each" else "expert"  # a tensor of each expert's own, or one of all
            inward = {"gate_proj": f, "up_proj": f} if m.stored == "each" else {"gate_up_proj": 2 * f}
            matrices = (
                Matrices((n, width, f), (one, "embed", "expert_ff"), name="down_proj")(),
                *(Matrices((n, k, width), (one, "expert_ff", "embed"), name=name)() for name, k in inward.items()),
            )  # fmt: skip

            def run(own: Any, x: Array) -> Array:
                (outward, _), *inward = own
                inside = [weight.astype(x.dtype) @ x for weight, _ in inward]
                gate, up = inside if len(inside) == 2 else jnp.split(inside[0], 2, axis=-2)
                return outward.astype(x.dtype) @ (act(gate) * up)

        def some(own: Any, shared: tuple[Array, Array, Array], first: Any) -> Array:
            x, chosen, shares = shared
            return grouped(run, own, x, chosen - first, shares, n)

        found: Array = summed(some, matrices, (x, chosen, shares), n)
        return found


def grouped(run: Callable[[Any, Array], Array], own: Any, x: Array, chosen: Array, shares: Array, in_all: int) -> Array:
    """The sum over a token's experts of share x what the expert makes of it; of those that are here.

    The tokens of each expert are laid into blocks of equal size, filled up with others, and computed block by block:
    with E experts at most E blocks more than there are full ones. On a CPU the first blocks of all experts are one
    product, for there an expert is copied when it is taken out of all. (`jax.lax.ragged_dot` multiplies all tokens by
    all experts on a CPU, and cannot be vmapped over members in jax 0.10.)

    Args:
        run: weights of one expert, or of several along the first axis, and (..., D, rows) -> (..., D, rows). Tokens are
            columns: a CPU multiplies weights by them as they lie, and turns weights round where tokens are rows.
        own: the weights of E experts, along the first axis.
        x: (T, D).
        chosen: (T, k) int32, from 0 to E - 1 or, of experts that are elsewhere, another number.
        shares: (T, k).
        in_all: how many there are, those elsewhere included.
    """
    (tokens, active), experts = chosen.shape, len(jax.tree.leaves(own)[0])
    pairs = tokens * active
    size = min(LARGEST, 1 << max(0, round(np.log2(max(1, pairs / in_all)))))
    at_once = 1 if platform() == "cpu" and pairs >= in_all else 0  # blocks of each expert
    first = at_once * experts
    others = pairs // size if at_once else min(pairs, pairs // size + experts)  # at most: each has a full one before it
    flat = chosen.reshape(-1)
    here = (flat >= 0) & (flat < experts)
    mine = (flat[:, None] == jnp.arange(experts, dtype=flat.dtype)[None]).astype(jnp.int32)  # (T k, E)
    owner = jnp.where(here, flat, 0)
    before = jnp.take_along_axis(jnp.cumsum(mine, axis=0), owner[:, None], axis=1)[:, 0] - 1
    turn, column = before // size - at_once, before % size  # the block among its expert's others, and where in it
    counts = jnp.maximum(-(-jnp.sum(mine, axis=0) // size) - at_once, 0)
    ends = jnp.cumsum(counts)
    block = jnp.where(turn < 0, owner, first + (ends - counts)[owner] + turn)  # of each pair, among all blocks
    block = jnp.where(here, block, first + others)  # behind them
    rows = jnp.zeros((first + others, size), jnp.int32)
    rows = rows.at[block, column].set(jnp.arange(pairs, dtype=jnp.int32) // active, mode="drop")
    numbers = jnp.arange(others, dtype=ends.dtype)
    owners = jnp.minimum(jnp.searchsorted(ends, numbers, side="right"), experts - 1)

    def laid(rows: Array) -> Array:
        """(blocks, size) -> (blocks, D, size)."""
        return jnp.swapaxes(x[rows], 1, 2)

    def alone(x: Array, owner: Array) -> Array:
        return run(jax.tree.map(lambda w: w[owner], own), x)

    def one(given: tuple[Array, Array, Array]) -> Array:
        x, owner, filled = given
        return jax.lax.cond(filled, alone, lambda x, _: jnp.zeros_like(x), x, owner)

    def found(y: Array, block: Array) -> Array:
        """(blocks, D, size) -> (T k, D), 0 for what is in another block."""
        return y.at[block, :, column].get(mode="fill", fill_value=0)

    y = jax.lax.map(one, (laid(rows[first:]), owners, numbers < ends[-1]))
    y = found(y, jnp.where(block < first, others, block - first))
    if at_once:
        y = y + found(run(own, laid(rows[:first])), block)
    y = y.reshape(tokens, active, -1)
    return jnp.sum(y * shares[:, :, None].astype(y.dtype), axis=1)
