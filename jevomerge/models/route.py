"""A token's way through the blocks of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.struct
import jax.numpy as jnp
from jax import Array

Scaling = Literal["stream", "delta"]  # what a path's scales multiply, see `Route`


HOPS = "hops"  # name of the loop along a path, by which a plan knows it


@flax.struct.dataclass
class Route:
    """A token's way through the stack: hop t runs block `layers[t]`, for t < `length` (Akiba et al., 2024).

    Blocks may repeat, be left out and come in any order. The input of hop t is multiplied by `scales[t]`: all of
    it ("stream", the paper's text), or only what the MLP of the hop before added, at hop 0 the embedding ("delta",
    the inference code of the released EvoLLM-JP-10B). Slots from `length` on are never run.
    """

    layers: Array  # (P,) int32
    scales: Array  # (P,) float32
    length: Array  # () int32, at most P

    @classmethod
    def of(cls, layers: Sequence[int], scales: Sequence[float] | None = None, slots: int | None = None) -> Route:
        """The path along `layers`, with scales of 1 unless given, in `slots` slots, as many as hops unless given."""
        spare = 0 if slots is None else slots - len(layers)
        scales = [1.0] * len(layers) if scales is None else scales
        return cls(
            layers=jnp.asarray([*layers, *[0] * spare], jnp.int32),
            scales=jnp.asarray([*scales, *[1.0] * spare], jnp.float32),
            length=jnp.asarray(len(layers), jnp.int32),
        )
