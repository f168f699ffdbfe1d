"""One evolution from configuration to exported model."""

from __future__ import annotations

import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import yaml

from jevomerge.checkpoint import Checkpoint
from jevomerge.checkpoint.export import export_folder, refuse_existing
from jevomerge.checkpoint.source import TOKENIZER_FILES
from jevomerge.config import RunConfig, Search
from jevomerge.errors import FitnessError, InputError
from jevomerge.evolve.archive import Archive, locked, write_atomically
from jevomerge.evolve.checkpoints import Checkpoints
from jevomerge.evolve.paths import PathStrategy, make_path_strategy
from jevomerge.evolve.problem import JointProblem, PathProblem, Problem, WeightProblem, make_problem
from jevomerge.evolve.scoring import record_heldout, score_baselines, score_model
from jevomerge.evolve.strategies import Strategy, make_strategy
from jevomerge.evolve.watchdog import Watchdog
from jevomerge.fitness.candidates import Candidates
from jevomerge.fitness.judge import SPLITS, Judge, Scores
from jevomerge.hosts import first, on_first, together
from jevomerge.mesh import make_mesh
from jevomerge.plan.measure import best_plan, memory_limit
from jevomerge.stream import write_beside_weights

PACKAGES = ("jevomerge", "jax", "jaxlib", "flax", "evosax", "orbax-checkpoint", "transformers", "numpy", "datasets")


class Observer(Protocol):
    """Whoever watches a run; see `jevomerge.console`."""

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """Something that is worth knowing and needs no change."""

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """So many evaluations are done; `mean` is over the current generation."""

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """The outcome."""


class Setup:
    """Everything a run needs that can be made, and checked, without reading a weight."""

    def __init__(self, config: RunConfig, devices: Sequence[jax.Device] | None = None):
        """Open the models, build the search space, read the tasks' data; `devices` other than this machine's."""
        self.config = config
        self.problem: Problem = make_problem(config)
        problem, search = self.problem, config.search
        try:
            self.strategy = make_strategy_for(problem, search)
        except ValueError as error:
            raise InputError(f"search: {error}") from None
        if search.strategy in ("de", "pso") and search.examples_per_generation is not None:
            raise InputError(
                f"search: {search.strategy} compares candidates across generations, whose scores on different "
                "minibatches mean different things; leave examples_per_generation out or choose cma_es"
            )
        if search.racing is not None and self.strategy.elite is None:
            raise InputError(
                f"search.racing: {self.strategy.name} learns from the rank of every candidate, also the worst; leave "
                "racing out or choose sep_cma_es, snes or random, for paths mixed or path_program"
            )
        if search.evaluations < (size := self.strategy.population_size):
            raise InputError(f"search.evaluations: {search.evaluations} is less than one generation of {size}")
        self.mesh = make_mesh(config.mesh.pop, config.mesh.model, devices)
        self.judge = Judge(
            config.tasks,
            problem_tokenizer(problem),
            problem.config,
            tokens_per_batch=config.tokens_per_batch,
            examples_at_once=search.examples_per_generation,
            dtype=config.compute_dtype,
            mesh=self.mesh,
            members_per_device=config.members_per_device or 1,
            racing=search.racing,
        )

    def choose_mesh(self, observer: Observer) -> None:
        """Where devices say how much memory they have: as the plan for them says, what the config leaves open."""
        devices = jax.devices()
        given = self.config.mesh.model or self.config.mesh.pop
        if memory_limit(devices[0]) is None or (given and self.config.members_per_device):
            return
        observer.stage("choosing the mesh by what fits")
        plan = best_plan(self, devices)
        self.mesh, self.judge = plan.mesh, self.judge.on(plan.mesh, plan.members_per_device)
        if not plan.fits:
            observer.note("this may not fit in memory; `jevomerge plan` says what to change")


def make_strategy_for(problem: Problem, search: Search) -> Strategy | PathStrategy:
    """The strategy of a config: paths have some of their own."""
    settings = (search.population, problem.mean, search.sigma)
    if isinstance(problem, WeightProblem):
        return make_strategy(search.strategy or "cma_es", len(problem.names), *settings)
    before = len(problem.weights.names) if isinstance(problem, JointProblem) else 0
    return make_path_strategy(search.strategy or "mixed", problem.space, *settings, before=before)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        InputError: if there is none.
    """
    from transformers import AutoTokenizer  # imported late: it takes seconds

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def problem_tokenizer(problem: Problem) -> Any:
    """The tokenizer that the exported model will have."""
    if isinstance(problem, PathProblem):
        return load_tokenizer(problem.checkpoints[0].folder)
    sources = problem.weights.sources if isinstance(problem, JointProblem) else problem.sources
    if sources.alignment is None:
        return load_tokenizer(sources.like.folder)
    with tempfile.TemporaryDirectory(prefix="jevomerge-") as folder:
        write_beside_weights(Path(folder), sources)
        (Path(folder) / "config.json").write_text(json.dumps(sources.config_json))  # names the tokenizer's class
        return load_tokenizer(Path(folder))


def evolve(config: RunConfig, folder: Path, observer: Observer, *, resume: bool = False) -> dict[str, Any]:
    """Run (or continue) an evolution in `folder` and return what `result.json` holds.

    Raises:
        InputError: for anything wrong with the configuration, its models or its data, before weights are read;
            for broken weights, before anything is written.
    """
    on_first(lambda: check_folder(folder, resume))
    observer.stage("reading configuration, models' headers and data")
    setup = together(lambda: Setup(config))
    if resume:
        on_first(lambda: check_unchanged(setup, folder))
    for note in setup.problem.notes:
        observer.note(note)
    together(lambda: setup.choose_mesh(observer))
    observer.stage("loading models")
    candidates = together(lambda: setup.problem.load(setup.mesh))  # broken ones (NaN, truncated files) are refused here
    if not resume:
        on_first(lambda: begin(setup, folder))
    with ExitStack() as stack:
        archive = together(lambda: open_archive(folder, stack))
        archive.learn(*on_first(lambda: (archive.records, archive.damaged)))
        return _evolve(setup, candidates, archive, folder, observer)


def check_folder(folder: Path, resume: bool) -> None:
    """A run begins where nothing is, and goes on where one was begun and not finished."""
    if not resume:
        refuse_existing(folder)
    elif not (folder / "config.yaml").exists():
        raise InputError(f"{folder} is not a run that can be resumed: it has no config.yaml")
    elif (folder / "result.json").exists():
        raise InputError(f"{folder} is finished; its outcome is in result.json and best/")


def begin(setup: Setup, folder: Path) -> None:
    """Make the run folder; a run that is killed now leaves nothing that cannot be resumed."""
    with export_folder(folder) as new:
        record_run(setup, new)


def open_archive(folder: Path, stack: ExitStack) -> Archive:
    """The log of a run, and the right to write it; in all processes but the first one that is in memory."""
    if not first():
        return Archive(None)
    stack.enter_context(locked(folder))
    return stack.enter_context(Archive(folder / "evaluations.jsonl"))


def record_run(setup: Setup, folder: Path) -> None:
    """Write down what is about to run; config.yaml last, for with it the folder is a run."""
    environment = {
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [str(d) for d in jax.devices()],
        "command": sys.argv,
        "genes": list(setup.problem.names),
        "population": setup.strategy.population_size,
        "seed": setup.config.seed,
        "sources": {c.reference: fingerprint_of(c) for c in setup.problem.checkpoints},
        "data": {split: setup.judge.fingerprint(split) for split in SPLITS},
    }
    write_atomically(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    write_atomically(folder / "config.yaml", yaml.safe_dump(setup.config.model_dump(mode="json"), sort_keys=False))


def fingerprint_of(checkpoint: Checkpoint) -> dict[str, int]:
    """Which files a source's weights are, and how large: enough to notice another revision or model."""
    files = (p for folder in checkpoint.parts.values() for p in sorted(folder.glob("*.safetensors")))
    return {str(p.resolve()): p.stat().st_size for p in files}


def check_unchanged(setup: Setup, folder: Path) -> None:
    """A resumed run must see the models and the data it began with."""
    environment = json.loads((folder / "environment.json").read_text())
    for source in setup.problem.checkpoints:
        if environment["sources"].get(source.reference) != fingerprint_of(source):
            raise InputError(f"{source.reference}: its weights have changed since {folder} began; start a new run")
    began = environment["data"]
    for split in SPLITS:
        for task, digest in setup.judge.fingerprint(split).items():
            if began[split].get(task) != digest:
                raise InputError(f"task {task}: its {split} data has changed since {folder} began; start a new run")


def _evolve(setup: Setup, candidates: Candidates, archive: Archive, folder: Path, observer: Observer) -> dict[str, Any]:
    began = time.perf_counter()
    config, judge, problem = setup.config, setup.judge, setup.problem
    average, sources = score_baselines(problem, judge, candidates, observer.stage)
    on_first(lambda: record_heldout(folder, judge, sources, average))
    baseline = {name: scored.fitness for name, scored in sources.items()}

    earlier = sum(r["seconds"] for r in archive.records)  # spent before this process
    generations = config.search.evaluations // setup.strategy.population_size
    search(setup, candidates, archive, folder / "checkpoints", generations, observer)

    observer.stage("choosing the best")
    best = choose(setup, candidates, archive)
    genome = np.asarray(best["genome"])
    observer.stage("exporting and scoring the best")
    export = folder / "best"

    def finish() -> dict[str, Any]:
        """What is left is work for one process."""
        alone = judge if jax.process_count() == 1 else judge.on(make_mesh(1, devices=jax.local_devices()))
        fitness: dict[str, float] = {}

        def score(path: Path) -> dict[str, dict[str, float]]:
            """What is reported is what the exported files score."""
            exported = Checkpoint(path)
            scored = score_model(alone, exported.load(alone.mesh), exported.config)
            record_heldout(folder, judge, sources, average, scored)
            fitness.update(scored.fitness)
            others = {} if average is None else {"plain average": average.fitness}
            return {**baseline, **others, "**this model**": fitness}

        if export.exists():  # the run was killed right after exporting
            score(export)
        else:
            problem.export(genome, export, title=f"{config.name}: {problem.title}", score=score)
        result = {
            "average": None if average is None else average.fitness,
            "sources": baseline,
            "best": {**fitness, "genome": problem.values(genome), "evaluation": archive.records.index(best)},
            "evaluations": len(archive.records),
            "seconds": round(earlier + time.perf_counter() - began, 2),
            "export": export.name,
        }
        write_atomically(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        report(folder, observer)
        return result

    result: dict[str, Any] = on_first(finish)
    observer.finished(result, folder)
    return result


def report(folder: Path, observer: Observer) -> None:
    """Write the page of a run, or of several stages; a search of days does not fail for a picture."""
    observer.stage("writing the report")
    try:
        from jevomerge.report import write_report  # imported late: matplotlib takes a second

        write_report(folder)
    except Exception as error:
        observer.note(f"no report: {error}; `jevomerge report {folder} --debug` tries again")


def search(
    setup: Setup, candidates: Candidates, archive: Archive, checkpoints: Path, generations: int, observer: Observer
) -> None:
    """Ask, evaluate, tell; every evaluation is in the archive before the next one starts.

    All randomness comes from (seed, generation), evaluations found in the archive are not made again, and the
    strategy's state is restored exactly, so a run that was killed goes on as if nothing had happened.
    """
    config, strategy = setup.config, setup.strategy
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
    finished = step, {k: np.asarray(v, start[k].dtype).reshape(start[k].shape) for k, v in values.items()}
    with Watchdog(config.search.time_limit) as watchdog:
        try:
            for generation in range(finished[0], generations):
                keys = jax.random.split(jax.random.fold_in(key, generation + 1), 3)
                population, state = strategy.ask(keys[0], finished[1])
                if generation == 0 and np.ndim(mean := setup.problem.mean):  # a start that is a model is scored too
                    population = np.concatenate([np.reshape(mean, (1, -1)), population[1:]])
                done = evaluate(
                    setup, candidates, archive, generation, population, keys[1], generations, observer, watchdog
                )
                fitness = np.array([math.nan if r["fitness"] is None else r["fitness"] for r in done])
                tie_break = np.array([-math.inf if r["tie_break"] is None else r["tie_break"] for r in done])
                finished = generation + 1, strategy.tell(keys[2], state, population, fitness, tie_break)
                if first() and finished[0] % config.search.checkpoint_every == 0:
                    saved.save(*finished)
        finally:  # also when it is interrupted, as before a preemption
            if first():
                saved.save(*finished)


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
) -> list[dict[str, Any]]:
    """The archive's records of one generation, making those that are missing.

    Raises:
        FitnessError: if a candidate cannot be scored.
    """
    config, judge = setup.config, setup.judge
    size = config.search.examples_per_generation
    subset = None if size is None else judge.sample("search", size, key)
    done = {m: archive.find(generation, m, genome.tolist()) for m, genome in enumerate(population)}
    group, count = judge.group, len(population)
    same = {} if subset is not None else archive.before(generation, setup.problem.distinct, population)
    if copies := [copy_record(same[m], generation, m, population[m]) for m in same if done[m] is None]:
        together(lambda: archive.append(copies))
        done |= {r["member"]: r for r in copies}
    # A group of which a member is missing is scored whole, for its rounding may depend on who is in it.
    rest = [m for m in range(count) if m not in same]
    groups = [rest[start : start + group] for start in range(0, len(rest), group)]
    pending = [members for members in groups if any(done[m] is None for m in members)]
    total, best = generations * count, best_fitness(archive.records)
    before = time.perf_counter()
    first_member = 0

    def cut() -> float:
        """What a member must reach: by the groups before its own alone, so that a resumed run stops the same ones."""
        return threshold(setup, [done[m] for m in range(first_member)])

    outputs = judge.members(candidates, population[[m for members in pending for m in members]], subset, cut)
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
            make_record(generation, m, population[m], judge, s, (now - before) / len(members), subset)
            for m, s in zip(members, scores, strict=True)
            if done[m] is None
        ]
        before = now
        together(lambda records=records: archive.append(records))  # type: ignore[misc]
        done |= {r["member"]: r for r in records}
        best = max(best, best_fitness(records))
        made = [r["fitness"] for r in done.values() if r is not None and r["fitness"] is not None]
        evaluated = generation * count + sum(r is not None for r in done.values())
        observer.evaluated(evaluated, total, best, float(np.mean(made)) if made else math.nan)
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
    judge: Judge,
    scores: Scores,
    seconds: float,
    subset: Mapping[str, np.ndarray] | None,
) -> dict[str, Any]:
    """A line of evaluations.jsonl; a fitness or a score that is not a number, or was not found out, is null."""
    fitness, tie_break = (x if math.isfinite(x) else None for x in judge.fitness(scores))
    return {
        "generation": generation,
        "member": member,
        "genome": genome.tolist(),
        "fitness": fitness,
        "tie_break": tie_break,
        "seconds": round(seconds, 4),
        "scores": {
            name: [round(float(x), 6) if math.isfinite(x) else None for x in values]
            for name, values in scores.primary.items()
        },
        **({} if scores.stopped is None else {"stopped": scores.stopped.examples}),  # fitness is then a bound
        **({} if subset is None else {"examples": {name: chosen.tolist() for name, chosen in subset.items()}}),
    }


def copy_record(record: dict[str, Any], generation: int, member: int, genome: np.ndarray) -> dict[str, Any]:
    """The line of a candidate that has been scored before, perhaps by other genes that do not matter."""
    where = {"generation": generation, "member": member, "genome": genome.tolist()}
    return {**record, **where, "seconds": 0.0, "copy_of": [record["generation"], record["member"]]}


def choose(setup: Setup, candidates: Candidates, archive: Archive) -> dict[str, Any]:
    """The best record: by fitness, then by the second criterion, then the earliest.

    With minibatches a high fitness may be luck, so the best few are scored again on the whole search split.
    """
    ranked = sorted(
        (r for r in archive.records if r["fitness"] is not None),
        key=lambda r: (-r["fitness"], math.inf if r["tie_break"] is None else -r["tie_break"]),
    )
    if not ranked:
        raise RuntimeError("no candidate has a fitness: all were NaN; look at evaluations.jsonl")
    if setup.config.search.examples_per_generation is None:
        return ranked[0]
    finalists = ranked[: setup.config.search.finalists]
    genomes = np.array([r["genome"] for r in finalists])
    scored = [s for group in setup.judge.members(candidates, genomes) for s in group]
    fitness = [tuple(x if math.isfinite(x) else -math.inf for x in setup.judge.fitness(s)) for s in scored]
    return finalists[max(range(len(finalists)), key=lambda i: fitness[i])]
