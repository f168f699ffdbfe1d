"""The search: generations are asked for, scored, written down and told."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jevomerge.devices.hosts import first, on_first, together
from jevomerge.devices.signals import safe_point
from jevomerge.errors import FitnessError, InputError
from jevomerge.fitness.outcome import Scores, Tokens, total
from jevomerge.observers.observer import Observer
from jevomerge.problems.problem import Candidates
from jevomerge.search.archive import Archive, Record
from jevomerge.search.gallery import hang
from jevomerge.search.people import member_name, round_name
from jevomerge.search.refine import shortened
from jevomerge.search.setup import Setup, refiner_of
from jevomerge.search.snapshots import Snapshots
from jevomerge.search.watchdog import Watchdog
from jevomerge.strategies.pareto import front_of, objectives_of
from jevomerge.strategies.schema import Search


def search(
    setup: Setup, candidates: Candidates, archive: Archive, checkpoints: Path, generations: int, observer: Observer
) -> None:
    """Ask, evaluate, tell; every evaluation is in the archive before the next one starts.

    All randomness comes from (seed, generation), evaluations found in the archive are not made again, and the
    strategy's state is restored exactly, so a run that was killed goes on as if nothing had happened.
    """
    config, strategy = setup.config, setup.strategy
    refiner = refiner_of(setup, candidates)
    if archive.damaged:
        ignored = f"evaluations.jsonl: damaged lines are ignored ({archive.damaged})"
        observer.note(f"{ignored}; evaluations that are missing are made again")
    key = jax.random.key(config.seed)
    saved, start = Snapshots(checkpoints, observer.note), strategy.init(jax.random.fold_in(key, 0))

    def load() -> tuple[int, dict[str, Any]]:
        if strategy.replayed:
            return 0, {}
        # With a checkpoint ahead of the archive, evaluations would be missing in the end.
        step, state = saved.load(start, lambda step: archive.holds(step, strategy.population_size))
        return step, {name: values.tolist() for name, values in state.items()}

    step, values = on_first(load)
    finished = step, {k: np.asarray(v, start[k].dtype).reshape(start[k].shape) for k, v in values.items()}

    def save() -> None:
        if first() and not strategy.replayed:
            saved.save(*finished)

    with Watchdog(config.search.time_limit) as watchdog:
        wanted = generations * strategy.population_size
        evaluator = Evaluator(setup, candidates, archive, checkpoints.parent, observer, watchdog, wanted)
        evaluator.show(0, dict(enumerate(archive.records[: step * strategy.population_size])))
        try:
            for generation in range(finished[0], generations):
                keys = jax.random.split(jax.random.fold_in(key, generation + 1), 3)
                population, state = strategy.ask(keys[0], finished[1])
                if generation == 0 and np.ndim(mean := setup.problem.mean):  # a start that is a model is scored too
                    population = np.concatenate([np.reshape(mean, (1, -1)), population[1:]])
                starts = setup.starts if generation == 0 else setup.starts[:0]
                population = np.concatenate([population[: len(population) - len(starts)], starts])
                origins: dict[int, list[int]] = {}
                if refiner is not None and refiner.due(generation):
                    refined, origins = refiner.members(archive, generation, state, len(population))
                    population = np.concatenate([population[: len(population) - len(refined)], refined])
                done = evaluator.evaluate(generation, population, keys[1], origins)
                fitness = told(setup, done)
                tie_break = np.array([-math.inf if r["tie_break"] is None else r["tie_break"] for r in done])
                if len(starts) and strategy.injectable:  # they may be far from all that it draws
                    population = np.concatenate([population[: -len(starts)], shortened(state, starts)])
                finished = generation + 1, strategy.tell(keys[2], state, population, fitness, tie_break)
                if finished[0] % config.search.checkpoint_every == 0:
                    save()
            if refiner is not None:
                observer.stage("refining the best" if generations else "refining the start")
                population, origins = refiner.last(archive, generations, setup.problem.mean)
                evaluator.evaluate(generations, population, jax.random.fold_in(key, generations + 1), origins)
        finally:  # also when it is interrupted, as before a preemption
            save()


def told(setup: Setup, records: list[Record]) -> np.ndarray:
    """What the strategy learns of a generation: the fitness (P,), or with several goals every task's score (P, K)."""
    if setup.strategy.several_goals:
        return objectives_of(records, [task.name for task in setup.config.tasks])
    return np.array([math.nan if r["fitness"] is None else r["fitness"] for r in records])


class Member(NamedTuple):
    """Who is scored."""

    generation: int
    number: int
    genome: np.ndarray
    refined: list[int] | None  # of which record, (generation, member), it is the refined genome


class Evaluator:
    """Scores generation after generation, writes down what comes out, and tells of it."""

    def __init__(
        self,
        setup: Setup,
        candidates: Candidates,
        archive: Archive,
        folder: Path,
        observer: Observer,
        watchdog: Watchdog,
        total: int,
    ):
        """`folder` is the run's, `total` how many evaluations there will be, without those after the search."""
        self.setup, self.candidates, self.archive, self.folder = setup, candidates, archive, folder
        self.observer, self.watchdog = observer, watchdog
        self.anchors, self.people, self.size = setup.anchors, setup.people, setup.strategy.population_size
        self.judge = setup.judge if self.anchors is None else self.anchors.judge
        self.total, self.shown, self.best = total, 0, best_fitness(archive.records)

    def evaluate(
        self, generation: int, population: np.ndarray, key: jax.Array, refined: Mapping[int, list[int]]
    ) -> list[Record]:
        """The archive's records of one generation, making those that are missing.

        `refined`: of which record, (generation, member), a member is the refined genome.

        Raises:
            FitnessError: if a candidate cannot be scored.
        """
        members = [Member(generation, m, genome, refined.get(m)) for m, genome in enumerate(population)]
        self.total = max(self.total, generation * self.size + len(members))
        found = [self.archive.find(generation, m, genome.tolist()) for m, genome in enumerate(population)]
        done = {m: record for m, record in enumerate(found) if record is not None}
        self.show(generation, done)
        count = self.setup.config.search.examples_per_generation
        minibatch = None if count is None else self.judge.sample("search", count, key)
        same = {} if count is not None else self.archive.before(generation, self.setup.problem.distinct, population)
        if copies := [copy_record(record, members[m]) for m, record in same.items() if m not in done]:
            self._add(generation, done, copies)
        # A group of which a member is missing is scored whole, for its rounding may depend on who is in it.
        rest = [m for m in members if m.number not in same]
        size = self.judge.group if self.people is None else max(1, len(rest))  # people compare a generation
        for start in range(0, len(rest), size):
            group = rest[start : start + size]
            if all(m.number in done for m in group):
                continue
            safe_point()
            # By those before it alone, so that a resumed run stops the same ones.
            cut = threshold(self.setup, [done[m] for m in range(group[0].number)])
            records = self._score(group, minibatch if self.anchors is None else self.anchors.subset, cut)
            self._add(generation, done, [r for r in records if r["member"] not in done])
        return [done[m.number] for m in members]

    def show(self, generation: int, done: Mapping[int, Record]) -> None:
        """Tell of the members from a generation on, in order, up to the first one that is missing."""
        while (record := done.get(self.shown - generation * self.size)) is not None:
            self.observer.scored(self.shown, record)
            self.shown += 1

    def _add(self, generation: int, done: dict[int, Record], new: list[Record]) -> None:
        """Write down new records of a generation, and tell how far it is."""
        together(lambda: self.archive.append(new))
        done |= {r["member"]: r for r in new}
        self.show(generation, done)
        self.best = max(self.best, best_fitness(new))
        fitness = [r["fitness"] for r in done.values() if r["fitness"] is not None]
        mean = float(np.mean(fitness)) if fitness else math.nan
        self.observer.evaluated(generation * self.size + len(done), self.total, self.best, mean)

    def _score(
        self, group: Sequence[Member], subset: Mapping[str, np.ndarray] | None, cut: float | None
    ) -> list[Record]:
        """The records of members that are scored together."""
        began, scores = time.perf_counter(), list[Scores]()
        for start in range(0, len(group), self.judge.group):
            scores += self._watched(group[start : start + self.judge.group], subset, cut)
        if self.people is not None:
            scores = self._compared(group, scores)
        seconds = (time.perf_counter() - began) / len(group)
        records = [self._record(m, s, seconds, subset) for m, s in zip(group, scores, strict=True)]
        top = max(range(len(group)), key=lambda i: best_fitness(records[i : i + 1]))
        if subset is None and best_fitness(records) > self.best:
            on_first(lambda: hang(self.folder, scores[top], group[top].generation * self.size + group[top].number))
        return records

    def _watched(
        self, group: Sequence[Member], subset: Mapping[str, np.ndarray] | None, cut: float | None
    ) -> list[Scores]:
        """The scores of members that are scored together, within the time limit."""
        where = f"generation {group[0].generation}, member {' and '.join(str(m.number) for m in group)}"
        limit, genomes = self.setup.config.search.time_limit, np.array([m.genome for m in group])
        try:
            with self.watchdog.watching(f"{where}: not scored within search.time_limit, {limit} s"):
                [scores] = self.judge.members(self.candidates, genomes, subset, cut)
        except (FitnessError, InputError) as error:
            raise type(error)(f"{where}: {error}") from error
        return scores

    def _compared(self, group: Sequence[Member], scores: Sequence[Scores]) -> list[Scores]:
        """The scores of a generation after people have compared it, with the best so far."""
        assert self.people is not None
        generation = group[0].generation
        names = self.people.best_before(generation)
        best = {member_name(r): r["genome"] for r in self.archive.records if member_name(r) in names}
        found = [s for part in self.judge.members(self.candidates, np.array([*best.values()])) for s in part]
        members = {f"{round_name(generation)}, member {m.number}": s for m, s in zip(group, scores, strict=True)}
        return self.people.generation(generation, members, dict(zip(best, found, strict=True)))

    def _record(
        self, member: Member, scores: Scores, seconds: float, subset: Mapping[str, np.ndarray] | None
    ) -> Record:
        """A line of evaluations.jsonl; a fitness or a score that is not a number, or was not found out, is null."""
        both = self.judge.fitness(scores) if self.anchors is None else self.anchors.fitness(scores)
        fitness, tie_break = (x if math.isfinite(x) else None for x in both)
        return {
            "generation": member.generation,
            "member": member.number,
            "genome": member.genome.tolist(),
            "fitness": fitness,
            "tie_break": tie_break,
            "seconds": round(seconds, 4),
            "tokens": scores.tokens._asdict(),
            "scores": {
                name: [round(float(x), 6) if math.isfinite(x) else None for x in values]
                for name, values in scores.fitness.items()
            },
            **({"broken": dict(scores.broken)} if scores.broken else {}),
            **({} if scores.stopped is None else {"stopped": scores.stopped.examples}),  # fitness is then a bound
            **({} if self.anchors is None else self.anchors.note),
            **({} if member.refined is None else {"refined": member.refined}),
            **({} if subset is None else {"examples": {name: chosen.tolist() for name, chosen in subset.items()}}),
        }


def threshold(setup: Setup, earlier: list[Record | None]) -> float | None:
    """The fitness of the worst of the best that matter, among the records of a generation so far; None: not known."""
    search, elite = setup.config.search, setup.strategy.elite
    if search.racing is None or elite is None:
        return None
    fitness = sorted((r["fitness"] for r in earlier if r is not None and r["fitness"] is not None), reverse=True)
    return fitness[elite - 1] if len(fitness) >= elite else None


def best_fitness(records: list[Record]) -> float:
    """The highest fitness among records, -inf if there is none."""
    return max((r["fitness"] for r in records if r["fitness"] is not None), default=-math.inf)


def copy_record(record: Record, member: Member) -> Record:
    """The line of a candidate that has been scored before, perhaps by other genes that do not matter."""
    where = {"generation": member.generation, "member": member.number, "genome": member.genome.tolist()}
    where |= {"copy_of": [record["generation"], record["member"]]}
    where |= {} if member.refined is None else {"refined": member.refined}
    spent = {"seconds": 0.0, "tokens": {"prompt": 0, "answer": 0}}
    return {k: v for k, v in record.items() if k != "refined"} | spent | where


class Chosen(NamedTuple):
    """The best candidate."""

    record: Record
    fitness: float  # on the whole search split
    spent: Tokens  # to choose it


Exported = Callable[[np.ndarray], Sequence[Sequence[float]]]


def choose(setup: Setup, candidates: Candidates, archive: Archive, exported: Exported | None = None) -> Chosen:
    """The best candidate, with several goals of the front: by fitness, then by the second criterion, then the earliest.

    With minibatches a high fitness may be luck, and with anchors it is an estimate, so a few finalists are scored again
    on the whole search split.

    `exported`: from (M, n) genomes to fitness, second criterion and `Tokens` of each on that split, as it would be
    exported, where candidates were scored from weights in eight bits: then finalists are always scored again, by that.
    """
    ranked = archive.ranked()
    if setup.strategy.several_goals:
        records = archive.records
        front = {id(records[i]) for i in front_of(records, [task.name for task in setup.config.tasks])}
        ranked = [r for r in ranked if id(r) in front]
    if not ranked:
        raise RuntimeError("no candidate has a fitness: all were NaN; look at evaluations.jsonl")
    if setup.config.search.examples_per_generation is None and setup.anchors is None and exported is None:
        return Chosen(ranked[0], ranked[0]["fitness"], Tokens(0, 0))
    finalists = finalists_of(ranked, setup.config.search)
    genomes = np.array([r["genome"] for r in finalists])
    if exported is None:
        scored = [s for group in setup.judge.members(candidates, genomes) for s in group]
        found: Sequence[Sequence[float]] = [(*setup.judge.fitness(s), *s.tokens) for s in scored]
    else:
        found = exported(genomes)
    fitness = [tuple(x if math.isfinite(x) else -math.inf for x in row[:2]) for row in found]
    best = max(range(len(finalists)), key=lambda i: fitness[i])
    return Chosen(finalists[best], fitness[best][0], total(Tokens(*map(int, row[2:])) for row in found))


def finalists_of(ranked: list[Record], search: Search) -> list[Record]:
    """Those among records, the best first, that are scored on the whole search split: the best `search.finalists`.

    With minibatches a generation is judged by its own examples, and the best of all would be those of the easiest: they
    are then the best of each of the last generations (in experiments/cheap_fitness the better choice).
    """
    if search.examples_per_generation is None:
        return [r for r in ranked if "copy_of" not in r][: search.finalists]
    generations: dict[int, list[Record]] = defaultdict(list)
    for record in ranked:
        generations[record["generation"]].append(record)
    last = [generations[number] for number in sorted(generations, reverse=True)[: search.finalists]]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*last))  # the best of each, the second best, ...
    return [r for r in in_turn if r is not None][: search.finalists]
