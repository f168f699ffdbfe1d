"""What is searched: the protocol of a problem, and what its candidates have in common.

A problem has genes, and knows what a genome stands for: weights that are merged, a path through blocks, or both. There
is one file for each kind, and `kinds.make_problem` alone asks which kind it is.

Candidates are a pytree, an argument of jitted functions. `make` is what is worth computing once for many forward
passes of a candidate (a merge), `model` its model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import flax.struct
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.checkpoint.scoring import Scoring
from jevomerge.checkpoint.source import Source
from jevomerge.devices.mesh import WHOLE
from jevomerge.devices.schema import Memory
from jevomerge.models.layers import Params
from jevomerge.models.model import Language, Layer, as_stored
from jevomerge.models.route import Route, Scaling
from jevomerge.recipe.sources import Sources
from jevomerge.schema import Notes
from jevomerge.strategies.schema import Search
from jevomerge.strategies.strategy import Strategy

Score = Callable[[Path], Scoring]  # an exported folder -> what its card says of how good it is
AVERAGE = "plain average"  # what that of the sources is called


class Problem(Protocol):
    """What is searched, opened and checked; no weight has been read."""

    names: tuple[str, ...]  # of the n genes
    mean: float | np.ndarray  # of the first generation: a number, or (n,), which is a model
    title: str
    notes: Notes
    model: Language  # that a forward pass of a candidate runs
    scores_sources: bool  # whether a run scores its sources
    gradient: np.ndarray  # (n,) bool: the genes along which there is one
    no_gradient: str  # why no gene has one, if that is so, and the remedy

    @property
    def shared(self) -> Shared | str:
        """What candidates read if they share it, or why they cannot."""

    @property
    def checkpoints(self) -> Sequence[Source]:
        """All models that are read."""

    @property
    def sources(self) -> Sources | None:
        """Those of the recipe; None without one."""

    def strategy(self, search: Search, seed: int = 0) -> Strategy:
        """What searches for the fitness, `seed` as for `make_strategy`; raises ValueError for what cannot work."""

    def starts(self, which: Sequence[str]) -> np.ndarray:
        """(k, n) members of the first generation, as `search.start` says; raises InputError where there are none."""

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes (n,) by name, in their ranges."""

    def distinct(self, genomes: np.ndarray) -> np.ndarray:
        """(P, n) -> (P, k) float32, equal where candidates are."""

    def load(
        self,
        mesh: Mesh | None = None,
        memory: Memory = "device",
        *,
        abstract: bool = False,
        together: bool = False,
    ) -> Candidates:
        """Read the weights; `abstract`, which needs a mesh: only shapes, dtypes and shardings of all, nothing is read.

        `memory`: where the models of a recipe wait for their merges, as for `Sources.load`. `together`: of candidates
        that share what they read, on the devices.

        Raises:
            InputError: for weights that are broken.
        """

    def baselines(self, candidates: Candidates) -> Iterator[Baseline]:
        """The models that candidates are compared with: of a merge of whole models their average, and all sources."""

    def merge_of(self, baseline: str) -> Sources:
        """The merge that writes a baseline, by its name or `AVERAGE`, as it was scored."""

    @property
    def seer(self) -> Source | None:
        """The model whose parts beside the language model the exported one has; None: it has none."""

    def tokenizer(self) -> Any | None:
        """The tokenizer that the exported model will have; None: it has none."""

    def exported(self, hops: int | None = None) -> tuple[Language, str]:
        """Model and dtype of what that `export` writes of a path of so many hops (None: of no path)."""

    def export(
        self,
        genome: np.ndarray,
        out: Path,
        *,
        title: str | None = None,
        score: Score | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Write the model of a genome (n,) as the Hugging Face folder `out`, which must not exist.

        `title` is that of the model card, by default the folder's name. `score` is called with the folder when its
        weights are written, for the card; `progress` with how much of the work is done and how much there is.
        """

    def reopen(self, folder: Path) -> Source:
        """What `export` wrote there."""

    def hollow(self, out: Path) -> bool:
        """Write the exported model with holes for weights, if it is known before the search; whether it is."""


class Shared(NamedTuple):
    """The matrices of candidates that are merged, or not."""

    size: int  # how many numbers those of one model have
    read: int  # how many there are in the sources, with adapters in their two matrices
    stored: int  # bytes of each of them
    made: int  # of each of one that is merged


class Baseline(NamedTuple):
    """A model that candidates are compared with."""

    name: str | None  # None: the plain average of the sources
    model: Language
    load: Callable[[Mesh], Params]


class Instance(NamedTuple):
    """One model with its weights: arguments of `jevomerge.models.apply`."""

    params: Any
    layer: Layer = as_stored
    route: Route | None = None
    scale: Scaling = "stream"


class Candidates:
    """What the candidates of all kinds have in common."""

    batched = False  # whether members may be vmapped
    together = False  # whether members share what they read, and so are always vmapped
    lazy = True  # whether one forward pass needs nothing made (a merge then happens in it, block by block)

    def make(self, genome: Array) -> Any:
        """(n,) -> what is computed once; None: nothing is."""
        return None

    def model(self, made: Any, genome: Array, slots: int | None = None) -> Instance:
        """(n,) and what was made of it -> the model, if it is a path with room for `slots` hops (None: for any)."""
        raise NotImplementedError

    def held(self) -> tuple[Any, Any]:
        """What is there through the whole run, as pytrees: the sources, and what is prepared from them."""
        raise NotImplementedError

    def over_pop(self) -> Any:
        """Over what each of its arrays is dealt, as `devices.mesh.spread` takes it."""
        return WHOLE

    def unrounded(self) -> Candidates:
        """The same, with weights that are computed in float32 and not rounded to the model's dtype: for gradients."""
        return self

    def hops(self, genomes: np.ndarray) -> np.ndarray | None:
        """(M,) how long the paths of (M, n) genomes are; None without paths."""
        return None

    def slots(self, genomes: np.ndarray) -> int | None:
        """How much room the paths of (M, n) genomes need, rounded up to 16; None without paths."""
        return None


@flax.struct.dataclass
class Whole(Candidates):
    """One model; its genome has no genes."""

    params: Params

    def model(self, made: None, genome: Array, slots: int | None = None) -> Instance:
        """The model."""
        return Instance(self.params)

    def held(self) -> tuple[Params, None]:
        """The model's weights."""
        return self.params, None
