"""Scoring models and populations of candidate merges on tasks.

A `Judge` is the host side (batches in, scores out); what runs on the device are the jitted functions of
`jevomerge.fitness.members`, compiled once per batch shape and never per candidate, per generation or per split.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.devices.mesh import by_member, make_mesh, put
from jevomerge.devices.signals import safe_point
from jevomerge.errors import FitnessError, InputError
from jevomerge.fitness.batches import Example, Layout
from jevomerge.fitness.data import fingerprint, refuse_overlap
from jevomerge.fitness.members import ask, make_members, one_ahead, run_members
from jevomerge.fitness.outcome import Found, Scores, Tokens, count_tokens, of_this_process, over_tasks, total
from jevomerge.fitness.racing import PIECES, Rule, Stopped, upper_bound
from jevomerge.fitness.rollouts.rollout import Where, make_batches, nowhere
from jevomerge.fitness.sharing import several, share, share_texts
from jevomerge.fitness.slices import Placing, Slices, slices_for
from jevomerge.fitness.task import Material, Ready
from jevomerge.models.layers import Params
from jevomerge.models.model import Language
from jevomerge.problems.problem import Candidates, Whole

SPLITS = ("search", "heldout")
Write = Callable[[np.ndarray, Path], None]  # the model of a genome (n,), as a folder that does not exist yet


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Tasks whose data is read and laid out, for models of one architecture on some devices; see `make_judge`."""

    tasks: tuple[Ready, ...]
    material: Mapping[str, Mapping[str, Material]]  # by split and task
    layouts: Mapping[str, Sequence[Layout]]  # by task
    subject: Language  # what is judged
    mesh: Mesh
    members_per_device: int  # in each slice of the mesh's axis `pop`, scored together
    tokens_per_batch: int
    dtype: str  # of activations
    racing: Rule | None  # by which candidates are stopped that cannot be among the best any more
    write: Write | None = None  # the candidate of a genome (n,) as a folder, for tasks that judge one
    population: int = 0  # of a generation; 0: there is none
    lay_out: Callable[[int], Mapping[str, Sequence[Layout]]] | None = None  # `layouts` in so many batches, or more

    @property
    def group(self) -> int:
        """How many members are scored together."""
        return self.mesh.shape["pop"] * self.members_per_device

    @property
    def examples(self) -> dict[str, dict[str, list[Example]]]:
        """What a model is given, by split and task."""
        return {split: {name: m.examples for name, m in tasks.items()} for split, tasks in self.material.items()}

    @property
    def weights(self) -> dict[str, float]:
        """{task: how much it counts}."""
        return {task.name: task.weight for task in self.tasks}

    def on(self, mesh: Mesh, members_per_device: int = 1) -> Judge:
        """The same judge on other devices; where slices share out the texts of members, there is one for each."""
        judge = dataclasses.replace(self, mesh=mesh, members_per_device=members_per_device)
        if self.lay_out is None:
            return judge
        few = self.population % judge.group
        return dataclasses.replace(judge, layouts=self.lay_out(judge.slices(few, "search").ways if few else 1))

    @property
    def kept(self) -> int:
        """Bytes of what is kept of the pictures of all tasks."""
        eyes = [e for task in self.tasks if (e := getattr(task.rollout, "eyes", None)) is not None]
        examples = (e for split in self.examples.values() for examples in split.values() for e in examples)
        pictures = [p for example in examples for p in getattr(example, "pictures", ())]
        return eyes[0].size(pictures, self.subject) if eyes else 0

    def fingerprint(self, split: str) -> dict[str, str]:
        """A digest of each task's examples."""
        return {name: fingerprint(material.examples) for name, material in self.material[split].items()}

    def sample(self, split: str, count: int | None, key: Array) -> dict[str, np.ndarray]:
        """A minibatch: `count` documents of each task (or all), as sorted indices."""
        chosen = {}
        for name, material in self.material[split].items():
            order = jax.random.permutation(jax.random.fold_in(key, zlib.crc32(name.encode())), len(material.documents))
            chosen[name] = np.sort(np.asarray(order)[:count])
        return chosen

    def chosen(self, task: Ready, split: str, subset: Mapping[str, np.ndarray] | None = None) -> list[Example]:
        """The examples of a split, or of its documents in `subset`, one document after another."""
        examples, first, *_ = self.material[split][task.name]
        return [e for d in self._documents(task, split, subset) for e in examples[first[d] : first[d + 1]]]

    def _documents(self, task: Ready, split: str, subset: Mapping[str, np.ndarray] | None) -> np.ndarray:
        """The documents of a task that a candidate is scored on."""
        return np.arange(len(self.material[split][task.name].documents)) if subset is None else subset[task.name]

    def fitness(self, scores: Scores) -> tuple[float, float]:
        """The weighted mean over tasks of the mean score, and of the second criterion; a bound, if it was stopped."""
        if scores.stopped is not None:
            return scores.stopped.bound, -math.inf
        first, second = ({name: float(np.mean(v)) for name, v in values.items()} for values in scores[:2])
        return over_tasks(self.weights, first), over_tasks(self.weights, second)

    def also(self, texts: Mapping[str, Sequence[str]], split: str) -> dict[str, dict[str, float]]:
        """{task: {criterion: score}} of the texts that a model wrote for a whole split, by what does not count."""
        material = self.material[split]
        found = {t.name: t.also(material[t.name].documents, texts[t.name]) for t in self.tasks if t.name in texts}
        return {name: dict(scores) for name, scores in found.items() if scores}

    def members(
        self,
        candidates: Candidates,
        genomes: np.ndarray,
        subset: Mapping[str, np.ndarray] | None = None,
        cut: float | None = None,
    ) -> Iterator[list[Scores]]:
        """Score a population on the search split, yielding as each group of members is done.

        With a `cut`, a group is stopped when the fitness of none of its members can reach it any more.
        """
        for start in range(0, len(genomes), self.group):
            group = genomes[start : start + self.group]
            yield self.score(candidates, group, "search", subset, cut=cut, write=self.write)

    def model(
        self,
        params: Params,
        split: str,
        subject: Language | None = None,
        write: Callable[[Path], None] | None = None,
    ) -> Scores:
        """Score one model on a whole split.

        Args:
            params: its parameters.
            split: which documents.
            subject: what they are parameters of, if not of the judge's.
            write: writes it as a folder that does not exist yet, for tasks that judge one.
        """
        folder = None if write is None else lambda _, path: write(path)
        return self.score(Whole(params), np.zeros((1, 0)), split, subject=subject, write=folder)[0]

    def likelihoods(self, params: Params, subject: Language | None = None) -> tuple[dict[str, np.ndarray], Tokens]:
        """What one model gives to the reference answers of the search split, by task, and what finding that out took.

        Only for tasks that have `answers`.
        """
        found, tokens = {}, list[Tokens]()
        for task in self.tasks:
            assert task.answers is not None
            examples = self.chosen(task, "search")
            size, where = self.tokens_per_batch, self.mesh
            with scoring(task):
                outputs, spent = ask(
                    task.answers, examples, params, subject or self.subject,
                    tokens_per_batch=size, mesh=where, dtype=self.dtype,
                )  # fmt: skip
            found[task.name] = np.array([mean for mean, _ in outputs])
            tokens.append(spent)
        return found, total(tokens)

    def score(
        self,
        candidates: Candidates,
        genomes: np.ndarray,
        split: str,
        subset: Mapping[str, np.ndarray] | None = None,
        *,
        subject: Language | None = None,
        cut: float | None = None,
        write: Write | None = None,
    ) -> list[Scores]:
        """The scores of (M, n) genomes, for which there is room on the mesh at once.

        Args:
            candidates: what genomes stand for.
            genomes: (M, n), M at most `group`.
            split: which documents: of the search, or held out.
            subset: {task: the numbers of documents}; None: all of the split.
            subject: what the parameters are of, if not of the judge's.
            cut: below which all fitnesses must be bound to be for members to be stopped; None: they never are.
            write: what writes a member as a folder, for tasks that judge one.

        Raises:
            FitnessError: if a task cannot be scored.
        """
        with contextlib.ExitStack() as scratch:
            folders = [in_scratch(scratch, write, genome) for genome in genomes]
            return self._score(candidates, genomes, split, subset, subject or self.subject, folders, cut)

    def _score(
        self,
        candidates: Candidates,
        genomes: np.ndarray,
        split: str,
        subset: Mapping[str, np.ndarray] | None,
        subject: Language,
        folders: Sequence[Where],
        cut: float | None,
    ) -> list[Scores]:
        """The same; `folders`: of the members."""
        apart, alone = several(self.mesh), isinstance(candidates, Whole)
        slices = self.slices(len(genomes), split, cut is None)
        members, owners = put(slices.fill(genomes).astype(np.float32), by_member(self.mesh)), slices.owners
        if repeated := alone and apart and slices.ways == 1:  # each process reads what all slices make
            owners = {min(of_this_process(members)): (0, 0)}
        many = any(task.rollout.many_passes for task in self.tasks)
        made = make_members(candidates, members, mesh=self.mesh) if many or not candidates.lazy else None
        slots = candidates.slots(genomes) if many else None

        def start(task: Ready, layout: Layout, batches: Sequence[Any]) -> Any:
            """What the batches of as many ways come to, which the device may still be busy with."""
            given, room = (made, slots) if task.rollout.many_passes else (None if candidates.lazy else made, None)
            with scoring(task):
                return run_members(
                    candidates, given, members, self._place(batches, slices), mesh=self.mesh, slots=room, model=subject,
                    rollout=task.rollout, layout=layout, dtype=self.dtype,
                )  # fmt: skip

        found = {
            t.name: Found(self.material[split][t.name], self._documents(t, split, subset), len(genomes))
            for t in self.tasks
        }
        tokens = np.full((self.group, len(Tokens._fields)), np.nan)  # by slot, of those that are here
        stopped: list[Stopped | None] = [None] * len(genomes)
        failure: FitnessError | InputError | None = None
        chosen = {task.name: self.chosen(task, split, subset) for task in self.tasks}
        started = (
            (task, indices, batches, start(task, layout, batches))
            for task, layout, indices, batches in self._batches(chosen, subject, slices.ways)
        )
        for task, indices, batches, output in one_ahead(started) if cut is None else started:
            safe_point()
            try:
                with scoring(task):
                    here = of_this_process(output)
                    for way, (index, batch) in enumerate(zip(indices, batches, strict=True)):
                        rows, made_of = index[index >= 0], dict[int, list[Any]]()
                        examples = [chosen[task.name][i] for i in rows]
                        for slot in [s for s in here if owners.get(s, (None, None))[0] == way]:
                            m, own = owners[slot][1], tuple(array[index >= 0] for array in here[slot])
                            spent = count_tokens(task.rollout, examples, batch, own)
                            tokens[slot] = spent + np.nan_to_num(tokens[slot])
                            made_of[m] = task.rollout.read(own, folders[m])
                        found[task.name].add(rows, made_of)
            except (FitnessError, InputError) as error:
                failure = failure or error
                if not apart:  # other processes wait for what is computed with them
                    raise
            if cut is None:
                continue
            if apart:
                told = share(list(found.values()), tokens, failure)
            seen = [f.seen for f in found.values()]
            if not all(map(np.all, seen)) and np.all((bounds := self._bounds(chosen, found)) < cut):
                stopped = [Stopped(float(bound), sum(int(s.sum()) for s in seen)) for bound in bounds]
                break
        if cut is None and apart:
            told = share(list(found.values()), tokens, failure)
        if alone and apart and not repeated:
            share_texts([found[t.name] for t in self.tasks if t.rollout.writes])
        took = np.zeros((len(genomes), tokens.shape[1]), int)
        for slot, (_, m) in owners.items():
            took[m] += np.nan_to_num((told if apart and not repeated else tokens)[slot]).astype(int)
        return [
            Scores(
                {name: f.pairs[0, m] for name, f in found.items()},
                {name: f.pairs[1, m] for name, f in found.items()},
                {t.name: found[t.name].texts(m) for t in self.tasks if t.rollout.writes},
                stopped[m],
                Tokens(*took[m].tolist()),
                {t.name: found[t.name].drawn(m) for t in self.tasks if t.rollout.draws and not t.private},
                {t.name: found[t.name].outputs[m] for t in self.tasks if t.compared},
                {t.name: n for t in self.tasks if t.rollout.draws and (n := found[t.name].broken(m))},
            )
            for m in range(len(genomes))
        ]

    def _batches(
        self, chosen: Mapping[str, Sequence[Example]], subject: Language, ways: int
    ) -> Iterator[tuple[Ready, Layout, list[np.ndarray], list[Any]]]:
        """The batches of all tasks, one task after another; so many of one layout at a time, if there are."""
        for task in self.tasks:
            layouts, shuffled = self.layouts[task.name], self.racing == "hoeffding"
            batches = make_batches(task.rollout, subject, chosen[task.name], layouts, shuffled)
            for layout, alike in itertools.groupby(batches, key=lambda batch: batch[0]):
                while some := [*itertools.islice(alike, ways)]:
                    yield task, layout, [index for _, index, _ in some], [batch for *_, batch in some]

    def slices(self, members: int, split: str, divisible: bool = True) -> Slices:
        """How so many members lie on the mesh; `divisible`: whether their examples may be shared out.

        They are not where several examples make one document, nor in several processes what has been drawn, which
        people want to see where it was scored.
        """
        alone = all((np.diff(material.first) == 1).all() for material in self.material[split].values())
        shown = several(self.mesh) and any(task.rollout.draws for task in self.tasks)
        return slices_for(self.mesh, self.members_per_device, members, divisible and alone and not shown)

    @functools.cached_property
    def _place(self) -> Placing:
        return Placing(self.mesh)

    def _bounds(self, chosen: Mapping[str, Sequence[Example]], found: Mapping[str, Found]) -> np.ndarray:
        """(M,) what the fitness of each member can still be, at most."""
        assert self.racing is not None
        bounds = dict[str, np.ndarray]()
        for task in self.tasks:
            assert task.bounds is not None
            strata = task.rollout.strata(chosen[task.name], self.layouts[task.name])
            so_far = found[task.name]
            bounds[task.name] = upper_bound(so_far.pairs[0], so_far.seen, strata, task.bounds, self.racing)
        means: np.ndarray = over_tasks(self.weights, bounds)
        return means


@contextlib.contextmanager
def scoring(task: Ready) -> Iterator[None]:
    """What goes wrong in the block has to do with this task."""
    try:
        with discreet(task):
            yield
    except (FitnessError, InputError) as error:
        raise type(error)(f"task {task.name}: {error}") from error
    except Exception as error:
        raise FitnessError(f"task {task.name}: {type(error).__name__}: {error}") from error


QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")


@contextlib.contextmanager
def discreet(task: Ready) -> Iterator[None]:
    """What is said of a private task in the block quotes none of its texts."""
    try:
        yield
    except (FitnessError, InputError) as error:
        if not task.private:
            raise
        raise type(error)(QUOTED.sub("(private)", str(error))) from None
    except Exception as error:  # of others, who may say anything
        if not task.private:
            raise
        raise FitnessError(f"{type(error).__name__}; what it says may be private") from None


def in_scratch(scratch: contextlib.ExitStack, write: Write | None, genome: np.ndarray) -> Where:
    """Where the model of a genome (n,) is as a folder, written when that is first asked, removed with `scratch`."""

    if write is None:
        return nowhere

    @functools.cache
    def folder() -> Path:
        path = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="jevomerge-"))) / "model"
        write(genome, path)
        return path

    return folder


def make_judge(
    tasks: Sequence[Ready],
    subject: Language,
    *,
    splits: Sequence[str] = SPLITS,
    tokens_per_batch: int = 16384,
    examples_at_once: int | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    members_per_device: int = 1,
    racing: Rule | None = None,
    write: Write | None = None,
    population: int = 0,
) -> Judge:
    """Read, check and lay out the data of tasks; no weights are needed.

    Args:
        tasks: from `make_ready`, or anything else that is `Ready`.
        subject: what the parameters are of that will be judged.
        splits: which data; batches are laid out for the first one.
        tokens_per_batch: rows are run together up to so many tokens.
        examples_at_once: documents of a minibatch of the first split; None: all of it.
        dtype: of activations.
        mesh: the devices; None: one.
        members_per_device: scored together in each slice of the mesh's axis `pop`.
        racing: by which rule candidates are stopped that cannot be among the best any more.
        write: what writes the candidate of a genome as a folder, for tasks that judge one.
        population: of a generation, whose last members may be too few to fill the mesh.

    Raises:
        InputError: for data that cannot be read, is none, or does not belong to such models.
    """
    if len({t.name for t in tasks}) < len(tasks):
        raise InputError("tasks: two tasks have the same name")
    if racing is not None and (unbounded := [t.name for t in tasks if t.bounds is None]):
        raise InputError(
            f"search.racing: not with {unbounded[0]}, of whose scores nobody knows the highest; leave racing out, or "
            "give a function of yours `bounds`"
        )
    material: dict[str, dict[str, Material]] = {split: {} for split in splits}
    laying = dict[str, tuple[Ready, Callable[..., Sequence[Layout]]]]()
    for task in tasks:
        with discreet(task):
            for split in splits:
                material[split][task.name] = task.material(split)
        if set(splits) == set(SPLITS) and task.apart:
            refuse_overlap(task.name, *(material[s][task.name].documents for s in SPLITS))
        first, *rest = (material[split][task.name].examples for split in splits)
        others = [e for examples in rest for e in examples]
        with scoring(task):
            task.rollout.check(subject, [*first, *others])
        at_once = examples_at_once
        if at_once is not None:  # documents
            at_once = math.ceil(at_once * len(first) / len(material[splits[0]][task.name].documents))
        laying[task.name] = task, functools.partial(task.rollout.layouts, first, others, tokens_per_batch, at_once)

    def lay_out(ways: int) -> dict[str, Sequence[Layout]]:
        """Of one forward pass batches are many, and small, anyway."""
        least = 1 if racing is None else PIECES
        return {n: lay(max(least, ways) if t.rollout.many_passes else least) for n, (t, lay) in laying.items()}

    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    judge = Judge(
        tuple(tasks), material, {}, subject, mesh, members_per_device, tokens_per_batch, dtype, racing, write,
        population, lay_out,
    )  # fmt: skip
    return judge.on(mesh, members_per_device)
