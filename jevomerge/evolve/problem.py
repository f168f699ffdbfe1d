"""What is searched: its models, its genes, how a genome becomes a candidate, and how one is written as a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.special import ndtri

from jevomerge.checkpoint import Checkpoint, copy_tokenizer, export_folder
from jevomerge.checkpoint.card import model_card
from jevomerge.checkpoint.export import scratch_folder
from jevomerge.checkpoint.fold import Stack, fold, write_folded
from jevomerge.config import PathSearch, RunConfig
from jevomerge.errors import InputError
from jevomerge.fitness.candidates import Candidates, Merged, MergedAndRouted, Routed
from jevomerge.genome import Space, express, make_space, start_of
from jevomerge.genome.path import PathSpace, describe, distinct, encode, express_path, hops_of, slices_of
from jevomerge.merge import Merge, abstract_bank, make_bank
from jevomerge.models import DecoderConfig
from jevomerge.recipe import Numbers, Sources
from jevomerge.stream import merge_to_folder

Score = Callable[[Path], Mapping[str, Mapping[str, float]]]


class WeightProblem:
    """Parameter space: the coefficients of a recipe."""

    def __init__(self, config: RunConfig):
        """Open the sources and build the search space; no weight is read."""
        assert config.recipe is not None
        # A recipe that the search starts from must have a number for everything.
        self.sources = Sources(config.recipe, searched=() if config.start_from else tuple(config.genome))
        self.merge = Merge(self.sources.method, self.sources.dtype)
        self.space: Space = make_space(self.sources, config.genome)
        self.names = self.space.names
        self.mean = start_of(self.space, self.sources.numbers) if config.start_from else config.search.mean
        self.notes = self.sources.notes
        self.checkpoints = self.sources.checkpoints
        self.config: DecoderConfig = self.sources.config
        self.scores_sources = self.sources.plain
        self.title = f"{self.sources.method.name} of {', '.join(self.sources.names)}"

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name."""
        return self.space.values(genome)

    def distinct(self, genomes: np.ndarray) -> np.ndarray:
        """(P, n) -> (P, n) float32, equal where candidates are."""
        return genomes.astype(np.float32)

    def numbers(self, genome: np.ndarray) -> Numbers:
        """The recipe's coefficients for a genome, as the search itself expresses it."""
        return jax.tree.map(np.asarray, jax.jit(express)(self.space, jnp.asarray(genome, jnp.float32)))

    def load(self, mesh: Mesh | None = None) -> Merged:
        """Read the weights."""
        bank = make_bank(self.merge, self.sources.specs, *self.sources.load(mesh), self.sources.keys(), mesh)
        return Merged(bank, self.space, self.merge)

    def abstract(self, mesh: Mesh) -> Merged:
        """Shapes, dtypes and shardings of what `load` returns; reads nothing."""
        trees = self.sources.load(mesh, abstract=True)
        bank = abstract_bank(self.merge, self.sources.specs, *trees, self.sources.keys(), mesh)
        return Merged(bank, jax.eval_shape(lambda: self.space), self.merge)

    def export(self, genome: np.ndarray, out: Path, **options: Any) -> None:
        """Write the merged model of a genome as a folder; `options` as for `merge_to_folder`."""
        merge_to_folder(self.sources, self.numbers(genome), out, **options)


class PathProblem:
    """Data-flow space: a path through the blocks of several models, the first of which is model A."""

    scores_sources = True  # whether a run scores each of its models

    def __init__(self, path: PathSearch, sigma: float = 1 / 6):
        """Open the models and build the search space; no weight is read."""
        self.scale, self.dtype, self.notes = path.scale, path.dtype, dict[str, None]()
        self.checkpoints = [Checkpoint(m) for m in path.models]
        self.stack = Stack(self.checkpoints)
        self.config: DecoderConfig = self.stack.config
        names = tuple(c.name for c in self.checkpoints)
        depths = tuple(c.config.num_hidden_layers for c in self.checkpoints)
        self.space = path_space(path, names, depths)
        self.names = self.space.names
        self.mean = path_start(self.space, path, dict(zip(path.models, names, strict=True)), sigma)
        self.title = f"a path through {', '.join(names)}"

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name."""
        return self.space.values(genome)

    def distinct(self, genomes: np.ndarray) -> np.ndarray:
        """(P, n) -> (P, n) float32, equal where candidates are."""
        return distinct(self.space, genomes)

    def load(self, mesh: Mesh | None = None) -> Candidates:
        """Read the weights."""
        return Routed(self.stack.load(mesh), self.space, self.scale)

    def abstract(self, mesh: Mesh) -> Candidates:
        """Shapes, dtypes and shardings of what `load` returns; reads nothing."""
        return Routed(self.stack.load(mesh, abstract=True), self.space, self.scale)

    def export(
        self,
        genome: np.ndarray,
        out: Path,
        *,
        title: str | None = None,
        score: Score | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Write the path of a genome as an ordinary model, its scales folded into the weights."""
        path = express_path(self.space, jnp.asarray(genome, jnp.float32))
        folding = fold(self.stack.config, path, self.scale)
        like = self.checkpoints[0]
        hops = describe(self.space, path)
        own = {"F32": "float32", "F16": "float16"}.get(like.dtype(), "bfloat16")
        # Scaled weights rounded to bfloat16 are not what was scored.
        dtype = self.dtype or (own if all(hop.scale == 1 for hop in hops) else "float32")
        text = "".join(f"{hop.model}:{hop.layer} {hop.scale:.9g}\n" for hop in hops)
        with export_folder(out) as folder:
            write_folded(folder, folding, like.config_json, self.stack.read, dtype)
            copy_tokenizer(folder, like)
            (folder / "path.txt").write_text(text)
            recipe = f"# model:layer and the scale of its input, hop by hop\n{text}"
            if all(hop.scale == 1 for hop in hops):
                references = {c.name: c.reference for c in self.checkpoints}
                slices = [(references[model], first, last) for model, first, last in slices_of(hops)]
                recipe = passthrough(slices, dtype)
                (folder / "recipe.yaml").write_text(recipe)
            card = model_card(title or out.name, recipe, self.checkpoints, score(folder) if score else None)
            (folder / "README.md").write_text(card)
        progress(1, 1)


class JointProblem:
    """Both spaces at once: a merge, which is model A, and a path through its blocks and those of other models."""

    scores_sources = True

    def __init__(self, config: RunConfig):
        """Open the models and build the search spaces; no weight is read."""
        assert config.path is not None
        self.weights, self.path = WeightProblem(config), config.path
        self.others = [Checkpoint(m) for m in config.path.models]
        merged, stack = self.weights.config, Stack(self.others)
        kinds = merged.layer_kinds + stack.config.layer_kinds
        self.config = type(merged)(**{**vars(merged), "layer_kinds": kinds})
        names = (MERGED, *(c.name for c in self.others))
        depths = (merged.num_hidden_layers, *(c.config.num_hidden_layers for c in self.others))
        self.space = path_space(config.path, names, depths)
        self.names = (*self.weights.names, *self.space.names)
        start = np.broadcast_to(self.weights.mean, len(self.weights.names))
        known_as = dict(zip((MERGED, *config.path.models), names, strict=True))
        self.mean = np.concatenate([start, path_start(self.space, config.path, known_as, config.search.sigma)])
        self.notes, self.stack = self.weights.notes, stack
        known = {c.reference for c in self.weights.checkpoints}
        self.checkpoints = [*self.weights.checkpoints, *(c for c in self.others if c.reference not in known)]
        self.title = f"{self.weights.title}, and a path through it and {', '.join(names[1:])}"

    def _split(self, genome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.weights.names)
        return genome[:count], genome[count:]

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name."""
        weights, path = self._split(genome)
        return self.weights.values(weights) | self.space.values(path)

    def distinct(self, genomes: np.ndarray) -> np.ndarray:
        """(P, n) -> (P, n) float32, equal where candidates are."""
        weights, paths = np.split(genomes, [len(self.weights.names)], axis=1)
        return np.concatenate([self.weights.distinct(weights), distinct(self.space, paths)], axis=1)

    def load(self, mesh: Mesh | None = None) -> Candidates:
        """Read the weights."""
        blocks = self.stack.load(mesh)["layers"]
        return MergedAndRouted(self.weights.load(mesh), blocks, self.space, self.path.scale)

    def abstract(self, mesh: Mesh) -> Candidates:
        """Shapes, dtypes and shardings of what `load` returns; reads nothing."""
        blocks = self.stack.load(mesh, abstract=True)["layers"]
        return MergedAndRouted(self.weights.abstract(mesh), blocks, self.space, self.path.scale)

    def export(self, genome: np.ndarray, out: Path, **options: Any) -> None:
        """Merge first, beside `out`, then write the path."""
        weights, path = self._split(genome)
        with scratch_folder(out.with_name(f"{out.name}.merge")) as work:
            self.weights.export(weights, work / MERGED)
            models = (str(work / MERGED), *self.path.models)
            PathProblem(self.path.model_copy(update={"models": models, "start": ()})).export(path, out, **options)


MERGED = "merged"  # what model A is called in a joint search
Problem = WeightProblem | PathProblem | JointProblem


def make_problem(config: RunConfig) -> Problem:
    """The problem that a run's config describes."""
    if config.path is None:
        return WeightProblem(config)
    return PathProblem(config.path, config.search.sigma) if config.recipe is None else JointProblem(config)


def path_space(path: PathSearch, names: tuple[str, ...], depths: tuple[int, ...]) -> PathSpace:
    """The space of a config's `path`."""
    return PathSpace(names, depths, path.repeats, path.scaling, path.scale_range)


def path_start(space: PathSpace, path: PathSearch, names: Mapping[str, str], sigma: float) -> np.ndarray:
    """(n,) the config's start, by default model A; its slots are 2 sigma above the threshold, as in the paper.

    `names` are those that the space has for the config's models.  Raises InputError for what the space does not hold.
    """
    slices = [(s.model, *s.layer_range) for s in path.start]
    if unknown := [model for model, *_ in slices if model not in names]:
        raise InputError(f"path.start: {unknown[0]} is not among the path's models {', '.join(names)}")
    hops = hops_of([(names[model], first, stop) for model, first, stop in slices])
    hops = hops or hops_of([(space.models[0], 0, space.depths[0])])
    off = 0.5 + sigma * float(ndtri(path.others_on))
    try:
        return encode(space, hops, on=min(1.0, 0.5 + 2 * sigma), off=max(0.0, off))
    except InputError as error:
        raise InputError(f"path.start: {error}") from None


def passthrough(slices: list[tuple[str, int, int]], dtype: str) -> str:
    """The mergekit recipe of a path with unit scales."""
    lines = ["merge_method: passthrough", f"dtype: {dtype}", "slices:"]
    for model, first, last in slices:
        lines += ["  - sources:", f"      - {{model: {model}, layer_range: [{first}, {last}]}}"]
    return "\n".join(lines) + "\n"
