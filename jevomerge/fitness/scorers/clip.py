"""CLIPScore (Hessel et al., 2021, in the form that torchmetrics has): how well a picture fits its text."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from jevomerge.fitness.scorers.scorer import OPENAI, Comparing
from jevomerge.models.layers import Params


@dataclasses.dataclass(frozen=True)
class ClipScore(Comparing):
    """max(0, 100 cos(text, picture))."""

    kind: ClassVar = "clip"
    published: ClassVar = OPENAI
    bounds: ClassVar = (0.0, 100.0)

    def score(self, params: Params, images: Array, told: Array) -> Array:
        """(B,): see `Scorer`."""
        return jnp.maximum(0, 100 * self.cosine(params, images, told))
