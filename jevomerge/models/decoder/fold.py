"""An evolved path through the blocks of several models as an ordinary model, its scales folded into the weights.

    stack = Stack([Checkpoint(a), Checkpoint(b)])     # blocks of a, then of b; embedding, head and tokenizer of a
    folding = stack.model.fold(path)
    with export_folder(out) as folder:
        write_folded(folder, stack.model, folding, stack.read, "bfloat16")

Why it works ("stream"): let c_t be the product of the scales of hops 1 to t. A norm sees only the direction of
its input, so that the stream may be kept as stream / c_t: what a block adds to it is divided by c_t, what reads it
through a norm is multiplied by c_t's sign. The embedding carries the scale of hop 0. With "delta" scales the stream
is never scaled, and a block's MLP carries the scale of the hop after it. A block without a norm before it (OLMo 2)
reads the stream itself, so that its matrices are multiplied by c_t; a norm with a bias takes the sign on its weight.

What is exact: in real numbers the embedding, every sign, every "delta" scale and all of a stack that is read without
norms; in any dtype signs, scales of 1 and
powers of two (not where a norm stores its weight's offset from 1, as Gemma's do).

What is not: a norm adds eps to the mean square m of its input, which for the folded model is m / c^2. That changes
its output by eps |1 - c^2| / 2m of itself, most where a small scale meets the small stream of the first layers. On
trained models (experiments/bench_path), in standard deviations of the logits: 1e-4 and less (root mean square) with
every scale drawn from [0.5, 1.5]; up to 0.1 (one logit) for one scale of 0.05; 0.01 may give another model.

In bfloat16 every element that is divided is rounded once more, by up to 2^-9 of itself: with such scales 0.002 to 0.15
standard deviations, less than what computing the path in bfloat16 changes. So score what was written.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jevomerge.errors import InputError
from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.route import Route, Scaling

# What reads the stream, mostly through a norm: in attention or a delta net, in an MLP or a mixture.
ATTENTION = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "in_proj_qkvz",
    "in_proj_ba",
)  # fmt: skip
MLP = ("gate_proj", "up_proj", "gate_up_proj", "gate", "shared_expert_gate", "proj")  # the last is a router's
SMALLEST = 1e-30  # product of scales that float32 weights can be divided by


class Folding(NamedTuple):
    """What each tensor of the ordinary model is multiplied by."""

    config: DecoderConfig  # of the ordinary model, as many layers as hops
    blocks: tuple[int, ...]  # of the stack, for each layer
    embedding: float
    reading: np.ndarray  # (hops,) what reads the stream through a norm, 1 or -1
    attention: np.ndarray  # (hops,) what attention adds to the stream
    mlp: np.ndarray  # (hops,) what the MLP adds to the stream
    norm: float  # the last one's weight
    shift: float  # and its bias

    def tensor(self, path: str, layer: int | None, array: Any) -> np.ndarray:
        """A tensor of the ordinary model in float32, from that of leaf `path` of the stack (of its block)."""
        *_, module, leaf = path.split(".")
        factor = 1.0
        if layer is None:
            last = self.norm if leaf == "weight" else self.shift
            behind = "norm" if self.config.norm_weight else "lm_head"
            factor = {"embed_tokens": self.embedding, behind: last}.get(module, 1.0)
        elif module in (added := self._added):
            factor = float(added[module][layer])
        elif module in (reading := self._reading) and leaf == "weight":  # a bias does not read
            factor = float(reading[module][layer])
        x = np.asarray(array, np.float32)
        if factor == 1:
            return x
        if module.endswith("norm") and self.config.norm_plus_one:
            return ((1 + x.astype(np.float64)) * factor - 1).astype(np.float32)
        return x * np.float32(factor)

    @property
    def _added(self) -> dict[str, np.ndarray]:
        """{module: factors} of what adds to the stream: a norm, which would undo it, or a matrix."""
        _, after, _, after_mlp = self.config.norms
        mixed = dict.fromkeys([after] if after else ["o_proj", "out_proj"], self.attention)
        return mixed | {after_mlp or "down_proj": self.mlp}

    @property
    def _reading(self) -> dict[str, np.ndarray]:
        """{module: factors} of what reads the stream."""
        c, found = self.config, dict[str, np.ndarray]()
        for norm, readers in ((c.norms[0], ATTENTION), (c.norms[2], MLP)):
            if norm and c.norm_bias:
                found[norm] = self.reading
            else:
                found |= dict.fromkeys(readers, self.reading if norm else 1 / self.attention)
        return found


def fold(config: DecoderConfig, path: Route, scale: Scaling = "stream") -> Folding:
    """The ordinary model that computes what `apply(..., path=path, scale=scale)` does.

    Args:
        config: of the stack that the path leads through.
        path: a concrete one.
        scale: as in `apply`.

    Raises:
        InputError: for a path that leads outside the stack, and for scales that cannot be divided by.
    """
    hops = int(path.length)
    blocks, scales = np.asarray(path.layers)[:hops], np.asarray(path.scales, np.float64)[:hops]
    if not 0 < hops == len(blocks):
        raise InputError(f"a path of {len(path.layers)} slots cannot have {hops} hops")
    if outside := sorted({int(b) for b in blocks if not 0 <= b < config.num_hidden_layers}):
        raise InputError(f"the path visits block {outside[0]}; the stack has {config.num_hidden_layers}")
    ones = np.ones(hops)
    with np.errstate(over="ignore", under="ignore"):
        product = np.cumprod(np.append(1.0, scales[1:])) if scale == "stream" else ones
    usable = np.isfinite(scales) & (np.abs(product) > SMALLEST) & (np.abs(product) < 1 / SMALLEST)
    usable[0] &= SMALLEST < abs(scales[0]) < 1 / SMALLEST
    if not usable.all():
        t = int(np.argmin(usable))
        raise InputError(
            f"hop {t} scales its input by {scales[t]:g}, which (with the scales before it) cannot be folded into "
            "weights; keep the scales away from zero, for example between 0.5 and 1.5"
        )
    after = np.append(scales[1:], 1.0) if scale == "delta" else ones
    # A tied head is the embedding, scale of hop 0 included: the last norm takes it back.
    shift = 1 / scales[0] if config.tie_word_embeddings else 1.0
    norm = np.sign(product[-1]) * shift
    if norm != 1 and config.tie_word_embeddings and not config.norm_weight:
        raise InputError(
            "the last norm of this model has no weight and its head is its embeddings: keep the first scale at 1 and "
            "the product of the others above zero"
        )
    return Folding(
        config=dataclasses.replace(config, layer_kinds=tuple(config.layer_kinds[b] for b in blocks)),
        blocks=tuple(int(b) for b in blocks),
        embedding=float(scales[0]),
        reading=np.sign(product),
        attention=1 / product,
        mlp=after / product,
        norm=float(norm),
        shift=float(shift),
    )
