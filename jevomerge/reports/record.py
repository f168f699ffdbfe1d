"""What a run folder holds, as arrays; the models that were searched are not needed and may be gone."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jevomerge.config import RunConfig, StagedConfig, read_config
from jevomerge.errors import InputError
from jevomerge.genome.names import GeneName
from jevomerge.genome.route import Hop, PathSpace, describe, express_path
from jevomerge.genome.space import Space
from jevomerge.methods.registry import get_method
from jevomerge.models.route import Route
from jevomerge.search.archive import read_archive
from jevomerge.search.records import read_drawn, read_environment, read_heldout, read_outcome


@dataclass(frozen=True)
class Run:
    """A run so far: E evaluations of genomes of n genes."""

    folder: Path
    config: RunConfig
    environment: dict[str, Any]
    evaluations: list[dict[str, Any]]
    result: dict[str, Any] | None  # None: the run is not finished
    heldout: dict[str, Any] | None  # heldout.json; None: not written yet, or by a version that wrote none
    drawn: dict[str, Any] | None = None  # drawn.json; None: no pictures are drawn

    @property
    def shown(self) -> dict[str, Any]:
        """What of heldout.json's form has pictures to look at: the held-out split's, before the end the best so far."""
        known = self.heldout if self.result is not None else self.drawn
        return known or {"examples": {}, "sources": {}, "average": None, "best": None}

    @property
    def genes(self) -> list[str]:
        """The names of the n genes."""
        return self.environment["genes"]

    @functools.cached_property
    def genomes(self) -> np.ndarray:
        """(E, n) in the unit box."""
        return np.array([e["genome"] for e in self.evaluations], np.float64).reshape(-1, len(self.genes))

    @functools.cached_property
    def fitness(self) -> np.ndarray:
        """(E,) NaN where there is none."""
        return np.array([np.nan if e["fitness"] is None else e["fitness"] for e in self.evaluations], np.float64)

    @functools.cached_property
    def seconds(self) -> np.ndarray:
        """(E,) that each evaluation took."""
        return np.array([e["seconds"] for e in self.evaluations], np.float64)

    @functools.cached_property
    def tokens(self) -> np.ndarray | None:
        """(E, 2) that each was run on: of prompts, and of answers; None: written by a version that did not count."""
        if not all("tokens" in e for e in self.evaluations):
            return None
        counts = [(e["tokens"]["prompt"], e["tokens"]["answer"]) for e in self.evaluations]
        return np.array(counts, np.int64).reshape(-1, 2)

    @property
    def spent(self) -> dict[str, tuple[int, int]]:
        """Tokens by what they were for, of prompts and of answers: the search; of a finished run also all else.

        Those that gradients saw, finalists on the whole search split, sources and their average, and the result (these
        on both splits). {} if the search's were not counted.
        """
        if self.tokens is None or not self.tokens.any():
            return {}
        prompt, answer = self.tokens.sum(axis=0).tolist()
        others = {} if self.result is None else self.result.get("tokens", {})
        return {"search": (prompt, answer)} | {name: (t["prompt"], t["answer"]) for name, t in others.items()}

    @property
    def strategy(self) -> str:
        """Its name, also where the configuration leaves it open."""
        return self.config.search.strategy or ("cma_es" if self.config.path is None else "mixed")

    @functools.cached_property
    def generations(self) -> list[np.ndarray]:
        """The evaluations of each generation, by index; the last one may not be complete."""
        number = np.array([e["generation"] for e in self.evaluations], int)
        return [np.flatnonzero(number == g) for g in np.unique(number)]

    def champions(self) -> np.ndarray:
        """(G,) the best evaluation of each generation."""
        ranked = np.where(np.isnan(self.fitness), -np.inf, self.fitness)
        return np.array([g[np.argmax(ranked[g])] for g in self.generations], int)

    @property
    def best(self) -> int:
        """The evaluation that is the outcome, so far the one with the highest fitness."""
        if self.result is not None:
            place = divmod(self.result["best"]["evaluation"], self.environment["population"])
            found = [i for i, e in enumerate(self.evaluations) if (e["generation"], e["member"]) == place]
            if found:  # its line may be damaged
                return found[0]
        return int(np.argmax(np.where(np.isnan(self.fitness), -np.inf, self.fitness)))

    def references(self) -> dict[str, dict[str, float]]:
        """{source or "plain average": {split: fitness}}, as far as they are known."""
        known = self.result or self.heldout or {"sources": {}, "average": None}
        average = {} if known["average"] is None else {"plain average": known["average"]}
        return {name: {s: row[s] for s in ("search", "heldout")} for name, row in (known["sources"] | average).items()}

    @property
    def num_weight_genes(self) -> int:
        """How many genes are coefficients of a recipe; those of a path follow."""
        return next((i for i, name in enumerate(self.genes) if name.startswith("slot 0 = ")), len(self.genes))


def read_run_folder(folder: Path) -> RunConfig | StagedConfig:
    """The configuration of a run, or of several stages, by its folder.

    Raises:
        InputError: for a folder that is no run.
    """
    if not (folder / "config.yaml").exists():
        raise InputError(f"{folder} is not a run: it has no config.yaml; give a folder that `jevomerge evolve` wrote")
    return read_config(folder / "config.yaml")


def read_record(folder: Path, config: RunConfig) -> Run:
    """What is in the folder of a run, finished or not."""
    log, environment = folder / "evaluations.jsonl", read_environment(folder)
    evaluations = read_archive(log) if log.exists() else []
    if any(len(e["genome"]) != len(environment["genes"]) for e in evaluations):
        raise InputError(f"{log}: its genomes do not have the genes of environment.json; is it of another run?")
    return Run(
        folder=folder,
        config=config,
        environment=environment,
        evaluations=evaluations,
        result=read_outcome(folder),
        heldout=read_heldout(folder),
        drawn=read_drawn(folder),
    )


def weight_space(record: Run) -> Space:
    """The space of the recipe's coefficients: which number a gene is, not which tensors it is for."""
    assert record.config.recipe is not None
    names = record.genes[: record.num_weight_genes]
    parameters = {p.name: p for p in get_method(record.config.recipe.merge_method).parameters}
    searched = [parameters[GeneName.parse(name).parameter] for name in names]
    ranges = np.array([record.config.genome[p.name].range or p.domain for p in searched], np.float32).reshape(-1, 2)
    discrete = np.array([p.kind != "float" for p in searched], bool)
    return Space(
        low=jnp.asarray(ranges[:, 0]),
        high=jnp.asarray(ranges[:, 1]),
        levels=jnp.asarray(np.where(discrete, ranges[:, 1] - ranges[:, 0] + 1, 0), jnp.float32),
        constants=jnp.zeros(0, jnp.float32),
        ends=jnp.zeros((0, 2), jnp.int32),
        share=jnp.zeros(0, jnp.float32),
        index={},
        names=tuple(names),
    )


def path_space(record: Run) -> PathSpace:
    """The space of the paths, from the names of its genes."""
    path = record.config.path
    assert path is not None
    slots = [m.groups() for name in record.genes if (m := re.fullmatch(r"slot \d+ = (.*):(\d+)", name))]
    layers = slots[: len(slots) // path.repeats]
    models = tuple(dict.fromkeys(model for model, _ in layers))
    depths = tuple(sum(model == m for m, _ in layers) for model in models)
    return PathSpace(models, depths, path.repeats, path.scaling, path.scale_range)


@dataclass(frozen=True)
class Paths:
    """The paths of E genomes through `space`."""

    space: PathSpace
    on: np.ndarray  # (E, T) bool: the slots on
    routes: Route  # each field with a leading axis of E

    @property
    def length(self) -> np.ndarray:
        """(E,) how many hops each has."""
        return np.asarray(self.routes.length)

    def hops(self, which: int) -> list[Hop]:
        """The hops of one path."""
        return describe(self.space, jax.tree.map(lambda x: x[which], self.routes))

    def passes(self, which: int) -> np.ndarray:
        """(length,) in which repetition of the layers each hop is; an appended end is in the last hop's."""
        passes = np.flatnonzero(self.on[which]) // self.space.num_layers
        return np.append(passes, passes[-1:])[: self.length[which]]


def read_paths(record: Run) -> Paths:
    """The paths of all evaluations."""
    space, genomes = path_space(record), record.genomes[:, record.num_weight_genes :]
    routes = jax.jit(jax.vmap(functools.partial(express_path, space)))(jnp.asarray(genomes, jnp.float32))
    on = genomes.astype(np.float32)[:, : space.num_slots] > 0.5
    on[:, 0] = True
    return Paths(space, on, jax.device_get(routes))
