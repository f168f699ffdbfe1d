"""One evolution from configuration to exported model."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import yaml
from jax.sharding import Mesh

from jevomerge.checkpoint.export import export_folder, refuse_existing, scratch_folder
from jevomerge.checkpoint.files import write_atomically
from jevomerge.checkpoint.pipeline import open_model
from jevomerge.checkpoint.safetensors_file import DTYPES, NUMPY
from jevomerge.checkpoint.scoring import Scoring
from jevomerge.checkpoint.source import Source, Stored
from jevomerge.config import RunConfig
from jevomerge.devices.hosts import first, on_first, together
from jevomerge.devices.mesh import make_mesh
from jevomerge.devices.schema import Memory
from jevomerge.errors import InputError
from jevomerge.fitness.human.votes import VOTES_FILE, Votes, read_votes
from jevomerge.fitness.judge import Judge
from jevomerge.fitness.outcome import Tokens, total
from jevomerge.models.layers import Params
from jevomerge.observers.observer import Observer
from jevomerge.observers.trackers import check_trackers, tracked
from jevomerge.planning.chips import chip_of
from jevomerge.planning.measure import best_plan, memory_limit
from jevomerge.planning.sharing import settled_sharing
from jevomerge.problems.problem import Candidates, Score
from jevomerge.recipe.opening import Opener
from jevomerge.recipe.to_adapter import WRITTEN
from jevomerge.recipe.to_folder import merge_to_folder
from jevomerge.reports.thumbnails import with_thumbnails
from jevomerge.reports.verdict import scoring_of, verdict
from jevomerge.run.begun import check_unchanged, machine, read_environment, record_run
from jevomerge.schema import load_one
from jevomerge.search.anchored import Anchored, read_anchors, settled
from jevomerge.search.archive import Archive, Record, locked, read_archive
from jevomerge.search.baselines import (
    Baselines,
    Scored,
    heldout_of,
    read_baselines,
    record_heldout,
    score_baselines,
    score_model,
)
from jevomerge.search.gallery import open_gallery
from jevomerge.search.loop import Chosen, choose, search
from jevomerge.search.people import People, asking
from jevomerge.search.records import read_heldout, read_outcome
from jevomerge.search.setup import Setup, budget_notes, refiner_of, set_up
from jevomerge.strategies.pareto import front_points

ROOM = 1 << 20  # bytes of a disk for what is small


def run_search(
    config: RunConfig, folder: Path, observer: Observer, *, resume: bool = False, opener: Opener = open_model
) -> dict[str, Any]:
    """Run (or continue) an evolution in `folder` and return what `result.json` holds; `opener` as in `set_up`.

    Raises:
        InputError: for anything wrong with the configuration, its models or its data, before weights are read;
            for broken weights, before anything is written.
    """
    on_first(lambda: check_folder(folder, resume, config.search.evaluations))
    if resume:
        on_first(lambda: check_records(folder))
    on_first(lambda: check_trackers(config.trackers))
    observer.stage("reading configuration, models' headers and data")
    setup = together(lambda: set_up(config, opener=opener))
    on_first(lambda: check_room(setup, folder))
    if resume:
        on_first(lambda: check_unchanged(setup, folder))
        on_first(lambda: check_evaluations(setup, folder))
    for note in setup.problem.notes:
        observer.note(note)
    began = on_first(lambda: read_environment(folder).get("memory", "device") if resume else None)
    setup = together(lambda: choose_mesh(setup, observer, began))
    with ExitStack() as stack:
        ask = stack.enter_context(asking(setup.judge, observer))
        observer.stage("loading models")
        known = {*setup.problem.notes}
        candidates = together(setup.load)  # broken ones (NaN, truncated) are refused here
        for note in (n for n in setup.problem.notes if n not in known):
            observer.note(note)
        if not resume:
            on_first(lambda: begin(setup, folder))
        archive = together(lambda: open_archive(folder, stack))
        archive.learn(*on_first(lambda: (archive.records, archive.damaged)))
        if resume:
            on_first(lambda: reopen(setup, archive, folder))
        if first():
            observer = stack.enter_context(tracked(observer, config, folder))
        if ask is not None:
            votes = stack.enter_context(Votes(folder / VOTES_FILE))
            setup = replace(setup, people=People(setup.judge, votes, ask))
        return _evolve(setup, candidates, archive, folder, observer)


def check_folder(folder: Path, resume: bool, evaluations: float = 0) -> None:
    """A run begins where nothing is, and goes on where one was begun and has not had all `evaluations`."""
    result = folder / "result.json"
    if not resume:
        refuse_existing(folder)
    elif not (folder / "config.yaml").exists():
        raise InputError(f"{folder} is not a run that can be resumed: it has no config.yaml")
    elif not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written; change its permissions, or copy it to where it can")
    elif result.exists():
        if not evaluations or evaluations <= (read_outcome(folder) or {}).get("evaluations", math.inf):
            raise finished(folder)
        above = folder.absolute().parent / "config.yaml"
        if above.exists() and "stages" in load_one(above)[0]:
            raise InputError(f"{folder} is finished, and a stage of {above.parent}, which has used its outcome")


def check_records(folder: Path) -> None:
    """What a run has written must be what runs write: found before its models and data are looked at."""
    read_environment(folder)
    if (log := folder / "evaluations.jsonl").exists():
        read_archive(log)
    read_votes(folder / VOTES_FILE)


def finished(folder: Path) -> InputError:
    """What is said of a run that is asked for no more than it has done."""
    return InputError(
        f"{folder} is finished, its outcome is in result.json and best/; more `search.evaluations`, for the command "
        "line --evaluations N, go on from there"
    )


def check_room(setup: Setup, folder: Path) -> None:
    """Raise InputError unless what comes out can be written, and the disk has room (for a short path, if it is one)."""
    if setup.problem.sources is not None and setup.problem.sources.assembly is not None:
        setup.problem.sources.assembly.check(folder / "best")
    model, dtype = setup.problem.exported(1)
    size = sum(math.prod(spec.leaf_shape) for spec in model.specs) * NUMPY[DTYPES[dtype]].itemsize
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size + ROOM > free and not (folder / "best").exists():
        raise InputError(
            f"{folder}: the model that comes out needs {size / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
            "free some space"
        )


def check_evaluations(setup: Setup, folder: Path) -> None:
    """A search can be made longer, if it would not have been another one from its start, but not shorter."""
    began = read_environment(folder)["evaluations"]
    wanted = setup.config.search.evaluations
    if setup.config.refine is not None and wanted != began:
        raise InputError(
            f"search.evaluations: {folder} began with {began}, and `refine` made its last candidates, or will, from "
            "the best of these; a longer search would have made others. Start a new run"
        )
    size, log = setup.strategy.population_size, folder / "evaluations.jsonl"
    done = 1 + max((r["generation"] for r in read_archive(log)), default=-1) if log.exists() else 0
    if setup.config.refine is None and wanted // size < done:
        raise InputError(f"search.evaluations: {wanted} are less than the {done} generations of {size} in {folder}")
    if wanted // size <= done and (folder / "result.json").exists():
        raise finished(folder)


def reopen(setup: Setup, archive: Archive, folder: Path) -> None:
    """Take back the outcome of a search that goes on; whenever that is killed, what is left is a run to be resumed."""
    evaluations, size = setup.config.search.evaluations, setup.strategy.population_size
    if not archive.holds(evaluations // size, size):
        (folder / "result.json").unlink(missing_ok=True)
        for outcome in (folder / "best", folder / "front"):
            if outcome.exists():
                with scratch_folder(outcome) as scratch:
                    outcome.rename(scratch / outcome.name)
    config, _ = load_one(folder / "config.yaml")
    if config["search"]["evaluations"] != evaluations:
        config["search"]["evaluations"] = evaluations
        write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


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


def choose_mesh(setup: Setup, observer: Observer, began: Memory | None = None) -> Setup:
    """Where devices say how much memory they have: as the plan for them says, what the config leaves open.

    `began`: where the models of a run that goes on were; scores in eight bits are others.
    """
    config, devices = setup.config, jax.devices()
    setup = settled_sharing(setup, chip_of(devices[0]))
    given = config.mesh.model or config.mesh.pop
    if memory_limit(devices[0]) is not None and not (given and config.members_per_device and config.memory != "auto"):
        observer.stage("choosing the mesh by what fits")
        plan = best_plan(setup, devices)
        if not plan.fits:
            observer.note("this may not fit in memory; `jevomerge plan` says what to change")
        setup = replace(setup.at(plan.memory), judge=setup.judge.on(plan.mesh, plan.members_per_device))
    if began is not None and began != setup.memory and "int8" in (began, setup.memory):
        setup = setup.at("int8" if began == "int8" else "host")
    if setup.memory != "device" or config.memory != "auto":
        observer.note(f"memory: {setup.memory}: {WAITING[setup.memory]}")
    return setup


WAITING = {  # where the models of a recipe do, for their merges, or of a path
    "device": "the models are in the memory of the devices",
    "mesh": "each device has a part of the models, which are gathered for each candidate's merge",
    "host": "the models are in the memory of the host, from which each merge, or hop of a path, fetches them",
    "int8": "the models are in the memory of the host, their task vectors in eight bits",
}


def _evolve(setup: Setup, candidates: Candidates, archive: Archive, folder: Path, observer: Observer) -> dict[str, Any]:
    """From models in memory to a result: score the sources, choose anchors, search, choose the best, export it."""
    began = time.perf_counter() - sum(r["seconds"] for r in archive.records)  # those were spent by earlier processes
    baselines = score_sources(setup, candidates, folder, observer)
    setup = choose_anchors(setup, baselines, folder, observer)
    generations = setup.config.search.evaluations // setup.strategy.population_size
    best = max((source.fitness["search"] for source in baselines.sources.values()), default=math.nan)
    observer.searching(setup.strategy.population_size, best)
    search(setup, candidates, archive, folder / "checkpoints", generations, observer)
    observer.stage("choosing the best")
    if setup.people is not None:
        archive, baselines = archive.with_records(setup.people.latest), setup.people.rated(baselines)
    exported = None if setup.exact else functools.partial(score_exported, setup, folder)
    found = Searched(archive.records, choose(setup, candidates, archive, exported), baselines)
    observer.stage("exporting and scoring the best")
    result: dict[str, Any] = on_first(lambda: export_best(setup, candidates, found, folder, observer, began))
    observer.finished(result, folder)
    return result


def score_sources(setup: Setup, candidates: Candidates, folder: Path, observer: Observer) -> Baselines:
    """What candidates are compared with: as it is on record, or scored, and on record from now on.

    What people compare is not on record, and written again.
    """
    judge, likelihood = setup.judge, setup.config.search.anchors is not None

    def known() -> dict[str, Any] | None:
        """heldout.json, if it is there and all that is needed."""
        if setup.people is not None:
            return None
        heldout = read_heldout(folder)
        return heldout if not likelihood or read_anchors(folder) is not None else None

    if (heldout := on_first(known)) is not None:
        baselines = read_baselines(heldout)
    else:
        baselines = score_baselines(setup.problem, judge, candidates, observer.stage, likelihood)
        on_first(lambda: open_gallery(folder, judge, baselines))
    if setup.people is not None:
        baselines = setup.people.sources(baselines)
    on_first(lambda: record_heldout(folder, heldout_of(judge, baselines, {})))
    return baselines


def choose_anchors(setup: Setup, baselines: Baselines, folder: Path, observer: Observer) -> Setup:
    """The setup with the few examples that candidates are scored on, if the config asks for them."""
    config, anchors = setup.config, setup.config.search.anchors
    if anchors is None:
        return setup
    tasks = settled(anchors, setup.judge, baselines.all, config.seed, folder)
    return replace(setup, anchors=Anchored(tasks, anchors.estimator, setup.judge))


def score_exported(setup: Setup, folder: Path, genomes: np.ndarray) -> list[list[float]]:
    """Candidates on the whole search split as they would be exported, as `choose` takes it; the work of one process."""
    judge, problem = on_one(setup.judge), setup.problem

    def scored(genome: np.ndarray) -> list[float]:
        with scratch_folder(folder / "best") as work:
            written = work.resolve() / "model"
            problem.export(genome, written)
            model = problem.reopen(written)
            params = loaded(model, judge.mesh, setup.memory_of_whole)
            scores = judge.model(params, "search", model.model, lambda path: path.symlink_to(written))
        return [*judge.fitness(scores), *scores.tokens]

    found: list[list[float]] = on_first(lambda: [scored(genome) for genome in genomes])
    return found


def loaded(model: Source, mesh: Mesh, memory: Memory) -> Params:
    """All of it, its blocks there: of those that `memory` is for, which are in files."""
    return model.load(mesh) if memory == "device" else cast(Stored, model).load(mesh, memory=memory)


def on_one(judge: Judge) -> Judge:
    """The judge on the devices of one process."""
    return judge if jax.process_count() == 1 else judge.on(make_mesh(1, devices=jax.local_devices()))


class Searched(NamedTuple):
    """What a search has come to, and what that is compared with."""

    records: list[Record]
    best: Chosen  # one of them
    baselines: Baselines


def export_best(
    setup: Setup, candidates: Candidates, found: Searched, folder: Path, observer: Observer, began: float
) -> dict[str, Any]:
    """Write the best as a folder, with several goals more of the front, and what they score; the work of one process.

    If a source or the average of all scores higher on the search split than every candidate, it is the best.

    Returns:
        what `result.json` holds.
    """
    problem, exports, number = setup.problem, Exports(setup, found, folder), found.records.index(found.best.record)
    source = found.baselines.better_than(found.best.fitness)
    if source is None:
        exports.write("best", found.best.record)
        source = found.baselines.better_than(exports.scored["best"].fitness["search"])  # it may have been rounded
    if source is not None:
        exports.write_baseline(source)
    best, baselines, average = exports.scored["best"], exports.baselines, exports.baselines.average
    front = export_front(setup, exports, found, source, observer) if setup.strategy.several_goals else None
    heldout = heldout_of(setup.judge, baselines, exports.scored, source)
    record_heldout(folder, with_thumbnails(heldout, setup.config.tasks, setup.judge.material["heldout"]))
    refiner = refiner_of(setup, candidates)
    spent = {  # beside what each evaluation took
        "gradients": Tokens(0, 0) if refiner is None else refiner.tokens(found.records),
        "finalists": found.best.spent,
        "sources": total(s.tokens for s in baselines.all),
        "result": total(s.tokens for s in exports.scored.values()),
    }
    budget = budget_notes(setup.config, len(problem.names), setup.strategy.population_size)
    inexact = [note for note in problem.notes if note.startswith(("memory: int8", "extract:", WRITTEN))]
    result = {
        "average": None if average is None else average.fitness,
        "sources": {name: scored.fitness for name, scored in baselines.sources.items()},
        "best": {
            **best.fitness,
            **({"also": best.also} if best.also else {}),
            "genome": problem.values(np.asarray(found.best.record["genome"])),
            "evaluation": number,
            **({} if source is None else {"source": source, "candidate": found.best.fitness}),
        },
        "notes": [*exports.verdict(source), *budget, *broken_notes(best.heldout.broken), *inexact],
        "evaluations": len(found.records),
        "tokens": {name: tokens._asdict() for name, tokens in spent.items() if any(tokens)},
        "seconds": round(time.perf_counter() - began, 2),
        "ran_on": machine(),
        "export": "best",
        **({} if front is None else {"front": front}),
    }
    write_atomically(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def broken_notes(broken: Mapping[str, int]) -> list[str]:
    """What the result could not draw."""
    return [
        f"{task}: {count} of the held-out pictures of the result are not finite or all of one colour, which counts as "
        "the lowest score; where weights or activations are float16, a VAE may need `compute_dtype: float32`"
        for task, count in broken.items()
    ]


class Exports:
    """Candidates of a run as folders in that of the run, and what these score."""

    def __init__(self, setup: Setup, found: Searched, folder: Path):
        """Nothing is exported yet; the model cards will compare with the baselines."""
        judge = setup.judge
        self.found, self.tasks, self.people = found, setup.config.tasks, setup.people
        self.judge, self.memory = on_one(judge), setup.memory_of_whole
        self.problem, self.name, self.folder = setup.problem, setup.config.name, folder
        self.baselines = found.baselines
        self.examples = {name: len(material.documents) for name, material in judge.material["search"].items()}
        self.scored = dict[str, Scored]()  # by folder

    def write(self, name: str, record: Record) -> None:
        """Export a candidate; what is reported is what the exported files score."""
        path, title = self._room(name), f"{self.name}: {self.problem.title}"
        self.problem.export(np.asarray(record["genome"]), path, title=title, score=self._scorer(name, record["scores"]))

    def write_baseline(self, source: str) -> None:
        """Export a source, or the average of all, as the best."""
        path, title = self._room("best"), f"{self.name}: {source}, as no candidate was better"
        merge, scores = self.problem.merge_of(source), self.baselines.named[source].search.fitness
        merge_to_folder(merge, merge.coefficients, path, title=title, score=self._scorer("best", scores, source))
        self.problem.notes.update([merge.notes])

    def verdict(self, source: str | None) -> list[str]:
        """What the best has gained, in sentences; `source`: the baseline that it is, if so."""
        heldout = heldout_of(self.judge, self.baselines, {"best": self.scored["best"]}, source)
        private = [note for task in self.tasks if task.private for note in task.notes]
        return [*verdict(heldout, self.tasks, self.found.best.fitness), *private]

    def _room(self, name: str) -> Path:
        """Where to write, without what a run that was killed, or a candidate that was rounded, has left there."""
        path = self.folder / name
        if path.exists():
            shutil.rmtree(path)
        return path

    def _scorer(self, name: str, search: Mapping[str, Any], source: str | None = None) -> Score:
        """What scores a written folder, and says what its card does; `search`: its scores as a candidate, by task."""

        def score(written: Path) -> Scoring:
            model = self.problem.reopen(written)
            params, here = loaded(model, self.judge.mesh, self.memory), written.resolve()
            scored = score_model(self.judge, params, model.model, write=lambda path: path.symlink_to(here))
            if self.people is not None:
                scored, baselines = self.people.exported(name, scored, search, self.baselines)
                self.baselines = baselines if name == "best" else self.baselines
            self.scored[name] = scored
            heldout = heldout_of(self.judge, self.baselines, {"best": scored}, source)
            return scoring_of(heldout, self.tasks, self.examples, self.verdict(source) if name == "best" else ())

        return score


def export_front(
    setup: Setup, exports: Exports, found: Searched, source: str | None, observer: Observer
) -> list[dict[str, Any]]:
    """The points of the front as in result.json, after writing some of them; the best is there, if no `source` is."""
    config, records = setup.config, found.records
    best = records.index(found.best.record)
    points = front_points(records, [task.name for task in config.tasks], best, config.search.finalists)
    for point in points:
        if source is not None and point["evaluation"] == best:
            point["export"] = f"front/evaluation_{best}"
        record, name = records[point["evaluation"]], point.get("export")
        point["genome"] = setup.problem.values(np.asarray(record["genome"]))
        if name is not None and name not in exports.scored:
            observer.stage(f"exporting and scoring {name}")
            exports.write(name, record)
        if name is not None:
            point["heldout"] = exports.scored[name].tasks["heldout"]
    return points
