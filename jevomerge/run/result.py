"""The outcome of a search, for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jevomerge.checkpoint.memory import InMemory
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.models.model import Model
from jevomerge.search.archive import read_archive


class Evaluations(NamedTuple):
    """All E evaluations of a run as arrays, in order; NaN where something is not known."""

    generation: np.ndarray  # (E,) ints
    member: np.ndarray  # (E,) ints
    genome: np.ndarray  # (E, n) in the unit box
    fitness: np.ndarray  # (E,)
    tie_break: np.ndarray  # (E,)
    seconds: np.ndarray  # (E,)
    scores: dict[str, list[np.ndarray]]  # of each task, by example; with minibatches, of those it was scored on


@dataclass(frozen=True)
class Result:
    """The outcome of a search.

    Attributes:
        folder: the run folder.
        values: what its result.json holds.
        model: what `params` are parameters of; None: the exported folder says.
    """

    folder: Path
    values: Mapping[str, Any]
    model: Model | None = None

    def __repr__(self) -> str:
        best = self.values["best"]
        return f"Result({self.folder}, search {best['search']:.4f}, heldout {best['heldout']:.4f})"

    @property
    def genome(self) -> dict[str, float]:
        """The genes of the best candidate by name, in their ranges."""
        return dict(self.values["best"]["genome"])

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """{model: {split: fitness}} of the sources, their average ("average", if there is one) and "best"."""
        average = {} if self.values["average"] is None else {"average": self.values["average"]}
        best = {split: self.values["best"][split] for split in ("search", "heldout")}
        return {**self.values["sources"], **average, "best": best}

    @cached_property
    def params(self) -> Any:
        """The parameters of the result as they were exported, in the form in which their owner has them.

        They are the best candidate's, or those of the source that none was better than, `values["best"]["source"]`.

        Any library saves them: `orbax.checkpoint.StandardCheckpointer().save(path, result.params)`, say.
        """
        folder = self.folder / str(self.values["export"])
        if self.model is None:
            return Checkpoint(folder).load()
        return self.model.as_given(InMemory.read(folder, self.model).load())

    @cached_property
    def archive(self) -> Evaluations:
        """Every evaluation."""
        records = read_archive(self.folder / "evaluations.jsonl")
        numbers = {
            name: np.array([np.nan if r[name] is None else r[name] for r in records])
            for name in ("generation", "member", "fitness", "tie_break", "seconds")
        }
        scores: dict[str, list[np.ndarray]] = {}
        for record in records:
            for task, values in record["scores"].items():
                scores.setdefault(task, []).append(np.array(values, np.float64))
        genomes = np.array([r["genome"] for r in records])
        whole = {name: numbers.pop(name).astype(int) for name in ("generation", "member")}
        return Evaluations(**whole, genome=genomes, **numbers, scores=scores)
