"""A forward pass for training: a prompt is read once for all of its answers, matrix products are in bfloat16.

A row is a tree: a prompt, then answers, of which each sees the prompt and itself.  The products take bfloat16 and sum
in float32, there and back: on a CPU with such units (AMX) that is faster than float32, but only where the result is
asked for in float32.  `choosing.py` compares what this finds with the project's own forward pass.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jevomerge.models.decoder.attention import rotate
from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.layers import Params, attend, rms_norm


class Trees(NamedTuple):
    """B rows of T tokens, of which N belong to answers; padded on the right."""

    tokens: np.ndarray  # (B, T)
    positions: np.ndarray  # (B, T)
    branch: np.ndarray  # (B, T): 0 prompt, 1.. the answers, -1 padding
    parent: np.ndarray  # (B, N): where the token lies from which the next is predicted
    target: np.ndarray  # (B, N): that next token
    answer: np.ndarray  # (B, N): whose it is, 0.., -1 padding
    label: np.ndarray  # (B,): the right answer


def tree(prompt: list[int], answers: list[list[int]], label: int, width: int, slots: int) -> Trees:
    """One row, without the leading axis; raises ValueError if it does not fit."""
    if len(prompt) + sum(map(len, answers)) > width or sum(map(len, answers)) > slots:
        raise ValueError("the row is too long")
    tokens, positions, parent, target = (np.zeros(n, np.int32) for n in (width, width, slots, slots))
    branch, answer = np.full(width, -1, np.int32), np.full(slots, -1, np.int32)
    tokens[: len(prompt)], positions[: len(prompt)], branch[: len(prompt)] = prompt, np.arange(len(prompt)), 0
    at, slot = len(prompt), 0
    for k, text in enumerate(answers):
        part, own = slice(at, at + len(text)), slice(slot, slot + len(text))
        tokens[part], positions[part], branch[part] = text, len(prompt) + np.arange(len(text)), k + 1
        parent[own], target[own], answer[own] = [len(prompt) - 1, *range(at, at + len(text) - 1)], text, k
        at, slot = at + len(text), slot + len(text)
    return Trees(tokens, positions, branch, parent, target, answer, np.int32(label))


RANK, SCALE = 16, 2.0  # of what is added to a weight matrix


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x @ weight.T`, (T, in) and (out, in), of a matrix that is not trained."""
    return forward(x, weight)[0]


def dot(a: jax.Array, b: jax.Array, over: int) -> jax.Array:
    """Of `a`'s last axis and an axis of `b`, bfloat16 into float32."""
    numbers = (((1,), (over,)), ((), ()))
    return jax.lax.dot_general(a.astype(jnp.bfloat16), b, numbers, preferred_element_type=jnp.float32)


def forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The product, and what its gradient needs."""
    return dot(x, weight, 1), weight


def backward(weight: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    """The gradient of `x` alone."""
    return dot(gradient, weight, 0), None


product.defvjp(forward, backward)


def low_rank_start(key: jax.Array, params: Params) -> Any:
    """LoRA (Hu et al., 2021) of the blocks: per matrix {down (L, r, in), up (L, out, r)}, product 0 at first."""

    def pair(path: Any, weight: jax.Array) -> Any:
        layers, out, width = weight.shape
        own = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        down = jax.random.normal(own, (layers, RANK, width)) * width**-0.5
        return {"down": down, "up": jnp.zeros((layers, out, RANK))}

    matrices = {k: v for k, v in params["layers"].items() if k in ("self_attn", "mlp")}
    return jax.tree_util.tree_map_with_path(pair, matrices)


def added(layers: Params, low_rank: Any) -> Params:
    """A stack of blocks with its low-rank additions."""
    matrices = {k: layers[k] for k in low_rank}
    return layers | jax.tree.map(lambda w, pair: w + SCALE * pair["up"] @ pair["down"], matrices, low_rank)


def halved(params: Params) -> Params:
    """The matrices in bfloat16, the embedding twice: for the products."""
    layers = {
        k: jax.tree.map(lambda w: w.astype(jnp.bfloat16), v) if k in ("self_attn", "mlp") else v
        for k, v in params["layers"].items()
    }
    return params | {"layers": layers, "head": params["embed_tokens"]["weight"].astype(jnp.bfloat16)}


def logprobs(low_rank: Any, params: Params, config: DecoderConfig, trees: Trees) -> jax.Array:
    """(B, N) log-probabilities of the answers' tokens, 0 for padding: a Llama-like model, tied embeddings.

    low_rank: what is added to the layers, or None.
    params: what `halved` gives.
    """
    c, (batch, width) = config, trees.tokens.shape
    branch, order = trees.branch, jnp.arange(width)
    own = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    mask = own & (order[:, None] >= order) & (branch[:, None, :] >= 0)
    rope = c.kinds[0].rope.tables(trees.positions[..., None], c.head_dim)

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        frozen, both = layer

        def linear(x: jax.Array, part: str, name: str) -> jax.Array:
            y = product(x, frozen[part][name]["weight"])
            if both is None:
                return y
            pair = both[part][name]["weight"]
            return y + SCALE * (x @ pair["down"].T) @ pair["up"].T

        y = rms_norm(x, frozen["input_layernorm"]["weight"], c.rms_norm_eps, False)
        q, k, v = (linear(y, "self_attn", f"{n}_proj").reshape(batch, width, -1, c.head_dim) for n in ("q", "k", "v"))
        y = attend(rotate(q, rope) * c.head_dim**-0.5, rotate(k, rope), v, mask)
        x = x + linear(y.reshape(batch * width, -1), "self_attn", "o_proj")
        y = rms_norm(x, frozen["post_attention_layernorm"]["weight"], c.rms_norm_eps, False)
        y = jax.nn.silu(linear(y, "mlp", "gate_proj")) * linear(y, "mlp", "up_proj")
        return x + linear(y, "mlp", "down_proj"), None

    x = params["embed_tokens"]["weight"][trees.tokens].reshape(batch * width, -1)
    x, _ = jax.lax.scan(block, x, (params["layers"], low_rank))
    x = rms_norm(x, params["norm"]["weight"], c.rms_norm_eps, False).reshape(batch, width, -1)
    x = jnp.take_along_axis(x, trees.parent[:, :, None], axis=1)
    logits = product(x.reshape(-1, x.shape[-1]), params["head"])
    chosen = jnp.take_along_axis(logits, trees.target.reshape(-1, 1), axis=-1)[:, 0]
    return jnp.where(trees.answer >= 0, (chosen - jax.nn.logsumexp(logits, axis=-1)).reshape(batch, -1), 0.0)


def totals(found: jax.Array, trees: Trees, answers: int) -> jax.Array:
    """(B, N) of tokens -> (B, answers) log-probabilities of whole answers."""
    return jnp.sum(found[:, None] * (trees.answer[:, None] == jnp.arange(answers)[:, None]), axis=-1)
