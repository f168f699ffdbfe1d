"""One evolution from configuration to exported model."""

from __future__ import annotations

import json
import platform
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml

from jevomerge.checkpoint.export import export_folder, refuse_existing
from jevomerge.checkpoint.files import write_atomically
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.config import RunConfig
from jevomerge.devices.hosts import first, on_first, together
from jevomerge.devices.mesh import make_mesh
from jevomerge.errors import InputError
from jevomerge.fitness.judge import SPLITS
from jevomerge.fitness.outcome import Tokens, total
from jevomerge.observers.observer import Observer
from jevomerge.observers.trackers import check_trackers, tracked
from jevomerge.planning.measure import best_plan, memory_limit
from jevomerge.problems.problem import Candidates
from jevomerge.recipe.opening import Opener
from jevomerge.search.anchored import Anchored, settled
from jevomerge.search.archive import Archive, Record, locked
from jevomerge.search.baselines import Baselines, Scored, record_heldout, score_baselines, score_model
from jevomerge.search.loop import choose, search
from jevomerge.search.records import read_environment
from jevomerge.search.setup import Setup, refiner_of, set_up
from jevomerge.strategies.pareto import front_points

PACKAGES = ("jevomerge", "jax", "jaxlib", "flax", "evosax", "orbax-checkpoint", "transformers", "numpy", "datasets")


def run_search(
    config: RunConfig, folder: Path, observer: Observer, *, resume: bool = False, opener: Opener = Checkpoint
) -> dict[str, Any]:
    """Run (or continue) an evolution in `folder` and return what `result.json` holds; `opener` as in `set_up`.

    Raises:
        InputError: for anything wrong with the configuration, its models or its data, before weights are read;
            for broken weights, before anything is written.
    """
    on_first(lambda: check_folder(folder, resume))
    on_first(lambda: check_trackers(config.trackers))
    observer.stage("reading configuration, models' headers and data")
    setup = together(lambda: set_up(config, opener=opener))
    if resume:
        on_first(lambda: check_unchanged(setup, folder))
    for note in setup.problem.notes:
        observer.note(note)
    setup = together(lambda: choose_mesh(setup, observer))
    observer.stage("loading models")
    candidates = together(lambda: setup.problem.load(setup.mesh))  # broken ones (NaN, truncated files) are refused here
    if not resume:
        on_first(lambda: begin(setup, folder))
    with ExitStack() as stack:
        archive = together(lambda: open_archive(folder, stack))
        archive.learn(*on_first(lambda: (archive.records, archive.damaged)))
        if first():
            observer = stack.enter_context(tracked(observer, config, folder))
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
        "sources": {c.reference: c.fingerprint() for c in setup.problem.checkpoints},
        "data": {split: setup.judge.fingerprint(split) for split in SPLITS},
    }
    write_atomically(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    write_atomically(folder / "config.yaml", yaml.safe_dump(setup.config.model_dump(mode="json"), sort_keys=False))


def check_unchanged(setup: Setup, folder: Path) -> None:
    """A resumed run must see the models and the data it began with."""
    environment = read_environment(folder)
    for source in setup.problem.checkpoints:
        if environment.get("sources", {}).get(source.reference) != source.fingerprint():
            raise InputError(f"{source.reference}: its weights have changed since {folder} began; start a new run")
    for split in SPLITS:
        began = environment.get("data", {}).get(split, {})
        for task, digest in setup.judge.fingerprint(split).items():
            if began.get(task) != digest:
                raise InputError(f"task {task}: its {split} data has changed since {folder} began; start a new run")


def choose_mesh(setup: Setup, observer: Observer) -> Setup:
    """Where devices say how much memory they have: as the plan for them says, what the config leaves open."""
    config, devices = setup.config, jax.devices()
    given = config.mesh.model or config.mesh.pop
    if memory_limit(devices[0]) is None or (given and config.members_per_device):
        return setup
    observer.stage("choosing the mesh by what fits")
    plan = best_plan(setup, devices)
    if not plan.fits:
        observer.note("this may not fit in memory; `jevomerge plan` says what to change")
    return replace(setup, judge=setup.judge.on(plan.mesh, plan.members_per_device))


def _evolve(setup: Setup, candidates: Candidates, archive: Archive, folder: Path, observer: Observer) -> dict[str, Any]:
    """From models in memory to a result: score the sources, choose anchors, search, choose the best, export it."""
    began = time.perf_counter() - sum(r["seconds"] for r in archive.records)  # those were spent by earlier processes
    baselines = score_sources(setup, candidates, folder, observer)
    setup = choose_anchors(setup, baselines, folder, observer)
    generations = setup.config.search.evaluations // setup.strategy.population_size
    search(setup, candidates, archive, folder / "checkpoints", generations, observer)
    observer.stage("choosing the best")
    best, finalists = choose(setup, candidates, archive)
    observer.stage("exporting and scoring the best")
    found = Searched(archive.records, best, finalists, baselines)
    result: dict[str, Any] = on_first(lambda: export_best(setup, candidates, found, folder, observer, began))
    observer.finished(result, folder)
    return result


def score_sources(setup: Setup, candidates: Candidates, folder: Path, observer: Observer) -> Baselines:
    """What candidates are compared with; its held-out part is on record from now on."""
    judge, config = setup.judge, setup.config
    likelihood = config.search.anchors is not None
    baselines = score_baselines(setup.problem, judge, candidates, observer.stage, likelihood)
    on_first(lambda: record_heldout(folder, judge, baselines, {}))
    return baselines


def choose_anchors(setup: Setup, baselines: Baselines, folder: Path, observer: Observer) -> Setup:
    """The setup with the few examples that candidates are scored on, if the config asks for them."""
    config, anchors = setup.config, setup.config.search.anchors
    if anchors is None:
        return setup
    tasks = settled(anchors, setup.judge, baselines.all, config.seed, folder, observer.note)
    return replace(setup, anchors=Anchored(tasks, anchors.estimator, setup.judge))


class Searched(NamedTuple):
    """What a search has come to, and what that is compared with."""

    records: list[Record]
    best: Record  # one of them
    finalists: Tokens  # that it took to choose it
    baselines: Baselines


def export_best(
    setup: Setup, candidates: Candidates, found: Searched, folder: Path, observer: Observer, began: float
) -> dict[str, Any]:
    """Write the best as a folder, with several goals more of the front, and what they score; the work of one process.

    Returns:
        what `result.json` holds.
    """
    problem, baselines, average = setup.problem, found.baselines, found.baselines.average
    exports, number = Exports(setup, baselines, folder), found.records.index(found.best)
    best = exports.write("best", found.best)
    front = export_front(setup, exports, found.records, number, observer) if setup.strategy.several_goals else None
    record_heldout(folder, setup.judge, baselines, exports.scored)
    refiner = refiner_of(setup, candidates)
    spent = {  # beside what each evaluation took
        "gradients": Tokens(0, 0) if refiner is None else refiner.tokens(found.records),
        "finalists": found.finalists,
        "sources": total(s.tokens for s in baselines.all),
        "result": total(s.tokens for s in exports.scored.values()),
    }
    result = {
        "average": None if average is None else average.fitness,
        "sources": {name: scored.fitness for name, scored in baselines.sources.items()},
        "best": {
            **best.fitness,
            **({"also": best.also} if best.also else {}),
            "genome": problem.values(np.asarray(found.best["genome"])),
            "evaluation": number,
        },
        "evaluations": len(found.records),
        "tokens": {name: tokens._asdict() for name, tokens in spent.items() if any(tokens)},
        "seconds": round(time.perf_counter() - began, 2),
        "export": "best",
        **({} if front is None else {"front": front}),
    }
    write_atomically(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


class Exports:
    """Candidates of a run as folders in that of the run, and what these score."""

    def __init__(self, setup: Setup, baselines: Baselines, folder: Path):
        """Nothing is exported yet; the model cards will compare with `baselines`."""
        judge, alone = setup.judge, jax.process_count() == 1
        self.judge = judge if alone else judge.on(make_mesh(1, devices=jax.local_devices()))
        self.problem, self.name, self.folder = setup.problem, setup.config.name, folder
        average = {} if baselines.average is None else {"plain average": baselines.average.fitness}
        self.known = {name: scored.fitness for name, scored in baselines.sources.items()} | average
        self.scored = dict[str, Scored]()  # by folder

    def write(self, name: str, record: Record) -> Scored:
        """Export a candidate; what is reported is what the exported files score."""

        def score(written: Path) -> dict[str, dict[str, float]]:
            model = self.problem.reopen(written)
            params, here = model.load(self.judge.mesh), written.resolve()
            scored = score_model(self.judge, params, model.model, write=lambda path: path.symlink_to(here))
            self.scored[name] = scored
            splits = SPLITS if any(task.apart for task in self.judge.tasks) else SPLITS[:1]  # else nothing is held out
            rows = {**self.known, "**this model**": scored.fitness}
            return {model: {split: row[split] for split in splits} for model, row in rows.items()}

        path, genome = self.folder / name, np.asarray(record["genome"])
        if path.exists():  # the run was killed right after exporting
            score(path)
        else:
            self.problem.export(genome, path, title=f"{self.name}: {self.problem.title}", score=score)
        return self.scored[name]


def export_front(
    setup: Setup, exports: Exports, records: list[Record], best: int, observer: Observer
) -> list[dict[str, Any]]:
    """The points of the front as in result.json, after writing some of them; `best`, by number, is there already."""
    config = setup.config
    points = front_points(records, [task.name for task in config.tasks], best, config.search.finalists)
    for point in points:
        record, name = records[point["evaluation"]], point.get("export")
        point["genome"] = setup.problem.values(np.asarray(record["genome"]))
        if name is not None and name not in exports.scored:
            observer.stage(f"exporting and scoring {name}")
            exports.write(name, record)
        if name is not None:
            point["heldout"] = exports.scored[name].tasks["heldout"]
    return points
