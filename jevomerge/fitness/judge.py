"""Scoring models and populations of candidate merges on tasks.

A `Judge` owns the host side (text, tokens, extraction); what runs on the device are the module's jitted
functions, compiled once per batch shape and never per candidate, per generation or per split.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.config import Task
from jevomerge.errors import FitnessError, InputError
from jevomerge.fitness.candidates import Candidates, Whole
from jevomerge.fitness.data import (
    Example,
    Layout,
    fingerprint,
    load_examples,
    make_batches,
    plan_layouts,
    refuse_overlap,
    strata_of,
)
from jevomerge.fitness.extract import grade, other_criteria
from jevomerge.fitness.language import check_language
from jevomerge.fitness.racing import PIECES, Rule, Stopped, upper_bound
from jevomerge.fitness.rollout import Batch, answer_likelihood, generate
from jevomerge.mesh import by_member, everywhere, make_mesh, put, spread
from jevomerge.models import DecoderConfig, Params

SPLITS = ("search", "heldout")
T = TypeVar("T")


class Tokens(NamedTuple):
    """How many tokens a model was run on to be scored: those of the examples, without padding."""

    prompt: int
    answer: int  # of the reference answers; where it generates, those it wrote, its end-of-text tokens among them


class Scores(NamedTuple):
    """Scores of one model: {task: (n,)} per example, and the same of a second criterion that breaks ties."""

    primary: dict[str, np.ndarray]
    secondary: dict[str, np.ndarray]
    texts: dict[str, list[str]]  # what it wrote, for the tasks where it generates
    stopped: Stopped | None = None  # if it was not scored to the end; the rest of its scores are NaN
    tokens: Tokens = Tokens(0, 0)


# --- on the device ------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("mesh",))
def make_members(candidates: Candidates, genomes: Array, *, mesh: Mesh) -> Any:
    """(M, n) genomes -> what is made of each before it is scored, over the mesh."""
    return spread(mesh, lambda shared, local: _each(shared.make, local))(candidates, genomes)


@functools.partial(jax.jit, static_argnames=("mesh", "config", "layout", "dtype"))
def score_members(
    candidates: Candidates,
    made: Any,
    genomes: Array,
    batch: Batch,
    *,
    mesh: Mesh,
    config: DecoderConfig,
    layout: Layout,
    dtype: str,
) -> tuple[Array, Array]:
    """(M, n) genomes and what was made of them -> (M, B) likelihoods and matches, on every device."""

    def local(shared: Any, members: Any) -> Any:
        candidates, batch = shared

        def member(x: Any) -> tuple[Array, Array]:
            return answer_likelihood(candidates.model(*x), config, batch, layout.answer_slots, dtype=dtype)

        return _each(member, members, candidates.batched)

    return _gather(mesh, spread(mesh, local)((candidates, batch), (made, genomes)))


@functools.partial(jax.jit, static_argnames=("mesh", "slots", "config", "layout", "dtype"))
def generate_members(
    candidates: Candidates,
    made: Any,
    genomes: Array,
    batch: Batch,
    max_new_tokens: Array,
    eos: Array,
    *,
    mesh: Mesh,
    slots: int | None,
    config: DecoderConfig,
    layout: Layout,
    dtype: str,
) -> Array:
    """(M, n) genomes and what was made of them -> (M, B, new) generated tokens, on every device."""

    def local(shared: Any, members: Any) -> Array:
        candidates, batch, limit, eos = shared

        def member(x: Any) -> Array:
            model = candidates.model(*x, slots)
            return generate(model, config, batch, limit, eos, layout.answer_slots, dtype=dtype)

        return _each(member, members)

    return _gather(mesh, spread(mesh, local)((candidates, batch, max_new_tokens, eos), (made, genomes)))


def _each(f: Callable[[Any], Any], members: Any, batched: bool = False) -> Any:
    """`f` of every member: at once if that can be, else one after another."""
    if jax.tree.leaves(members)[0].shape[0] == 1:  # simplest for the compiler
        return jax.tree.map(lambda x: x[None], f(jax.tree.map(lambda x: x[0], members)))
    return jax.vmap(f)(members) if batched else jax.lax.map(f, members)


def _gather(mesh: Mesh, values: Any) -> Any:
    """The one exchange between members: their results."""
    return jax.lax.with_sharding_constraint(values, everywhere(mesh))


# --- on the host --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scoring(task: Task) -> Iterator[None]:
    """What goes wrong in the block has to do with this task."""
    try:
        yield
    except Exception as error:
        raise FitnessError(f"task {task.name}: {type(error).__name__}: {error}") from error


def check_criteria(task: Task) -> None:
    """Refuse a task whose texts could not be judged, for want of a package or of such a language."""
    try:
        if task.language is not None:
            check_language(task.language)
        if task.score == "generation":
            grade(task, "", "")
    except InputError as error:
        raise InputError(f"task {task.name}: {error}") from None


class Judge:
    """Tasks made ready for one tokenizer and one architecture."""

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Any,
        config: DecoderConfig,
        *,
        splits: Sequence[str] = SPLITS,
        tokens_per_batch: int = 16384,
        examples_at_once: int | None = None,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        members_per_device: int = 1,
        racing: Rule | None = None,
    ):
        """Read, check and tokenise the data of `splits`; no weights are needed.

        Batches are laid out for the first split, and for minibatches of `examples_at_once` of it.  Members are scored
        on the devices of `mesh` (None: on one), in each slice of its axis `pop` so many together.
        """
        self.racing = racing
        self.mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self.group = self.mesh.shape["pop"] * members_per_device  # members that are scored together
        self.tasks, self.tokenizer, self.config, self.dtype = tuple(tasks), tokenizer, config, dtype
        if len({t.name for t in tasks}) < len(tasks):
            raise InputError("tasks: two tasks have the same name")
        eos = tokenizer.eos_token_id
        if eos is None:
            raise InputError("the tokenizer has no end-of-text token (eos_token in tokenizer_config.json)")
        self.eos = np.asarray([eos], np.int32)
        self.pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.examples: dict[str, dict[str, list[Example]]] = {split: {} for split in splits}
        self.layouts: dict[str, list[Layout]] = {}
        for task in tasks:
            check_criteria(task)
            for split in splits:
                self.examples[split][task.name] = load_examples(task, split, tokenizer)
            if set(splits) == set(SPLITS):
                refuse_overlap(task, *(self.examples[s][task.name] for s in SPLITS))
            first, *rest = (self.examples[split][task.name] for split in splits)
            others = [e for examples in rest for e in examples]
            self._check_tokens(task, [*first, *others])
            pieces = 1 if racing is None else PIECES
            self.layouts[task.name] = plan_layouts(task, first, others, tokens_per_batch, examples_at_once, pieces)

    def _check_tokens(self, task: Task, examples: Sequence[Example]) -> None:
        top = max(max(e.prompt_tokens + e.answer_tokens) for e in examples)
        if top >= self.config.vocab_size:
            raise InputError(
                f"task {task.name}: token {top} is outside the model's vocabulary of {self.config.vocab_size}; "
                "tokenizer and weights do not belong together"
            )

    def on(self, mesh: Mesh, members_per_device: int = 1) -> Judge:
        """The same judge on other devices."""
        other = copy.copy(self)
        other.mesh, other.group = mesh, mesh.shape["pop"] * members_per_device
        return other

    def fingerprint(self, split: str) -> dict[str, str]:
        """A digest of each task's examples."""
        return {name: fingerprint(examples) for name, examples in self.examples[split].items()}

    def sample(self, split: str, count: int, key: Array) -> dict[str, np.ndarray]:
        """A minibatch: `count` examples of each task (or all), as sorted indices."""
        chosen = {}
        for name, examples in self.examples[split].items():
            order = jax.random.permutation(jax.random.fold_in(key, zlib.crc32(name.encode())), len(examples))
            chosen[name] = np.sort(np.asarray(order)[:count])
        return chosen

    def fitness(self, scores: Scores) -> tuple[float, float]:
        """The weighted mean over tasks of the mean score, and of the second criterion; a bound, if it was stopped."""
        if scores.stopped is not None:
            return scores.stopped.bound, -math.inf
        total = sum(task.weight for task in self.tasks)
        first, second = (
            float(sum(t.weight * float(np.mean(values[t.name])) for t in self.tasks) / total) for values in scores[:2]
        )
        return first, second

    def also(self, texts: Mapping[str, Sequence[str]], split: str) -> dict[str, dict[str, float]]:
        """{task: {criterion: score}} of the texts that a model wrote for a whole split, by what does not count."""
        found = {}
        for task in self.tasks:
            examples = self.examples[split][task.name]
            ways = other_criteria(task)
            if ways:
                pairs = list(zip(texts[task.name], examples, strict=True))
                found[task.name] = {
                    n: float(np.mean([grade(t, x, e.answer) for x, e in pairs])) for n, t in ways.items()
                }
        return found

    def members(
        self,
        candidates: Candidates,
        genomes: np.ndarray,
        subset: Mapping[str, np.ndarray] | None = None,
        cut: Callable[[], float] = lambda: -math.inf,
    ) -> Iterator[list[Scores]]:
        """Score a population on the search split, yielding as each group of members is done.

        The last group is filled up with copies, so that every group has the same shape.  With racing, a group is
        stopped when the fitness of none of its members can reach `cut()` any more.
        """
        for start in range(0, len(genomes), self.group):
            group = genomes[start : start + self.group]
            full = np.concatenate([group, np.repeat(group[-1:], self.group - len(group), axis=0)])
            yield self._score(candidates, full, "search", subset, self.config, cut())[: len(group)]

    def model(self, params: Params, split: str, config: DecoderConfig | None = None) -> Scores:
        """Score one model on a whole split; `config` if it is not of the judge's architecture."""
        nothing = np.zeros((self.mesh.shape["pop"], 0))
        return self._score(Whole(params), nothing, split, None, config or self.config)[0]

    def _score(
        self,
        candidates: Candidates,
        genomes: np.ndarray,
        split: str,
        subset: Mapping[str, np.ndarray] | None,
        config: DecoderConfig,
        cut: float = -math.inf,
    ) -> list[Scores]:
        """The scores of members that fill the mesh."""
        members = put(genomes.astype(np.float32), by_member(self.mesh))
        generating = any(task.score == "generation" for task in self.tasks)
        made = make_members(candidates, members, mesh=self.mesh) if generating or not candidates.lazy else None
        static = {"mesh": self.mesh, "config": config, "dtype": self.dtype}
        slots = candidates.slots(genomes) if generating else None

        def start(task: Task, layout: Layout, batch: Batch) -> Any:
            """What a batch comes to, which the device may still be busy with."""
            with _scoring(task):
                if task.score == "generation":
                    arguments = (candidates, made, members, batch, np.int32(task.max_new_tokens), self.eos)
                    return generate_members(*arguments, slots=slots, layout=layout, **static)
                given = None if candidates.lazy else made
                return score_members(candidates, given, members, batch, layout=layout, **static)

        chosen = {task.name: self.chosen(task, split, subset) for task in self.tasks}
        # Of each task (2, M, n): scores, and what breaks their ties; and the texts of each member.
        pairs = {name: np.full((2, len(genomes), len(rows)), np.nan) for name, rows in chosen.items()}
        seen = {name: np.zeros(len(rows), bool) for name, rows in chosen.items()}
        tokens = np.zeros((len(genomes), 2), int)
        texts = {t.name: [[""] * len(chosen[t.name]) for _ in genomes] for t in self.tasks if t.score == "generation"}
        stopped: list[Stopped | None] = [None] * len(genomes)
        started = ((task, index, start(task, layout, batch)) for task, layout, index, batch in self._batches(chosen))
        for task, index, output in one_ahead(started) if cut == -math.inf else started:
            with _scoring(task):
                real, rows = index >= 0, index[index >= 0]
                tokens += count_tokens(task.score, [chosen[task.name][i] for i in rows], output, real, self.eos)
                if task.score == "generation":
                    written = np.asarray(output)[:, real]
                    pairs[task.name][..., rows] = self._read(task, chosen[task.name], rows, written, texts[task.name])
                else:
                    pair = np.stack([np.asarray(x, np.float64) for x in output])[..., real]
                    pairs[task.name][..., rows] = pair if task.score == "likelihood" else pair[::-1]
                seen[task.name][rows] = True
            if cut > -math.inf and not all(map(np.all, seen.values())):
                bounds = self._bounds(chosen, pairs, seen)
                if np.all(bounds < cut):
                    count = sum(int(s.sum()) for s in seen.values())
                    stopped = [Stopped(float(bound), count) for bound in bounds]
                    break
        return [
            Scores(
                {name: pair[0, m] for name, pair in pairs.items()},
                {name: pair[1, m] for name, pair in pairs.items()},
                {name: written[m] for name, written in texts.items()},
                stopped[m],
                Tokens(*tokens[m].tolist()),
            )
            for m in range(len(genomes))
        ]

    def _batches(self, chosen: Mapping[str, Sequence[Example]]) -> Iterator[tuple[Task, Layout, np.ndarray, Batch]]:
        """The batches of all tasks, one task after another."""
        for task in self.tasks:
            layouts, shuffled = self.layouts[task.name], self.racing == "hoeffding"
            for layout, index, batch in make_batches(task, chosen[task.name], layouts, self.pad, shuffled):
                yield task, layout, index, batch

    def _read(
        self,
        task: Task,
        examples: Sequence[Example],
        rows: np.ndarray,
        tokens: np.ndarray,
        texts: Sequence[list[str]],
    ) -> np.ndarray:
        """(2, M, R): how good the generated answers (M, R, new) are (nothing breaks ties); they go to `texts`."""
        grades = np.zeros((2, *tokens.shape[:2]))
        for m, own in enumerate(tokens):
            for k, text in enumerate(self.tokenizer.batch_decode(own, skip_special_tokens=True)):
                texts[m][rows[k]] = text
                grades[0, m, k] = grade(task, text, examples[rows[k]].answer)
        return grades

    def _bounds(
        self, chosen: Mapping[str, Sequence[Example]], pairs: Mapping[str, np.ndarray], seen: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """(M,) what the fitness of each member can still be, at most."""
        assert self.racing is not None
        bounds = np.zeros(self.group)
        for task in self.tasks:
            name, top = task.name, 0.0 if task.score == "likelihood" else 1.0
            rule = "exact" if task.score == "likelihood" else self.racing  # a likelihood has no lowest value
            strata = strata_of(task, chosen[name], self.layouts[name])
            bounds += task.weight * upper_bound(pairs[name][0], seen[name], strata, top, rule)
        return bounds / sum(task.weight for task in self.tasks)

    def chosen(self, task: Task, split: str, subset: Mapping[str, np.ndarray] | None) -> list[Example]:
        """The examples of a task that a candidate is scored on: a split, or those of it in `subset`."""
        examples = self.examples[split][task.name]
        return examples if subset is None else [examples[i] for i in subset[task.name]]


def count_tokens(score: str, examples: Sequence[Example], output: Any, real: np.ndarray, eos: np.ndarray) -> np.ndarray:
    """(M, 2) or (2,) tokens of prompts and answers in a batch, whose rows that are `real` have these examples."""
    read = sum(len(e.prompt_tokens) for e in examples)
    if score != "generation":
        return np.array([read, sum(len(e.answer_tokens) for e in examples)])
    written = count_written(np.asarray(output)[:, real], eos).sum(axis=1)
    return np.stack([np.full_like(written, read), written], axis=1)


def count_written(tokens: np.ndarray, eos: np.ndarray) -> np.ndarray:
    """(..., new) generated tokens -> (...) how many were written: up to the first end-of-text token, which is one."""
    ends = np.isin(tokens, eos)
    return np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, tokens.shape[-1])


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each asked for before the one in front of it is given away: texts are read meanwhile."""
    held = deque[T]()
    for item in items:
        held.append(item)
        if len(held) == 2:
            yield held.popleft()
    yield from held
