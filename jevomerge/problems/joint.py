"""Both spaces at once: a merge, and a path through its blocks and those of other models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.checkpoint.export import scratch_folder
from jevomerge.checkpoint.source import Checkpoint, Source
from jevomerge.devices.mesh import WHOLE
from jevomerge.devices.schema import Memory
from jevomerge.errors import InputError
from jevomerge.genome.route import PathSpace, distinct, express_path
from jevomerge.genome.schema import PathSearch
from jevomerge.models.layers import Params
from jevomerge.models.model import Language
from jevomerge.models.route import Scaling
from jevomerge.models.specs import flatten, unflatten
from jevomerge.problems.path import (
    PathProblem,
    folded_as,
    path_lengths,
    path_space,
    path_start,
    slots_of,
    unchanged,
    with_slots,
)
from jevomerge.problems.problem import AVERAGE, Baseline, Candidates, Instance
from jevomerge.problems.stack import Stack
from jevomerge.problems.weights import Merged, WeightProblem
from jevomerge.recipe.schema import seen_from
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.write import write_recipe
from jevomerge.strategies.paths import make_path_strategy
from jevomerge.strategies.schema import Search
from jevomerge.strategies.strategy import Strategy

MERGED = "merged"  # what model A is called in a joint search


class JointProblem:
    """Both spaces at once: a merge, which is model A, and a path through its blocks and those of other models."""

    scores_sources, no_gradient, shared = True, PathProblem.no_gradient, PathProblem.shared

    def __init__(self, weights: WeightProblem, path: PathSearch, sigma: float = 1 / 6):
        """Open the other models and build the search space; no weight is read."""
        self.weights, self.path, self.sources = weights, path, weights.sources
        if self.sources.eyes:
            raise InputError(
                "path: with a recipe that merges eyes (`modules`) there is none; search it in a stage of its own"
            )
        self.others = [Checkpoint(m) for m in path.models]
        merged, self.stack = weights.model, Stack(self.others)
        self.model = merged.resized([*merged.kinds, *self.stack.model.kinds])
        names = (MERGED, *(c.name for c in self.others))
        depths = (len(merged.kinds), *(len(c.model.kinds) for c in self.others))
        self.space = path_space(path, names, depths)
        self.names = (*weights.names, *self.space.names)
        known_as = dict(zip((MERGED, *path.models), names, strict=True))
        start = np.broadcast_to(weights.mean, len(weights.names)), path_start(self.space, path, known_as, sigma)
        self.mean: float | np.ndarray = np.concatenate(start)
        self.gradient = np.zeros(len(self.names), bool)
        self.notes = weights.notes
        self.notes.update(c.notes for c in self.others)
        known = {c.reference for c in weights.checkpoints}
        self.checkpoints = [*weights.checkpoints, *(c for c in self.others if c.reference not in known)]
        self.title = f"{weights.title}, and a path through it and {', '.join(names[1:])}"

    def _split(self, genome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., n) -> the genes of the merge, and those of the path."""
        count = len(self.weights.names)
        return genome[..., :count], genome[..., count:]

    def strategy(self, search: Search, seed: int = 0) -> Strategy:
        """As for a path, with the genes of a merge before it."""
        settings = (search.population, self.mean, search.sigma, seed)
        return make_path_strategy(search.strategy or "mixed", self.space, *settings, before=len(self.weights.names))

    def starts(self, which: Sequence[str]) -> np.ndarray:
        """None but the mean."""
        raise InputError("search.start: a search over paths begins where `path.start` says; leave it out")

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name."""
        weights, path = self._split(genome)
        return self.weights.values(weights) | self.space.values(path)

    def distinct(self, genomes: np.ndarray) -> np.ndarray:
        """(P, n) -> (P, k) float32, equal where candidates are."""
        weights, paths = self._split(genomes)
        return np.concatenate([self.weights.distinct(weights), distinct(self.space, paths)], axis=1)

    def load(
        self,
        mesh: Mesh | None = None,
        memory: Memory = "device",
        *,
        abstract: bool = False,
        together: bool = False,
    ) -> MergedAndRouted:
        """Read the other models' blocks, which lie on the devices, and what is merged, or only find shapes."""
        leaves = flatten(self.stack.load(mesh, abstract=abstract))
        blocks = {spec.path: leaves[spec.path] for spec in self.stack.specs if spec.block}
        merged = self.weights.load(mesh, memory, abstract=abstract)
        return MergedAndRouted(merged, blocks, self.space, self.path.scale)

    def baselines(self, candidates: Candidates) -> Iterator[Baseline]:
        """Those of the merge, and the other models, unless they are merged too."""
        assert isinstance(candidates, MergedAndRouted)
        merged = list(self.weights.baselines(candidates.merged))
        known = {baseline.name for baseline in merged}
        yield from merged
        yield from (Baseline(c.name, c.model, c.load) for c in self.others if c.name not in known)

    def merge_of(self, baseline: str) -> Sources:
        """One of the merge's, or one of the other models, unchanged."""
        if baseline == AVERAGE or baseline in self.weights.sources.names:
            return self.weights.merge_of(baseline)
        return unchanged(next(c for c in self.others if c.name == baseline))

    @property
    def seer(self) -> Source | None:
        """That of the merge."""
        return self.weights.seer

    def tokenizer(self) -> Any:
        """That of the merge."""
        return self.weights.tokenizer()

    def exported(self, hops: int | None = None) -> tuple[Language, str]:
        """Those of a path with the merge as model A."""
        return folded_as(self.path, *self.weights.exported(), hops)

    def export(self, genome: np.ndarray, out: Path, **options: Any) -> None:
        """Merge first, beside `out`, then write the path."""
        weights, path = self._split(genome)
        with scratch_folder(out.with_name(f"{out.name}.merge")) as work:
            self.weights.export(weights, work / MERGED)
            models = (str(work / MERGED), *self.path.models)
            sources, coefficients = self.weights.sources, self.weights.coefficients(weights)
            before = f"name: {MERGED}\n{write_recipe(sources, coefficients, seen_from(out))}---\n"
            problem = PathProblem(self.path.model_copy(update={"models": models, "start": ()}))
            problem.export(path, out, names={models[0]: MERGED}, before=before, **options)

    def reopen(self, folder: Path) -> Checkpoint:
        """What `export` wrote."""
        return Checkpoint(folder)

    def hollow(self, out: Path) -> bool:
        """As for a path."""
        return False


@flax.struct.dataclass
class MergedAndRouted(Candidates):
    """Both spaces at once: the genes of a merge, then those of a path through its blocks and those of other models."""

    merged: Merged
    blocks: dict[str, Array]  # leaves of the other models, (M', ...) each
    space: PathSpace = flax.struct.field(pytree_node=False)
    scale: Scaling = flax.struct.field(pytree_node=False)
    lazy = False

    @property
    def weights(self) -> int:
        """How many genes are the merge's."""
        return len(self.merged.space.names)

    def make(self, genome: Array) -> Params:
        """(n,) -> the stack of merged and other blocks."""
        own, dtype = flatten(self.merged.make(genome[: self.weights])), self.merged.merge.dtype
        blocks = {
            p: jnp.concatenate([*([own[p]] if p in own else []), x.astype(dtype)]) for p, x in self.blocks.items()
        }
        return unflatten(own | blocks)

    def model(self, made: Params, genome: Array, slots: int | None = None) -> Instance:
        """The stack with a path."""
        path = with_slots(express_path(self.space, genome[self.weights :]), slots)
        return Instance(made, route=path, scale=self.scale)

    def held(self) -> tuple[Any, Any]:
        """The other models' blocks are held beside the merge's bank."""
        sources, prepared = self.merged.held()
        return (sources, self.blocks), prepared

    def over_pop(self) -> MergedAndRouted:
        """The merge's models may be."""
        parts: dict[str, Any] = {"merged": self.merged.over_pop(), "blocks": WHOLE}
        return dataclasses.replace(self, **parts)

    def hops(self, genomes: np.ndarray) -> np.ndarray:
        """As for `Routed`."""
        return np.asarray(path_lengths(self.space, genomes[:, self.weights :].astype(np.float32)))

    def slots(self, genomes: np.ndarray) -> int:
        """As for `Routed`."""
        return slots_of(self.space, self.hops(genomes))
