"""HPSv2 and 2.1 (Wu et al., 2023): CLIP-H/14, trained on which of several pictures people preferred for a text.

Of pictures that are not square the middle is looked at, as by CLIP; whether its authors pad them was not checked.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jax import Array

from jevomerge.fitness.scorers.scorer import Comparing
from jevomerge.models.layers import Params


@dataclasses.dataclass(frozen=True)
class Hpsv2(Comparing):
    """cos(text, picture), as its authors' `score` has it; their tables have 100 times as much."""

    kind: ClassVar = "hpsv2"
    published: ClassVar = None
    bounds: ClassVar = (-1.0, 1.0)

    def score(self, params: Params, images: Array, told: Array) -> Array:
        """(B,): see `Scorer`."""
        return self.cosine(params, images, told)
