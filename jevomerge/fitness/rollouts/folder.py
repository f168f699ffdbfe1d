"""A model as a folder: what judges need that are no functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import NotFinite
from jevomerge.fitness.batches import Layout
from jevomerge.models.model import Language
from jevomerge.problems.problem import Instance


@dataclass(frozen=True)
class Folder:
    """Asks for the model itself, as an export writes it; nothing is computed on the device."""

    many_passes = False
    unmerged = False
    writes = False
    draws = False

    def check(self, model: Language, examples: Sequence[Any]) -> None:
        """Nothing."""

    def layouts(
        self,
        search: Sequence[Any],
        others: Sequence[Any],
        tokens_per_batch: int,
        at_once: int | None = None,
        pieces: int = 1,
    ) -> list[Layout]:
        """A single row."""
        return [Layout(1, 0, 0)]

    def strata(self, examples: Sequence[Any], layouts: Sequence[Layout]) -> np.ndarray:
        """(n,) zeros."""
        return np.zeros(len(examples), int)

    def batch(self, model: Language, examples: Sequence[Any], layout: Layout) -> None:
        """Empty."""

    def run(self, model: Language, instance: Instance, batch: None, layout: Layout, *, dtype: str) -> Array:
        """(1,) nothing."""
        return jnp.zeros(layout.rows)

    def read(self, outputs: Sequence[np.ndarray], folder: Callable[[], Path]) -> list[Path | None]:
        """Where the model lies, until it has been scored; None if it cannot be written, not being finite."""
        try:
            return [folder() for _ in outputs[0]]
        except NotFinite:
            return [None]

    def spent(self, examples: Sequence[Any], batch: None, outputs: Sequence[np.ndarray]) -> Mapping[str, int]:
        """No tokens that are known of."""
        return {}

    def label(self, task: str, layout: Layout) -> str:
        """Such as "write a folder for fitness"."""
        return f"write a folder for {task}"

    def loops(self, layout: Layout) -> Mapping[str, float]:
        """None."""
        return {}

    def cache(self, model: Language, layout: Layout, hops: int | None) -> tuple[tuple[int, ...], ...]:
        """None."""
        return ()
