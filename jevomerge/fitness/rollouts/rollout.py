"""What a model can be asked for: the protocol that its kinds share, one file a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jevomerge.errors import FitnessError
from jevomerge.fitness.batches import Layout
from jevomerge.models.model import Language
from jevomerge.problems.problem import Instance

Where = Callable[[], Path]  # writes a model as a folder when it is first asked, and says where


def nowhere() -> Path:
    """Of a model that nobody writes."""
    raise FitnessError("there is nobody who writes this model as a folder")


class Rollout(Protocol):
    """Something that a model can be asked for, such as texts; what it is asked about are examples of the task's kind.

    It is a static argument of jitted functions: those that compile to the same program are equal and have the same
    hash. So `run` knows nothing but its arguments and what takes part in the comparison; whatever else matters to it
    travels in the batch.
    """

    @property
    def many_passes(self) -> bool:
        """Whether it takes many forward passes.

        Then the merge is made before the first one, and members are run one after another; else it happens in the
        pass, block by block, and members may be vmapped.
        """

    @property
    def writes(self) -> bool:
        """Whether what is read are texts, which people want to see."""

    @property
    def draws(self) -> bool:
        """Whether what is read are pictures, `rollouts.drawing.Drawn`, which they want to see, too."""

    @property
    def unmerged(self) -> bool:
        """Whether the model may have matrices that are not merged (`models.members`); what others are given may not."""

    def check(self, model: Language, examples: Sequence[Any]) -> None:
        """Raise InputError for examples that such a model cannot take."""

    def layouts(
        self,
        search: Sequence[Any],
        others: Sequence[Any],
        tokens_per_batch: int,
        at_once: int | None = None,
        pieces: int = 1,
    ) -> list[Layout]:
        """A few batch shapes into which every example fits, for a search on `search`; see `plan_layouts`."""

    def strata(self, examples: Sequence[Any], layouts: Sequence[Layout]) -> np.ndarray:
        """(n,) the index of the layout that each example is run in."""

    def batch(self, model: Language, examples: Sequence[Any], layout: Layout) -> Any:
        """A batch of at most `layout.rows` examples, filled up with padding: a pytree of NumPy arrays."""

    def run(self, model: Language, instance: Instance, batch: Any, layout: Layout, *, dtype: str) -> Any:
        """What a model makes of a batch, a pytree of arrays (B, ...); pure, activations in `dtype`."""

    def read(self, outputs: Sequence[np.ndarray], folder: Where) -> list[Any]:
        """What those arrays, without the rows of padding, mean: one item per example, as `Material.read` takes it.

        `folder`: of the model that made them; what is in it is gone once the model has been scored.
        """

    def spent(self, examples: Sequence[Any], batch: Any, outputs: Sequence[np.ndarray]) -> Mapping[str, int]:
        """What making the outputs of these examples took, without padding, by the names of `Tokens`."""

    def label(self, task: str, layout: Layout) -> str:
        """Names the program that runs a batch of a task, for people."""

    def loops(self, layout: Layout) -> Mapping[str, float]:
        """How often its loops of dynamic length turn, at most, by their names; as `REACH` how far caches are read."""

    def cache(self, model: Language, layout: Layout, hops: int | None) -> tuple[tuple[int, ...], ...]:
        """The shapes of what its cache remembers, of a path if there are `hops`; (): it has none."""


def make_batches(
    rollout: Rollout,
    model: Language,
    examples: Sequence[Any],
    layouts: Sequence[Layout],
    shuffled: bool = False,
) -> Iterator[tuple[Layout, np.ndarray, Any]]:
    """(layout, (rows,) index of each row's example or -1 for padding, batch) one after another.

    `shuffled`: the examples of a layout come in a random order, which is always the same.
    """
    strata = rollout.strata(examples, layouts)
    for stratum, layout in enumerate(layouts):
        inside = np.flatnonzero(strata == stratum)
        if shuffled:
            inside = np.random.default_rng(stratum).permutation(inside)
        for start in range(0, len(inside), layout.rows):
            index = np.full(layout.rows, -1)
            chosen = inside[start : start + layout.rows]
            index[: len(chosen)] = chosen
            yield layout, index, rollout.batch(model, [examples[i] for i in chosen], layout)
