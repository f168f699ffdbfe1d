"""The search: generations are asked for, scored, written down and told."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jevomerge.errors import FitnessError
from jevomerge.evolve.archive import Archive
from jevomerge.evolve.checkpoints import Checkpoints
from jevomerge.evolve.observer import Observer
from jevomerge.evolve.pareto import Nsga2, front_of, objectives_of
from jevomerge.evolve.refine import Refiner
from jevomerge.evolve.setup import Setup
from jevomerge.evolve.watchdog import Watchdog
from jevomerge.fitness.candidates import Candidates
from jevomerge.fitness.outcome import Scores
from jevomerge.hosts import first, on_first, together

NONE: Mapping[int, list[int]] = {}


def search(
    setup: Setup, candidates: Candidates, archive: Archive, checkpoints: Path, generations: int, observer: Observer
) -> None:
    """Ask, evaluate, tell; every evaluation is in the archive before the next one starts.

    All randomness comes from (seed, generation), evaluations found in the archive are not made again, and the
    strategy's state is restored exactly, so a run that was killed goes on as if nothing had happened.
    """
    config, strategy = setup.config, setup.strategy
    refiner = None if config.refine is None else Refiner(setup, candidates)
    if archive.damaged:
        ignored = f"evaluations.jsonl: damaged lines are ignored ({archive.damaged})"
        observer.note(f"{ignored}; evaluations that are missing are made again")
    key = jax.random.key(config.seed)
    saved, start = Checkpoints(checkpoints, observer.note), strategy.init(jax.random.fold_in(key, 0))

    def load() -> tuple[int, dict[str, Any]]:
        # With a checkpoint ahead of the archive, evaluations would be missing in the end.
        step, state = saved.load(start, lambda step: archive.holds(step, strategy.population_size))
        return step, {name: values.tolist() for name, values in state.items()}

    step, values = on_first(load)
    for number, record in enumerate(archive.records[: step * strategy.population_size]):
        observer.scored(number, record)
    finished = step, {k: np.asarray(v, start[k].dtype).reshape(start[k].shape) for k, v in values.items()}
    with Watchdog(config.search.time_limit) as watchdog:
        score = functools.partial(
            evaluate, setup, candidates, archive, generations=generations, observer=observer, watchdog=watchdog
        )
        try:
            for generation in range(finished[0], generations):
                keys = jax.random.split(jax.random.fold_in(key, generation + 1), 3)
                population, state = strategy.ask(keys[0], finished[1])
                if generation == 0 and np.ndim(mean := setup.problem.mean):  # a start that is a model is scored too
                    population = np.concatenate([np.reshape(mean, (1, -1)), population[1:]])
                origins: dict[int, list[int]] = {}
                if refiner is not None and refiner.due(generation):
                    refined, origins = refiner.members(archive, generation, state, len(population))
                    population = np.concatenate([population[: len(population) - len(refined)], refined])
                done = score(generation, population, keys[1], refined=origins)
                fitness = told(setup, done)
                tie_break = np.array([-math.inf if r["tie_break"] is None else r["tie_break"] for r in done])
                finished = generation + 1, strategy.tell(keys[2], state, population, fitness, tie_break)
                if first() and finished[0] % config.search.checkpoint_every == 0:
                    saved.save(*finished)
            if refiner is not None:
                observer.stage("refining the best" if generations else "refining the start")
                population, origins = refiner.last(archive, generations, setup.problem.mean)
                score(generations, population, jax.random.fold_in(key, generations + 1), refined=origins)
        finally:  # also when it is interrupted, as before a preemption
            if first():
                saved.save(*finished)


def told(setup: Setup, records: list[dict[str, Any]]) -> np.ndarray:
    """What the strategy learns of a generation: the fitness (P,), or with several goals every task's score (P, K)."""
    if isinstance(setup.strategy, Nsga2):
        return objectives_of(records, [task.name for task in setup.config.tasks])
    return np.array([math.nan if r["fitness"] is None else r["fitness"] for r in records])


def evaluate(
    setup: Setup,
    candidates: Candidates,
    archive: Archive,
    generation: int,
    population: np.ndarray,
    key: jax.Array,
    generations: int,
    observer: Observer,
    watchdog: Watchdog,
    refined: Mapping[int, list[int]] = NONE,
) -> list[dict[str, Any]]:
    """The archive's records of one generation, making those that are missing.

    `refined`: of which record, (generation, member), a member is the refined genome.

    Raises:
        FitnessError: if a candidate cannot be scored.
    """
    config, anchors = setup.config, setup.anchors
    judge, size = setup.judge if anchors is None else anchors.judge, config.search.examples_per_generation
    subset = None if size is None else judge.sample("search", size, key)
    done = {m: archive.find(generation, m, genome.tolist()) for m, genome in enumerate(population)}
    group, count = judge.group, len(population)
    same = {} if subset is not None else archive.before(generation, setup.problem.distinct, population)
    if copies := [copy_record(same[m], generation, m, population[m], refined.get(m)) for m in same if done[m] is None]:
        together(lambda: archive.append(copies))
        done |= {r["member"]: r for r in copies}
    # A group of which a member is missing is scored whole, for its rounding may depend on who is in it.
    rest = [m for m in range(count) if m not in same]
    groups = [rest[start : start + group] for start in range(0, len(rest), group)]
    pending = [members for members in groups if any(done[m] is None for m in members)]
    first_of = generation * setup.strategy.population_size
    total, best = max(generations * setup.strategy.population_size, first_of + count), best_fitness(archive.records)
    before = time.perf_counter()
    first_member, shown = 0, 0

    def show(new: bool = True) -> None:
        """Tell of all members up to the first one that is missing, and if some are new how many there are."""
        nonlocal shown
        while shown < count and (record := done[shown]) is not None:
            observer.scored(first_of + shown, record)
            shown += 1
        if not new:
            return
        made = [r["fitness"] for r in done.values() if r is not None and r["fitness"] is not None]
        evaluated = first_of + sum(r is not None for r in done.values())
        observer.evaluated(evaluated, total, best, float(np.mean(made)) if made else math.nan)

    def cut() -> float:
        """What a member must reach: by the groups before its own alone, so that a resumed run stops the same ones."""
        return threshold(setup, [done[m] for m in range(first_member)])

    show(new=bool(copies))
    scored = subset if anchors is None else anchors.subset
    outputs = judge.members(candidates, population[[m for members in pending for m in members]], scored, cut)
    for members in pending:
        first_member = members[0]
        where = f"generation {generation}, member {' and '.join(map(str, members))}"
        try:
            with watchdog.watching(f"{where}: not scored within search.time_limit, {config.search.time_limit} s"):
                scores = next(outputs)
        except FitnessError as error:
            raise FitnessError(f"{where}: {error}") from error
        now = time.perf_counter()
        records = [
            make_record(generation, m, population[m], setup, s, (now - before) / len(members), scored, refined.get(m))
            for m, s in zip(members, scores, strict=True)
            if done[m] is None
        ]
        before = now
        together(lambda records=records: archive.append(records))  # type: ignore[misc]
        done |= {r["member"]: r for r in records}
        best = max(best, best_fitness(records))
        show()
    return [r for r in done.values() if r is not None]


def threshold(setup: Setup, earlier: list[dict[str, Any] | None]) -> float:
    """The fitness of the worst of the best that matter, among the records of a generation so far; -inf: not known."""
    search, elite = setup.config.search, setup.strategy.elite
    if search.racing is None or elite is None:
        return -math.inf
    if search.examples_per_generation is not None:
        elite = max(elite, search.finalists)  # who may be scored again at the end
    fitness = sorted((r["fitness"] for r in earlier if r is not None and r["fitness"] is not None), reverse=True)
    return fitness[elite - 1] if len(fitness) >= elite else -math.inf


def best_fitness(records: list[dict[str, Any]]) -> float:
    """The highest fitness among records, -inf if there is none."""
    return max((r["fitness"] for r in records if r["fitness"] is not None), default=-math.inf)


def make_record(
    generation: int,
    member: int,
    genome: np.ndarray,
    setup: Setup,
    scores: Scores,
    seconds: float,
    subset: Mapping[str, np.ndarray] | None,
    refined: list[int] | None = None,
) -> dict[str, Any]:
    """A line of evaluations.jsonl; a fitness or a score that is not a number, or was not found out, is null."""
    anchors = setup.anchors
    both = setup.judge.fitness(scores) if anchors is None else anchors.fitness(scores)
    fitness, tie_break = (x if math.isfinite(x) else None for x in both)
    return {
        "generation": generation,
        "member": member,
        "genome": genome.tolist(),
        "fitness": fitness,
        "tie_break": tie_break,
        "seconds": round(seconds, 4),
        "tokens": scores.tokens._asdict(),
        "scores": {
            name: [round(float(x), 6) if math.isfinite(x) else None for x in values]
            for name, values in scores.primary.items()
        },
        **({} if scores.stopped is None else {"stopped": scores.stopped.examples}),  # fitness is then a bound
        **({} if anchors is None else anchors.note),
        **({} if refined is None else {"refined": refined}),
        **({} if subset is None else {"examples": {name: chosen.tolist() for name, chosen in subset.items()}}),
    }


def copy_record(
    record: dict[str, Any], generation: int, member: int, genome: np.ndarray, refined: list[int] | None = None
) -> dict[str, Any]:
    """The line of a candidate that has been scored before, perhaps by other genes that do not matter."""
    where = {"generation": generation, "member": member, "genome": genome.tolist()}
    spent = {"seconds": 0.0, "tokens": {"prompt": 0, "answer": 0}}
    where |= {"copy_of": [record["generation"], record["member"]]} | ({} if refined is None else {"refined": refined})
    return {k: v for k, v in record.items() if k != "refined"} | spent | where


def choose(setup: Setup, candidates: Candidates, archive: Archive) -> dict[str, Any]:
    """The best record, with several goals of the front: by fitness, then by the second criterion, then the earliest.

    With minibatches a high fitness may be luck, and with anchors it is an estimate, so the best few are scored again on
    the whole search split.
    """
    ranked = archive.ranked()
    if isinstance(setup.strategy, Nsga2):
        records = archive.records
        front = [records[i] for i in front_of(records, [task.name for task in setup.config.tasks])]
        ranked = [r for r in ranked if r in front]
    if not ranked:
        raise RuntimeError("no candidate has a fitness: all were NaN; look at evaluations.jsonl")
    if setup.config.search.examples_per_generation is None and setup.anchors is None:
        return ranked[0]
    finalists = [r for r in ranked if "copy_of" not in r][: setup.config.search.finalists]
    genomes = np.array([r["genome"] for r in finalists])
    scored = [s for group in setup.judge.members(candidates, genomes) for s in group]
    fitness = [tuple(x if math.isfinite(x) else -math.inf for x in setup.judge.fitness(s)) for s in scored]
    return finalists[max(range(len(finalists)), key=lambda i: fitness[i])]
