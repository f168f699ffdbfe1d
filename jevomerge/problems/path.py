"""Data-flow space: a path through the blocks of several models, and how one is written as an ordinary model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jax import Array
from jax.sharding import Mesh
from scipy.special import ndtri

from jevomerge.checkpoint.card import before_publishing, write_card
from jevomerge.checkpoint.export import copy_processor, copy_tokenizer, export_folder, write_model
from jevomerge.checkpoint.frame import Frame
from jevomerge.checkpoint.safetensors_file import DTYPES, NUMPY
from jevomerge.checkpoint.source import Checkpoint, Source
from jevomerge.devices.schema import Memory
from jevomerge.errors import InputError
from jevomerge.genome.route import PathSpace, describe, distinct, encode, express_path, hops_of, slices_of
from jevomerge.genome.schema import PathSearch
from jevomerge.models.decoder.fold import Folding
from jevomerge.models.layers import Params
from jevomerge.models.model import Language
from jevomerge.models.route import Route, Scaling
from jevomerge.models.specs import tensor_names
from jevomerge.problems.problem import Baseline, Candidates, Instance, Score
from jevomerge.problems.stack import Stack
from jevomerge.recipe.schema import Recipe, RecipeModel, seen_from
from jevomerge.recipe.sources import Sources
from jevomerge.schema import Notes
from jevomerge.strategies.paths import make_path_strategy
from jevomerge.strategies.schema import Search
from jevomerge.strategies.strategy import Strategy
from jevomerge.tokenizers.load import load_tokenizer


class PathProblem:
    """Data-flow space: a path through the blocks of several models, the first of which is model A."""

    sources = None
    scores_sources = True
    shared = "paths lead candidates through different blocks"
    no_gradient = "there is no gradient through a path; give it to a stage with a `recipe` alone, or leave it out"

    def __init__(self, path: PathSearch, sigma: float = 1 / 6):
        """Open the models and build the search space; no weight is read."""
        self.path, self.notes = path, Notes()
        self.checkpoints = [Checkpoint(m) for m in path.models]
        self.notes.update(c.notes for c in self.checkpoints)
        for text in before_publishing(self.checkpoints):
            self.notes.add(text)
        self.stack = Stack(self.checkpoints)
        self.model = self.stack.model
        names = tuple(c.name for c in self.checkpoints)
        depths = tuple(len(c.model.kinds) for c in self.checkpoints)
        self.space = path_space(path, names, depths)
        self.names = self.space.names
        self.mean: float | np.ndarray = path_start(self.space, path, dict(zip(path.models, names, strict=True)), sigma)
        self.gradient = np.zeros(len(self.names), bool)
        self.title = f"a path through {', '.join(names)}"

    def strategy(self, search: Search, seed: int = 0) -> Strategy:
        """By default one that knows what a path is."""
        settings = (search.population, self.mean, search.sigma, seed)
        return make_path_strategy(search.strategy or "mixed", self.space, *settings)

    def starts(self, which: Sequence[str]) -> np.ndarray:
        """None but the mean."""
        raise InputError("search.start: a search over paths begins where `path.start` says; leave it out")

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name."""
        return self.space.values(genome)

    def distinct(self, genomes: np.ndarray) -> np.ndarray:
        """(P, n) -> (P, k) float32, equal where candidates are."""
        return distinct(self.space, genomes)

    def load(
        self,
        mesh: Mesh | None = None,
        memory: Memory = "device",
        *,
        abstract: bool = False,
        together: bool = False,
    ) -> Routed:
        """Read the stack of blocks, or only find shapes; from the memory of the host each hop fetches its block."""
        return Routed(self.stack.load(mesh, memory, abstract=abstract), self.space, self.path.scale, memory)

    def baselines(self, candidates: Candidates) -> Iterator[Baseline]:
        """Each model as it lies in its files, its blocks where those of candidates are."""
        assert isinstance(candidates, Routed)
        return (
            Baseline(c.name, c.model, functools.partial(c.load, memory=candidates.memory)) for c in self.checkpoints
        )

    def merge_of(self, baseline: str) -> Sources:
        """One of the models, unchanged."""
        return unchanged(next(c for c in self.checkpoints if c.name == baseline))

    @property
    def seer(self) -> Source | None:
        """Model A, if it sees."""
        return self.checkpoints[0] if self.checkpoints[0].frame else None

    def tokenizer(self) -> Any:
        """That of model A."""
        return load_tokenizer(self.checkpoints[0].folder)

    def exported(self, hops: int | None = None) -> tuple[Language, str]:
        """Model A's, with as many blocks as the path has hops."""
        return folded_as(self.path, self.checkpoints[0].model, self.checkpoints[0].dtype(), hops)

    def export(
        self,
        genome: np.ndarray,
        out: Path,
        *,
        title: str | None = None,
        score: Score | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        names: Mapping[str, str] | None = None,
        before: str = "",
    ) -> None:
        """Write the path of a genome as an ordinary model, its scales folded into the weights.

        Args:
            genome: (n,).
            out: a folder that does not exist yet.
            title: of the model card, by default the folder's name.
            score: as for `merge_to_folder`.
            progress: called with (tensors written, tensors in all).
            names: {path of a model: what the recipe calls it}, and
            before: the recipe's documents that make those.
        """
        path = express_path(self.space, jnp.asarray(genome, jnp.float32))
        folding = self.stack.model.fold(path, self.path.scale)
        like = self.checkpoints[0]
        hops = describe(self.space, path)
        # Scaled weights rounded to bfloat16 are not what was scored.
        dtype = self.path.dtype or (like.dtype() if all(hop.scale == 1 for hop in hops) else "float32")
        text = "".join(f"{hop.model}:{hop.layer} {hop.scale:.9g}\n" for hop in hops)
        with export_folder(out) as folder:
            write_folded(folder, self.stack.model, folding, self.stack.read, dtype, like.frame)
            copy_tokenizer(folder, like)
            copy_processor(folder, like.frame)
            (folder / "path.txt").write_text(text, encoding="utf-8")
            recipe = f"# model:layer and the scale of its input, hop by hop\n{text}"
            if all(hop.scale == 1 for hop in hops):
                called = seen_from(out, names)
                references = {c.name: called(c.reference) for c in self.checkpoints}
                slices = [(references[model], first, last) for model, first, last in slices_of(hops)]
                carry = references[like.name] if like.frame else None
                recipe = before + passthrough(slices, dtype, carry)
                (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
            own = (name for name, *_ in tensor_names(self.exported(len(hops))[0].specs))
            carried = like.frame.told(own, like.name) if like.frame else ()
            told = score(folder) if score else None
            write_card(folder, title or out.name, recipe, self.checkpoints, scoring=told, carried=carried)
        progress(1, 1)

    def reopen(self, folder: Path) -> Checkpoint:
        """What `export` wrote."""
        return Checkpoint(folder)

    def hollow(self, out: Path) -> bool:
        """How many layers a path will have is not known before it is found."""
        return False


def unchanged(checkpoint: Source) -> Sources:
    """The recipe of a model as it is."""
    models = (RecipeModel(model=checkpoint.reference),)
    return Sources(
        Recipe.model_validate({"merge_method": "passthrough", "models": models, "dtype": checkpoint.dtype()})
    )


def folded_as(path: PathSearch, first: Language, dtype: str, hops: int | None) -> tuple[Language, str]:
    """What a path of so many hops is exported as, if model A has the architecture `first` and this dtype."""
    kinds = itertools.islice(itertools.cycle(first.kinds), len(first.kinds) if hops is None else hops)
    # Scales that are folded into the weights are kept in float32.
    return first.resized(list(kinds)), path.dtype or (dtype if path.scaling == "none" else "float32")


def path_space(path: PathSearch, names: tuple[str, ...], depths: tuple[int, ...]) -> PathSpace:
    """The space of a config's `path`."""
    return PathSpace(names, depths, path.repeats, path.scaling, path.scale_range)


def path_start(space: PathSpace, path: PathSearch, names: Mapping[str, str], sigma: float) -> np.ndarray:
    """(n,) the config's start, by default model A; its slots are 2 sigma above the threshold, as in the paper.

    `names` are those that the space has for the config's models. Raises InputError for what the space does not hold.
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


def passthrough(slices: list[tuple[str, int, int]], dtype: str, carry: str | None) -> str:
    """The mergekit recipe of a path with unit scales; `carry`: whose other parts the result has, if it has any."""
    stack = [{"sources": [{"model": model, "layer_range": [first, last]}]} for model, first, last in slices]
    recipe = {"merge_method": "passthrough", "dtype": dtype, "slices": stack}
    recipe |= {} if carry is None else {"carry": carry}
    text: str = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return text


def write_folded(
    folder: Path,
    model: Language,
    folding: Folding,
    read: Callable[[str, int | None, tuple[int, ...]], Any],
    dtype: str,
    frame: Frame | None = None,
) -> None:
    """Write config.json and the weights of the ordinary model into `folder`, tensor by tensor.

    Args:
        folder: an existing folder, usually from `export_folder`.
        model: the stack that the path leads through.
        folding: of the path.
        read: (leaf path, block of the stack or None, where along other axes) -> that tensor, as `Stack.read`.
        dtype: of the weights: float32, bfloat16 or float16.
        frame: as for `write_model`.

    Raises:
        InputError: if a folded weight is too large for `dtype`, or the disk has no room.
    """

    ordinary = model.resized([model.kinds[block] for block in folding.blocks])
    specs = {spec.path: spec for spec in ordinary.specs}

    def tensor(name: str, path: str, at: tuple[int, ...]) -> np.ndarray:
        layer = specs[path].layer(at)
        block = None if layer is None else folding.blocks[layer]
        with np.errstate(over="ignore"):
            array: np.ndarray = folding.tensor(path, layer, read(path, block, at[1:])).astype(NUMPY[DTYPES[dtype]])
        return array

    write_model(folder, ordinary.files, ordinary.specs, dtype, tensor, frame=frame)


@flax.struct.dataclass
class Routed(Candidates):
    """Data-flow space: a genome is a path through a stack of blocks.

    Not batched: under vmap all members would make as many hops as the longest.
    """

    params: Params
    space: PathSpace = flax.struct.field(pytree_node=False)
    scale: Scaling = flax.struct.field(pytree_node=False)
    memory: Memory = flax.struct.field(pytree_node=False, default="device")  # in which the blocks are

    def model(self, made: None, genome: Array, slots: int | None = None) -> Instance:
        """The stack with a path."""
        return Instance(self.params, route=with_slots(express_path(self.space, genome), slots), scale=self.scale)

    def held(self) -> tuple[Params, None]:
        """The stack."""
        return self.params, None

    def hops(self, genomes: np.ndarray) -> np.ndarray:
        """Of each path."""
        return np.asarray(path_lengths(self.space, genomes.astype(np.float32)))

    def slots(self, genomes: np.ndarray) -> int:
        """Of the longest path, rounded up to 16: a cache has room for each hop."""
        return slots_of(self.space, self.hops(genomes))


def with_slots(path: Route, slots: int | None) -> Route:
    """The path in `slots` slots, which must hold it."""
    return Route(path.layers[:slots], path.scales[:slots], path.length)


def slots_of(space: PathSpace, hops: np.ndarray) -> int:
    """The most hops, rounded up to 16, at most those there are."""
    return min(-(-int(np.max(hops)) // 16) * 16, space.num_slots + 1)


@jax.jit
def path_lengths(space: PathSpace, genomes: Array) -> Array:
    """(M, n) genomes -> (M,) how many hops each path has."""
    return jax.vmap(lambda genome: express_path(space, genome).length)(genomes)
