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
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.errors import FitnessError, InputError
from jevomerge.fitness.candidates import Candidates, Whole
from jevomerge.fitness.data import (
    Example,
    Judged,
    Layout,
    Material,
    Ready,
    fingerprint,
    make_batches,
    own_material,
    plan_layouts,
    refuse_overlap,
    strata_of,
)
from jevomerge.fitness.extract import grade, other_criteria
from jevomerge.fitness.language import check_language
from jevomerge.fitness.outcome import Found, Scores, Tokens, count_tokens, of_this_process, over_tasks
from jevomerge.fitness.racing import PIECES, Rule, Stopped, upper_bound
from jevomerge.fitness.rollout import Batch, answer_likelihood, generate
from jevomerge.fitness.schema import HarnessTask, Task
from jevomerge.fitness.stops import stop_table
from jevomerge.hosts import collect, together
from jevomerge.mesh import by_member, make_mesh, put, spread
from jevomerge.models import DecoderConfig, Params

SPLITS = ("search", "heldout")
T = TypeVar("T")


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
    """(M, n) genomes and what was made of them -> (M, B) likelihoods and matches, each where its member is."""

    def local(shared: Any, members: Any) -> Any:
        candidates, batch = shared

        def member(x: Any) -> tuple[Array, Array]:
            return answer_likelihood(candidates.model(*x), config, batch, layout.answer_slots, dtype=dtype)

        return _each(member, members, candidates.batched)

    return _whole(mesh, spread(mesh, local)((candidates, batch), (made, genomes)))


@functools.partial(jax.jit, static_argnames=("mesh", "slots", "config", "layout", "dtype"))
def generate_members(
    candidates: Candidates,
    made: Any,
    genomes: Array,
    batch: Batch,
    max_new_tokens: Array,
    eos: Array,
    stops: Array | None = None,
    *,
    mesh: Mesh,
    slots: int | None,
    config: DecoderConfig,
    layout: Layout,
    dtype: str,
) -> Array:
    """(M, n) genomes and what was made of them -> (M, B, new) generated tokens, each where its member is."""

    def local(shared: Any, members: Any) -> Array:
        candidates, batch, limit, eos, stops = shared

        def member(x: Any) -> Array:
            model = candidates.model(*x, slots)
            return generate(model, config, batch, limit, eos, layout.answer_slots, stops, dtype=dtype)

        return _each(member, members)

    return _whole(mesh, spread(mesh, local)((candidates, batch, max_new_tokens, eos, stops), (made, genomes)))


def _each(f: Callable[[Any], Any], members: Any, batched: bool = False) -> Any:
    """`f` of every member: at once if that can be, else one after another."""
    if jax.tree.leaves(members)[0].shape[0] == 1:  # simplest for the compiler
        return jax.tree.map(lambda x: x[None], f(jax.tree.map(lambda x: x[0], members)))
    return jax.vmap(f)(members) if batched else jax.lax.map(f, members)


def _whole(mesh: Mesh, results: Any) -> Any:
    """Every device has all that became of its members; the compiler might split it over `model`."""
    return jax.lax.with_sharding_constraint(results, by_member(mesh))


# --- on the host --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scoring(task: Judged) -> Iterator[None]:
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
        tasks: Sequence[Task | HarnessTask | Ready],
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
        max_length: int | None = None,
    ):
        """Read, check and tokenise the data of `splits`; no weights are needed.

        Batches are laid out for the first split, and for minibatches of `examples_at_once` of it.  Members are scored
        on the devices of `mesh` (None: on one), in each slice of its axis `pop` so many together.  `max_length`, of
        the model, is for tasks of the harness, which shortens prompts; None: as it does where that is not known.
        """
        self.racing = racing
        self.mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self.group = self.mesh.shape["pop"] * members_per_device  # members that are scored together
        self.tokenizer, self.config, self.dtype = tokenizer, config, dtype
        if len({t.name for t in tasks}) < len(tasks):
            raise InputError("tasks: two tasks have the same name")
        eos = tokenizer.eos_token_id
        if eos is None:
            raise InputError("the tokenizer has no end-of-text token (eos_token in tokenizer_config.json)")
        self.eos = np.asarray([eos], np.int32)
        self.stop_table = functools.cache(functools.partial(stop_table, tokenizer))  # of (stops, size of vocabulary)
        self.pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.tasks: tuple[Task | Ready, ...] = tuple(self._ready(task, max_length) for task in tasks)
        self.material: dict[str, dict[str, Material]] = {split: {} for split in splits}
        self.layouts: dict[str, list[Layout]] = {}
        for task in self.tasks:
            for split in splits:
                self.material[split][task.name] = (
                    own_material(task, split, tokenizer) if isinstance(task, Task) else task.material(split)
                )
            if set(splits) == set(SPLITS):
                refuse_overlap(task, *(self.material[s][task.name].records for s in SPLITS))
            first, *rest = (self.material[split][task.name].examples for split in splits)
            others = [e for examples in rest for e in examples]
            self._check_tokens(task, [*first, *others])
            at_once, pieces = examples_at_once, 1 if racing is None else PIECES
            if at_once is not None:  # documents
                at_once = math.ceil(at_once * len(first) / len(self.material[splits[0]][task.name].records))
            self.layouts[task.name] = plan_layouts(task, first, others, tokens_per_batch, at_once, pieces)

    def _ready(self, task: Task | HarnessTask | Ready, max_length: int | None) -> Task | Ready:
        """A task whose data can be read."""
        if isinstance(task, HarnessTask):
            if self.racing is not None:
                raise InputError(f"search.racing: not with {task.name}, of whose scores nobody knows the highest")
            from jevomerge.fitness.harness import load  # imported late: lm-eval takes seconds

            return load(task, self.tokenizer, max_length)
        if isinstance(task, Task):
            check_criteria(task)
        return task

    @property
    def examples(self) -> dict[str, dict[str, list[Example]]]:
        """What a model is given, by split and task."""
        return {split: {name: m.examples for name, m in tasks.items()} for split, tasks in self.material.items()}

    def _check_tokens(self, task: Judged, examples: Sequence[Example]) -> None:
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
        return {name: fingerprint(material.examples) for name, material in self.material[split].items()}

    def sample(self, split: str, count: int | None, key: Array) -> dict[str, np.ndarray]:
        """A minibatch: `count` documents of each task (or all), as sorted indices."""
        chosen = {}
        for name, material in self.material[split].items():
            order = jax.random.permutation(jax.random.fold_in(key, zlib.crc32(name.encode())), len(material.records))
            chosen[name] = np.sort(np.asarray(order)[:count])
        return chosen

    def fitness(self, scores: Scores) -> tuple[float, float]:
        """The weighted mean over tasks of the mean score, and of the second criterion; a bound, if it was stopped."""
        if scores.stopped is not None:
            return scores.stopped.bound, -math.inf
        first, second = ({name: float(np.mean(v)) for name, v in values.items()} for values in scores[:2])
        return over_tasks(self.weights, first), over_tasks(self.weights, second)

    @property
    def weights(self) -> dict[str, float]:
        """{task: how much it counts}."""
        return {task.name: task.weight for task in self.tasks}

    def also(self, texts: Mapping[str, Sequence[str]], split: str) -> dict[str, dict[str, float]]:
        """{task: {criterion: score}} of the texts that a model wrote for a whole split, by what does not count."""
        found = {}
        for task in self.tasks:
            if isinstance(task, Task) and (ways := other_criteria(task)):
                records = self.material[split][task.name].records
                pairs = [(text, e.answer) for text, e in zip(texts[task.name], records, strict=True)]
                found[task.name] = {n: float(np.mean([grade(t, *pair) for pair in pairs])) for n, t in ways.items()}
        return found

    def members(
        self,
        candidates: Candidates,
        genomes: np.ndarray,
        subset: Mapping[str, np.ndarray] | None = None,
        cut: float = -math.inf,
    ) -> Iterator[list[Scores]]:
        """Score a population on the search split, yielding as each group of members is done.

        The last group is filled up with copies, so that every group has the same shape.  With racing, a group is
        stopped when the fitness of none of its members can reach `cut` any more.
        """
        for start in range(0, len(genomes), self.group):
            group = genomes[start : start + self.group]
            full = np.concatenate([group, np.repeat(group[-1:], self.group - len(group), axis=0)])
            yield self._score(candidates, full, "search", subset, self.config, cut)[: len(group)]

    def model(self, params: Params, split: str, config: DecoderConfig | None = None) -> Scores:
        """Score one model on a whole split; `config` if it is not of the judge's architecture."""
        nothing = np.zeros((self.mesh.shape["pop"], 0), np.float32)
        mine = min(of_this_process(put(nothing, by_member(self.mesh))))  # all are the same, but only it has texts here
        return self._score(Whole(params), nothing, split, None, config or self.config)[mine]

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

        def start(task: Judged, layout: Layout, batch: Batch) -> Any:
            """What a batch comes to, which the device may still be busy with."""
            with _scoring(task):
                if task.score == "generation":
                    ends = (np.int32(task.max_new_tokens), self.eos, self.stop_table(task.stop, config.vocab_size))
                    arguments = (candidates, made, members, batch, *ends)
                    return generate_members(*arguments, slots=slots, layout=layout, **static)
                given = None if candidates.lazy else made
                return score_members(candidates, given, members, batch, layout=layout, **static)

        chosen = {task.name: self.chosen(task, split, subset) for task in self.tasks}
        found = {
            t.name: Found(self.material[split][t.name], self._documents(t, split, subset), len(genomes))
            for t in self.tasks
        }
        tokens = np.zeros((len(genomes), 2), int)
        stopped: list[Stopped | None] = [None] * len(genomes)
        failure: Exception | None = None
        started = ((task, index, start(task, layout, batch)) for task, layout, index, batch in self._batches(chosen))
        for task, index, output in one_ahead(started) if cut == -math.inf else started:
            try:
                with _scoring(task):
                    local = of_this_process(output, index >= 0)
                    rows = index[index >= 0]
                    examples = [chosen[task.name][i] for i in rows]
                    stops = self.stop_table(task.stop, config.vocab_size) if task.score == "generation" else None
                    for m, own in local.items():
                        tokens[m] += count_tokens(task.score, examples, own, self.eos, stops)
                    found[task.name].add(rows, {m: self._outputs(task, own) for m, own in local.items()})
            except FitnessError as error:
                failure = failure or error
                if not self._several:  # other processes wait for what is computed with them
                    raise
            if cut == -math.inf:
                continue
            if self._several:
                self._share(found, tokens, of_this_process(members), failure)
            seen = [f.seen for f in found.values()]
            if not all(map(np.all, seen)) and np.all((bounds := self._bounds(chosen, found)) < cut):
                stopped = [Stopped(float(bound), sum(int(s.sum()) for s in seen)) for bound in bounds]
                break
        if cut == -math.inf and self._several:
            self._share(found, tokens, of_this_process(members), failure)
        return [
            Scores(
                {name: f.pairs[0, m] for name, f in found.items()},
                {name: f.pairs[1, m] for name, f in found.items()},
                {t.name: found[t.name].texts(m) for t in self.tasks if t.score == "generation"},
                stopped[m],
                Tokens(*tokens[m].tolist()),
            )
            for m in range(len(genomes))
        ]

    def _batches(self, chosen: Mapping[str, Sequence[Example]]) -> Iterator[tuple[Judged, Layout, np.ndarray, Batch]]:
        """The batches of all tasks, one task after another."""
        for task in self.tasks:
            layouts, shuffled = self.layouts[task.name], self.racing == "hoeffding"
            for layout, index, batch in make_batches(task, chosen[task.name], layouts, self.pad, shuffled):
                yield task, layout, index, batch

    def _outputs(self, task: Judged, own: tuple[np.ndarray, ...]) -> Sequence[Any]:
        """What a member made of examples: texts, or mean log-probability and match."""
        if task.score == "generation":
            texts: list[str] = self.tokenizer.batch_decode(own[0], skip_special_tokens=True)
            return texts
        return list(zip(*(np.asarray(x, np.float64).tolist() for x in own), strict=True))

    @property
    def _several(self) -> bool:
        """Whether several processes score the members of a group."""
        return len({device.process_index for device in self.mesh.devices.flat}) > 1

    def _share(
        self, found: Mapping[str, Found], tokens: np.ndarray, mine: Mapping[int, Any], failure: Exception | None
    ) -> None:
        """Let every process know of every member; each has read what its own wrote."""

        def known() -> dict[int, np.ndarray]:
            if failure is not None:
                raise failure
            return {m: np.concatenate([tokens[m], *(f.pairs[:, m].ravel() for f in found.values())]) for m in mine}

        rows = collect(together(known), len(tokens))
        tokens[:] = rows[:, :2]
        start = 2
        for f in found.values():
            stop = start + 2 * len(f.documents)
            f.pairs[:] = rows[:, start:stop].reshape(len(rows), 2, -1).swapaxes(0, 1)
            start = stop

    def _bounds(self, chosen: Mapping[str, Sequence[Example]], found: Mapping[str, Found]) -> np.ndarray:
        """(M,) what the fitness of each member can still be, at most."""
        assert self.racing is not None
        bounds = dict[str, np.ndarray]()
        for task in self.tasks:
            name, top = task.name, 0.0 if task.score == "likelihood" else 1.0
            rule = "exact" if task.score == "likelihood" else self.racing  # a likelihood has no lowest value
            strata = strata_of(task, chosen[name], self.layouts[name])
            bounds[name] = upper_bound(found[name].pairs[0], found[name].seen, strata, top, rule)
        means: np.ndarray = over_tasks(self.weights, bounds)
        return means

    def _documents(self, task: Judged, split: str, subset: Mapping[str, np.ndarray] | None) -> np.ndarray:
        """The documents of a task that a candidate is scored on: a split, or those of it in `subset`."""
        return np.arange(len(self.material[split][task.name].records)) if subset is None else subset[task.name]

    def chosen(self, task: Judged, split: str, subset: Mapping[str, np.ndarray] | None) -> list[Example]:
        """The examples of those documents, one document after another."""
        examples, first, *_ = self.material[split][task.name]
        return [e for d in self._documents(task, split, subset) for e in examples[first[d] : first[d + 1]]]


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each asked for before the one in front of it is given away: texts are read meanwhile."""
    held = deque[T]()
    for item in items:
        held.append(item)
        if len(held) == 2:
            yield held.popleft()
    yield from held
