"""PickScore (Kirstain et al., 2023): CLIP-H/14, trained on which of two pictures people picked for a text."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from jevomerge.fitness.scorers.scorer import Comparing
from jevomerge.models.clip.clip import SCALE
from jevomerge.models.layers import Params


@dataclasses.dataclass(frozen=True)
class PickScore(Comparing):
    """exp(logit_scale) cos(text, picture)."""

    kind: ClassVar = "pickscore"
    published: ClassVar = "yuvalkirstain/PickScore_v1"
    bounds: ClassVar = None  # they depend on a weight

    def score(self, params: Params, images: Array, told: Array) -> Array:
        """(B,): see `Scorer`."""
        return jnp.exp(params[SCALE].astype(jnp.float32)) * self.cosine(params, images, told)
