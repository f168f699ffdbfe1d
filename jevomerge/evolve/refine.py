"""Gradients where they exist: genomes moved along the gradient of a loss through the merged model.

The loss is minus the mean log-likelihood of the search split's reference answers (also of tasks that are scored by
generation), or the mean entropy of the next token over its prompts alone (AdaMerging, arXiv:2310.02575).  A gene whose
gradient is not that of the merge (whole numbers, switches, densities) stays where it is, and so does every gene at a
step where a gradient is not finite.  Genomes stay in the unit box: each step is projected onto it.

What comes out is a candidate like any other: scored by the fitness, recorded, and chosen if it is the best.  After the
search these are a generation of their own.  Between generations they take the place of the last members of the next
one, which CMA-ES then learns from as if it had drawn them; it assumes that its steps have the length of its draws, so
that a longer one, in its own metric, is shortened first (Hansen 2011, "Injecting external solutions into CMA-ES").

The merge is differentiated in float32, without the rounding to the model's dtype in which candidates are scored.
"""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jevomerge.errors import InputError
from jevomerge.evolve.anchored import own_tasks
from jevomerge.evolve.archive import Archive
from jevomerge.evolve.problem import Problem, WeightProblem
from jevomerge.evolve.strategies import PARETO
from jevomerge.fitness.candidates import Candidates, Merged, Model
from jevomerge.fitness.data import Example, Layout, make_batches
from jevomerge.fitness.judge import Judge
from jevomerge.fitness.outcome import Tokens, count_tokens
from jevomerge.fitness.rollout import LOGITS_CHUNK, Batch, answer_likelihood
from jevomerge.fitness.schema import Task
from jevomerge.mesh import everywhere, put
from jevomerge.models import DecoderConfig, apply, unembed

if TYPE_CHECKING:
    from jevomerge.evolve.setup import Setup

INJECTABLE = ("cma_es", "sep_cma_es")

# --- on the device ------------------------------------------------------------------------------------------


def unlikelihood(model: Model, config: DecoderConfig, batch: Batch, layout: Layout, dtype: str) -> Array:
    """Minus the mean over a batch's rows with an answer of the mean log-probability per token, in nats."""
    likelihood, _ = answer_likelihood(model, config, batch, layout.answer_slots, dtype=dtype)
    real = batch.answer_length > 0
    return -jnp.sum(jnp.where(real, likelihood, 0.0)) / jnp.maximum(jnp.sum(real), 1).astype(jnp.float32)


def entropy(model: Model, config: DecoderConfig, batch: Batch, layout: Layout, dtype: str) -> Array:
    """The mean over all valid positions of the entropy of the next token, in nats."""
    del layout
    params, layer, path, scale = model
    hidden, _ = apply(params, config, batch.tokens, batch.valid, layer=layer, path=path, scale=scale, dtype=dtype)

    @jax.checkpoint  # the logits are made again for the gradient, not kept
    def position(h: Array) -> Array:
        logs = jax.nn.log_softmax(unembed(params, config, h))
        return -jnp.sum(jnp.exp(logs) * logs)

    flat = hidden.reshape(-1, hidden.shape[-1])
    values = jax.lax.map(position, flat, batch_size=min(LOGITS_CHUNK, len(flat))).reshape(batch.valid.shape)
    return jnp.sum(jnp.where(batch.valid, values, 0.0)) / jnp.sum(batch.valid).astype(jnp.float32)


LOSSES = {"likelihood": unlikelihood, "entropy": entropy}
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {"adam": optax.adam, "sgd": optax.sgd}


def loss(
    genome: Array,
    candidates: Merged,
    batches: Sequence[Batch],
    shares: Sequence[float],
    *,
    objective: str,
    config: DecoderConfig,
    layouts: Sequence[Layout],
    dtype: str,
) -> Array:
    """The loss of a genome (n,): of one batch of each task, weighted by `shares`."""
    model = candidates.model(None, genome)
    each = [
        share * LOSSES[objective](model, config, batch, layout, dtype)
        for batch, share, layout in zip(batches, shares, layouts, strict=True)
    ]
    return jnp.sum(jnp.stack(each))


@functools.partial(jax.jit, static_argnames=("optimizer", "objective", "mesh", "shares", "config", "layouts", "dtype"))
def step(
    candidates: Merged,
    free: Array,
    learning_rate: Array,
    state: tuple[Array, Any],
    batches: Sequence[Batch],
    *,
    optimizer: str,
    objective: str,
    mesh: Mesh,
    shares: tuple[float, ...],
    config: DecoderConfig,
    layouts: tuple[Layout, ...],
    dtype: str,
) -> tuple[tuple[Array, Any], Array]:
    """One step of the optimizer: (genome, its state) -> the next ones, and the loss before it."""
    genome, momentum = state
    static = {"objective": objective, "config": config, "layouts": layouts, "dtype": dtype}
    value, gradient = jax.value_and_grad(loss)(genome, candidates, batches, shares, **static)
    gradient = jnp.where(free & jnp.all(jnp.isfinite(gradient)), gradient, 0.0)
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
        updates, momentum = OPTIMIZERS[optimizer](learning_rate).update(gradient, momentum, genome)
    genome = jnp.where(free, jnp.clip(genome + updates, 0.0, 1.0), genome)
    return jax.lax.with_sharding_constraint(((genome, momentum), value), everywhere(mesh))


# --- on the host --------------------------------------------------------------------------------------------


class Refiner:
    """What is needed to move genomes of one run along the gradient."""

    def __init__(self, setup: Setup, candidates: Candidates, judge: Judge | None = None):
        """Lays out the batches of a step: of each task, `examples_per_step` rows as long as the longest.

        `candidates` may be shapes alone, for a plan; `judge`, if it is not the setup's, has the mesh.
        """
        assert setup.config.refine is not None
        assert isinstance(candidates, Merged)
        self.refine, self.judge, self.seed = setup.config.refine, judge or setup.judge, setup.config.seed
        self.free = free_genes(setup.problem)
        self.candidates = candidates.replace(merge=candidates.merge._replace(dtype="float32"))  # type: ignore[attr-defined]
        self.tasks = own_tasks(self.judge)
        total = sum(task.weight for task in self.tasks)
        self.shares = tuple(task.weight / total for task in self.tasks)
        self.examples = self.judge.examples["search"]
        self.layouts = tuple(self._layout(self.examples[task.name]) for task in self.tasks)

    def _layout(self, examples: Sequence[Example]) -> Layout:
        lengths = [len(e.prompt_tokens) + (len(e.answer_tokens) if self._answers else 0) for e in examples]
        slots = max(len(e.answer_tokens) for e in examples) if self._answers else 1
        rows = min(self.refine.examples_per_step or len(examples), len(examples))
        return Layout(rows, -(-max(lengths) // 8) * 8, slots)

    @property
    def _answers(self) -> bool:
        return self.refine.objective == "likelihood"

    def batches(self, key: Array) -> list[Batch]:
        """A random batch of each task's search split."""
        found = []
        subset = self._subset(key)
        for task, layout in zip(self.tasks, self.layouts, strict=True):
            chosen = self.judge.chosen(task, "search", subset)
            kind = "likelihood" if self._answers else "generation"  # whose rows are prompts alone
            [(_, _, batch)] = make_batches(task.model_copy(update={"score": kind}), chosen, [layout], self.judge.pad)
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
        batches = [
            Batch(*(jax.ShapeDtypeStruct(*x) for x in ((shape, np.int32), (shape, np.bool_), (shape[:1], np.int32))))  # type: ignore[arg-type]
            for shape in ((layout.rows, layout.length) for layout in self.layouts)
        ]
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
        static: dict[str, Any] = {"mesh": self.judge.mesh, "dtype": self.judge.dtype, "config": self.judge.config}
        static |= {"optimizer": self.refine.optimizer, "objective": self.refine.objective}
        return static | {"shares": self.shares, "layouts": self.layouts}

    def tokens(self, records: Iterable[Mapping[str, Any]]) -> Tokens:
        """What the steps to all refined genomes among a run's records were run on, without padding.

        It follows from the records alone, so that a run that was killed counts as one that was not.
        """
        total, seen = np.zeros(2, int), Counter[int]()
        for record in records:
            if "refined" in record:
                generation = record["generation"]
                key = self.key(generation, seen[generation])
                seen[generation] += 1
                for number in range(self.refine.steps):
                    total += sum(self._counted(jax.random.fold_in(key, number)))
        return Tokens(*total.tolist())

    def _counted(self, key: Array) -> Iterator[np.ndarray]:
        """(2,) tokens of each task's batch."""
        subset = self._subset(key)
        for task in self.tasks:
            tokens = count_tokens("likelihood", self.judge.chosen(task, "search", subset), (), self.judge.eos)
            yield tokens * [1, int(self._answers)]

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


def free_genes(problem: Problem) -> np.ndarray:
    """(n,) bool: the genes along which there is a gradient."""
    assert isinstance(problem, WeightProblem)
    parameters = {p.name: p for p in problem.sources.method.parameters}
    searched = [parameters[name.rpartition("/")[2]] for name in problem.names]
    return np.array([p.kind == "float" and p.differentiable for p in searched], bool)


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


def refuse_refine(setup: Setup) -> None:
    """Raise InputError for what cannot be refined; note what stays fixed."""
    refine, problem, strategy = setup.config.refine, setup.problem, setup.strategy
    if refine is None:
        return
    if not isinstance(problem, WeightProblem):
        raise InputError(
            "refine: there is no gradient through a path; give it to a stage with a `recipe` alone, or leave it out"
        )
    if harness := [t.name for t in setup.config.tasks if not isinstance(t, Task)]:
        raise InputError(f"refine: not with tasks of lm-evaluation-harness such as {harness[0]}; leave refine out")
    if strategy.name == PARETO:
        raise InputError(f"refine: not with {PARETO}, for which there is no best genome; choose cma_es")
    free = free_genes(problem)
    if not free.any():
        raise InputError("refine: no gene has a gradient (see README.md, Merge methods); leave refine out")
    if refine.every is not None and strategy.name not in INJECTABLE:
        raise InputError(
            f"refine.every: {strategy.name} cannot learn from candidates that it did not draw; leave `every` out (then "
            f"the best are refined after the search) or choose {' or '.join(INJECTABLE)}"
        )
    if refine.best > strategy.population_size:
        raise InputError(f"refine.best: {refine.best} is more than a generation of {strategy.population_size}")
    if not free.all():
        fixed = dict.fromkeys(n.rpartition("/")[2] for n, f in zip(problem.names, free, strict=True) if not f)
        problem.notes[f"refine: {', '.join(fixed)}: no gradient, stays as the search has it"] = None
