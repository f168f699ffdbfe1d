"""The YAML schema of how a genome is searched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from jevomerge.schema import Strict


class Anchors(Strict):
    """A few examples that stand for all of a task's search split, chosen by what the sources do on each of them."""

    examples: int = Field(gt=0)  # of each task
    estimator: Literal["mean", "irt"] = "mean"  # how the score on all follows; see fitness/anchors.py


class Search(Strict):
    """How the genome is searched; the defaults are the paper's (CMA-ES from 0.5 with sigma 1/6)."""

    strategy: str | None = None  # None: cma_es, for paths mixed; nsga2: each task is a goal of its own; else a class of
    # evosax.algorithms, or your own as module:Class (see strategies/registry.py)
    evaluations: int = Field(1000, ge=0)  # 0: `refine` has the start to itself
    population: int | None = Field(None, gt=0, le=100_000)  # None: 4 + floor(3 ln n)
    mean: float = Field(0.5, ge=0, le=1)  # of the first generation, in the unit box of the genes' ranges
    sigma: float = Field(1 / 6, gt=0)  # likewise
    start: tuple[Literal["sources", "average", "sparsified"], ...] = ()  # last members of the first generation
    examples_per_generation: int | None = Field(None, gt=0)  # None: all of every task's search split
    anchors: Anchors | None = None  # fitness is an estimate from a few examples, always the same
    racing: Literal["exact", "hoeffding"] | None = None  # whether candidates that are too bad are scored to the end
    finalists: int = Field(5, gt=0)  # with minibatches, anchors or `memory: int8`: how many are scored on the whole
    # split at the end, with weights in eight bits as they are;
    # with nsga2: how many points of the front are exported: the best, the best of each task, those farthest from them
    share: bool | Literal["auto"] = "auto"  # whether candidates of a linear method run together without being merged:
    # auto where that is cheaper and as exact (planning/sharing.py), true also where merged weights would be rounded to
    # half precision
    checkpoint_every: int = Field(10, gt=0)  # generations
    time_limit: float | None = Field(None, gt=0)  # seconds for candidates that are scored together, compiling included

    @field_validator("start")
    @classmethod
    def _each_once(cls, start: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(start)) < len(start):
            raise ValueError("give each kind of start once")
        return start

    @model_validator(mode="after")
    def _one_saving(self) -> Search:
        if self.anchors is not None and self.examples_per_generation is not None:
            raise ValueError("`anchors` and `examples_per_generation` both say what is scored: leave one of them out")
        if self.anchors is not None and self.racing is not None:
            raise ValueError("`racing` bounds a score, `anchors` estimate one: leave one of them out")
        return self


class Refine(Strict):
    """The best genomes are moved along the gradient of a loss; see search/refine.py."""

    # Of reference answers; of what follows the prompts; what a function of parameters says.
    objective: Literal["likelihood", "entropy", "fitness"] = "likelihood"
    optimizer: Literal["adam", "sgd"] = "adam"  # of optax
    learning_rate: float = Field(0.02, gt=0)  # in the unit box of the genes' ranges
    steps: int = Field(20, gt=0)  # of the optimizer, for each genome
    examples_per_step: int | None = Field(16, gt=0)  # of each task's search split; None: all
    best: int = Field(1, gt=0)  # how many genomes are refined
    every: int | None = Field(None, gt=0)  # also in each such generation of the search; None: only after it
