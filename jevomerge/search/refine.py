"""Gradients where they exist: genomes moved along the gradient of a loss through the merged model.

The loss is minus the mean log-likelihood of the search split's reference answers (also of tasks that are scored by
generation), the mean entropy of the next token over its prompts alone (AdaMerging, arXiv:2310.02575), or minus what a
function of the user's says of the parameters. A gene whose
gradient is not that of the merge (whole numbers, switches, densities) stays where it is, and so does every gene at a
step where a gradient is not finite. Genomes stay in the unit box: each step is projected onto it.

What comes out is a candidate like any other: scored by the fitness, recorded, and chosen if it is the best. After the
search these are a generation of their own. Between generations they take the place of the last members of the next
one, which CMA-ES then learns from as if it had drawn them; it assumes that its steps have the length of its draws, so
that a longer one, in its own metric, is shortened first (Hansen 2011, "Injecting external solutions into CMA-ES").

The merge is differentiated in float32, without the rounding to the model's dtype in which candidates are scored.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from jevomerge.devices.mesh import everywhere, put
from jevomerge.devices.signals import safe_point
from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example, Layout
from jevomerge.fitness.judge import Judge
from jevomerge.fitness.outcome import Tokens, count_tokens
from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.fitness.task import Ready
from jevomerge.fitness.tasks import AnyTask
from jevomerge.problems.problem import Candidates, Problem
from jevomerge.search.archive import Archive
from jevomerge.search.gradient import OPTIMIZERS, step
from jevomerge.strategies.schema import Refine
from jevomerge.strategies.strategy import PARETO, Strategy


class Refiner:
    """What is needed to move genomes of one run along the gradient."""

    def __init__(self, refine: Refine, candidates: Candidates, free: np.ndarray, judge: Judge, seed: int):
        """Lays out the batches of a step: of each task, `examples_per_step` rows as long as the longest.

        Args:
            refine: the objective, the optimizer and how often.
            candidates: of the problem; may be shapes alone, for a plan.
            free: (n,) bool, the genes along which there is a gradient.
            judge: whose search split the batches are drawn from, on its mesh.
            seed: of the run.
        """
        self.refine, self.free, self.judge, self.seed = refine, free, judge, seed
        self.candidates = candidates.unrounded()
        self.tasks = self.judge.tasks
        total = sum(task.weight for task in self.tasks)
        self.shares = tuple(task.weight / total for task in self.tasks)
        self.rollouts = tuple(self._rollout(task) for task in self.tasks)
        self.layouts = tuple(map(self._layout, self.tasks, self.rollouts))

    def _rollout(self, task: Ready) -> Rollout:
        """What the loss is computed from."""
        if self.refine.objective == "fitness":
            return task.rollout
        assert task.answers is not None
        return task.answers

    def _layout(self, task: Ready, rollout: Rollout) -> Layout:
        examples = self._examples(task)
        if not isinstance(rollout, Likelihood):  # a function of parameters alone, whose scores come all together
            (layout,) = rollout.layouts(examples, [], self.judge.tokens_per_batch)
            return layout
        lengths = [len(e.prompt_tokens) + len(e.answer_tokens) for e in examples]
        slots = max(1, *(len(e.answer_tokens) for e in examples))
        rows = min(self.refine.examples_per_step or len(examples), len(examples))
        return Layout(rows, -(-max(lengths) // 8) * 8, slots, max(e.features for e in examples))

    def _examples(self, task: Ready, subset: Mapping[str, np.ndarray] | None = None) -> list[Example]:
        """What the loss is of: the task's examples, for the entropy without their answers."""
        if not isinstance(self._rollout(task), Likelihood):
            subset = None
        examples = self.judge.chosen(task, "search", subset)
        if self.refine.objective != "entropy":
            return examples
        return [e._replace(answer_tokens=[]) for e in examples]

    def batches(self, key: Array) -> list[Any]:
        """A random batch of each task's search split."""
        found = []
        subset = self._subset(key)
        for task, rollout, layout in zip(self.tasks, self.rollouts, self.layouts, strict=True):
            batch = rollout.batch(self.judge.subject, self._examples(task, subset), layout)
            found.append(jax.tree.map(lambda x: put(x, everywhere(self.judge.mesh)), batch))
        return found

    def _subset(self, key: Array) -> dict[str, np.ndarray]:
        return self.judge.sample("search", self.refine.examples_per_step, key)

    def __call__(self, genome: np.ndarray, key: Array) -> np.ndarray:
        """(n,) -> (n,) after all steps."""
        *_, (_, end) = self.walk(genome, key)
        return end

    def walk(self, genome: np.ndarray, key: Array) -> Iterator[tuple[float, np.ndarray]]:
        """The loss before each step, on the examples of that step, and the genome (n,) after it."""
        where = everywhere(self.judge.mesh)
        start, rate = (
            put(np.asarray(genome, np.float32), where),
            put(np.asarray(self.refine.learning_rate, np.float32), where),
        )
        state = start, jax.tree.map(lambda x: put(np.asarray(x), where), self._optimizer.init(start))
        free = put(self.free, where)
        for number in range(self.refine.steps):
            safe_point()
            batches = self.batches(jax.random.fold_in(key, number))
            state, value = step(self.candidates, free, rate, state, batches, **self._static)
            # Genes that do not move keep all their digits.
            yield float(value), np.where(self.free, np.asarray(state[0], np.float64), genome)

    def traced(self) -> Any:
        """The step as `jax.jit(f).trace` returns it, from shapes: nothing is read or put on a device."""
        genome, free, rate = (
            jax.ShapeDtypeStruct(*x)
            for x in ((self.free.shape, np.float32), (self.free.shape, np.bool_), ((), np.float32))
        )
        batches = [r.batch(self.judge.subject, [], n) for r, n in zip(self.rollouts, self.layouts, strict=True)]
        state = genome, jax.eval_shape(self._optimizer.init, genome)
        where = everywhere(self.judge.mesh)
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), (free, rate, state, batches)
        )
        return step.trace(self.candidates, *arguments, **self._static)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return OPTIMIZERS[self.refine.optimizer](self.refine.learning_rate)

    @property
    def _static(self) -> dict[str, Any]:
        static: dict[str, Any] = {"mesh": self.judge.mesh, "dtype": self.judge.dtype, "model": self.judge.subject}
        static |= {"optimizer": self.refine.optimizer, "objective": self.refine.objective}
        return static | {"shares": self.shares, "rollouts": self.rollouts, "layouts": self.layouts}

    def tokens(self, records: Iterable[Mapping[str, Any]]) -> Tokens:
        """What the steps to all refined genomes among a run's records were run on, without padding.

        It follows from the records alone, so that a run that was killed counts as one that was not.
        """
        total, seen = np.zeros(len(Tokens._fields), int), Counter[int]()
        for record in records:
            if "refined" in record:
                generation = record["generation"]
                key = self.key(generation, seen[generation])
                seen[generation] += 1
                for number in range(self.refine.steps):
                    total += sum(self._counted(jax.random.fold_in(key, number)))
        return Tokens(*total.tolist())

    def _counted(self, key: Array) -> Iterator[np.ndarray]:
        """What each task's batch takes, in the order of `Tokens`."""
        subset = self._subset(key)
        for task, rollout in zip(self.tasks, self.rollouts, strict=True):
            yield count_tokens(rollout, self._examples(task, subset), None, ())

    def genomes(self, generations: int) -> int:
        """How many genomes are refined in a run of so many generations, at most."""
        return self.refine.best * sum(map(self.due, range(generations))) + (self.refine.best if generations else 1)

    def due(self, generation: int) -> bool:
        """Whether refined genomes are members of this generation."""
        every = self.refine.every
        return every is not None and generation > 0 and generation % every == 0

    def members(
        self, archive: Archive, generation: int, state: Mapping[str, np.ndarray], size: int
    ) -> tuple[np.ndarray, dict[int, list[int]]]:
        """The last of `size` members of a generation, (k, n), made from the best so far; and from which, by member.

        `state` is that of the strategy, which must be able to learn from them.
        """
        starts = best_distinct(archive, generation, self.refine.best)
        first = size - len(starts)
        genomes = self._made(archive, generation, first, starts, lambda genome: shortened(state, genome[None])[0])
        return genomes, {first + k: _place(start) for k, start in enumerate(starts)}

    def last(
        self, archive: Archive, generation: int, mean: float | np.ndarray
    ) -> tuple[np.ndarray, dict[int, list[int]]]:
        """The generation after the search, (k, n), made from the best of it; and from which, by member.

        Without a search: its start and what is made of that.
        """
        if generation == 0:
            start = np.broadcast_to(np.asarray(mean, np.float64), self.free.shape)
            starts = [{"generation": 0, "member": 0, "genome": start.tolist()}]
            return np.concatenate([start[None], self._made(archive, 0, 1, starts)]), {1: [0, 0]}
        starts = best_distinct(archive, generation, self.refine.best)
        return self._made(archive, generation, 0, starts), {k: _place(start) for k, start in enumerate(starts)}

    def _made(
        self,
        archive: Archive,
        generation: int,
        first: int,
        starts: Sequence[Mapping[str, Any]],
        fit: Callable[[np.ndarray], np.ndarray] = lambda genome: genome,
    ) -> np.ndarray:
        """(k, n) refined genomes of the members from `first` on; those that a killed run left are as they were."""
        genomes = []
        for k, start in enumerate(starts):
            record = archive.at(generation, first + k)
            if record is not None and record.get("refined") == _place(start):
                genomes.append(np.asarray(record["genome"]))
            else:
                genomes.append(fit(self(np.asarray(start["genome"]), self.key(generation, k))))
        return np.array(genomes)

    def key(self, generation: int, number: int) -> Array:
        """Of the batches that the genome of this number sees."""
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(b"refine"))
        return jax.random.fold_in(jax.random.fold_in(key, generation), number)


def _place(record: Mapping[str, Any]) -> list[int]:
    return [record["generation"], record["member"]]


def best_distinct(archive: Archive, generation: int, count: int) -> list[dict[str, Any]]:
    """The best records of earlier generations, each genome once."""
    found: dict[tuple[float, ...], dict[str, Any]] = {}
    for record in archive.ranked():
        if record["generation"] < generation:
            found.setdefault(tuple(record["genome"]), record)
    return list(found.values())[:count]


def shortened(state: Mapping[str, np.ndarray], genomes: np.ndarray) -> np.ndarray:
    """(k, n) genomes, those farther from CMA-ES's mean than sqrt(n) + 2 n / (n + 2) drawn nearer.

    The distance is that of its own metric, sigma^2 C, in which its draws are about sqrt(n) away.
    """
    size = genomes.shape[1]
    steps = (genomes - state["mean"]) / state["std"]
    covariance = state["C"]
    if covariance.ndim == 1:
        lengths = np.sqrt((steps**2 / covariance).sum(axis=1))
    else:
        values, vectors = np.linalg.eigh(covariance)
        lengths = np.sqrt(((steps @ vectors) ** 2 / np.maximum(values, 1e-300)).sum(axis=1))
    factor = np.minimum(1.0, (np.sqrt(size) + 2 * size / (size + 2)) / np.maximum(lengths, 1e-300))
    moved = state["mean"] + (genomes - state["mean"]) * factor[:, None]
    return np.where(factor[:, None] < 1, np.clip(moved, 0, 1), genomes)


def refuse_refine(refine: Refine, tasks: Sequence[AnyTask], strategy: Strategy, problem: Problem) -> None:
    """Raise InputError for what cannot be refined; note what stays fixed."""
    free = problem.gradient
    if not free.any():
        raise InputError(f"refine: {problem.no_gradient}")
    if refine.objective == "fitness":
        if others := [t for t in tasks if not t.differentiable]:
            raise InputError(
                f"refine.objective: fitness is for functions of parameters, which {others[0].name} is not scored by"
            )
    elif others := [t for t in tasks if not t.answered]:
        raise InputError(
            f"refine: not with {others[0].kind} such as {others[0].name}; leave refine out, or, for a function of "
            "parameters, set objective: fitness"
        )
    if strategy.several_goals:
        raise InputError(f"refine: not with {PARETO}, for which there is no best genome; choose cma_es")
    if refine.every is not None and not strategy.injectable:
        raise InputError(
            f"refine.every: {strategy.name} cannot learn from candidates that it did not draw; leave `every` out (then "
            f"the best are refined after the search) or choose cma_es or sep_cma_es"
        )
    if refine.best > strategy.population_size:
        raise InputError(f"refine.best: {refine.best} is more than a generation of {strategy.population_size}")
    if not free.all():
        fixed = dict.fromkeys(n.rpartition("/")[2] for n, f in zip(problem.names, free, strict=True) if not f)
        problem.notes.add(f"refine: {', '.join(fixed)}: no gradient, stays as the search has it")
