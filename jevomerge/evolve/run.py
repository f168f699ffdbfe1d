"""One evolution from configuration to exported model."""

from __future__ import annotations

import json
import platform
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from jevomerge.checkpoint import Checkpoint
from jevomerge.checkpoint.export import export_folder, refuse_existing
from jevomerge.config import RunConfig
from jevomerge.errors import InputError
from jevomerge.evolve.anchored import anchored, laid_out
from jevomerge.evolve.archive import Archive, locked, write_atomically
from jevomerge.evolve.observer import Observer
from jevomerge.evolve.pareto import Nsga2, front_points
from jevomerge.evolve.refine import Refiner
from jevomerge.evolve.scoring import Scored, record_heldout, score_baselines, score_model
from jevomerge.evolve.search import choose, search
from jevomerge.evolve.setup import Setup
from jevomerge.fitness.candidates import Candidates
from jevomerge.fitness.judge import SPLITS
from jevomerge.fitness.outcome import Tokens, total
from jevomerge.hosts import first, on_first, together
from jevomerge.mesh import make_mesh
from jevomerge.trackers import check_trackers, tracked

PACKAGES = ("jevomerge", "jax", "jaxlib", "flax", "evosax", "orbax-checkpoint", "transformers", "numpy", "datasets")


def evolve(config: RunConfig, folder: Path, observer: Observer, *, resume: bool = False) -> dict[str, Any]:
    """Run (or continue) an evolution in `folder` and return what `result.json` holds.

    Raises:
        InputError: for anything wrong with the configuration, its models or its data, before weights are read;
            for broken weights, before anything is written.
    """
    on_first(lambda: check_folder(folder, resume))
    on_first(lambda: check_trackers(config.trackers))
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
    likelihood = laid_out(judge, config.tokens_per_batch, likelihood=True) if config.search.anchors else None
    average, sources = score_baselines(problem, judge, candidates, observer.stage, likelihood)
    on_first(lambda: record_heldout(folder, judge, sources, average, {}))
    setup.anchors = anchored(setup, folder, [*sources.values(), *([] if average is None else [average])], observer)
    baseline = {name: scored.fitness for name, scored in sources.items()}

    earlier = sum(r["seconds"] for r in archive.records)  # spent before this process
    generations = config.search.evaluations // setup.strategy.population_size
    search(setup, candidates, archive, folder / "checkpoints", generations, observer)

    observer.stage("choosing the best")
    best, finalists = choose(setup, candidates, archive)
    observer.stage("exporting and scoring the best")

    def finish() -> dict[str, Any]:
        """What is left is work for one process."""
        alone = judge if jax.process_count() == 1 else judge.on(make_mesh(1, devices=jax.local_devices()))
        others = {} if average is None else {"plain average": average.fitness}

        def exported(record: dict[str, Any], path: Path) -> Scored:
            """Export a candidate; what is reported is what the exported files score."""
            found: list[Scored] = []

            def score(written: Path) -> dict[str, dict[str, float]]:
                model = Checkpoint(written)
                found.append(score_model(alone, model.load(alone.mesh), model.config))
                return {**baseline, **others, "**this model**": found[0].fitness}

            if path.exists():  # the run was killed right after exporting
                score(path)
            else:
                genome = np.asarray(record["genome"])
                problem.export(genome, path, title=f"{config.name}: {problem.title}", score=score)
            return found[0]

        records = archive.records
        points, number, front = {"best": exported(best, folder / "best")}, records.index(best), None
        if isinstance(setup.strategy, Nsga2):
            front = front_points(records, [task.name for task in config.tasks], number, config.search.finalists)
            for point in front:
                record, name = records[point["evaluation"]], point.get("export")
                point["genome"] = problem.values(np.asarray(record["genome"]))
                if name is not None and name not in points:
                    observer.stage(f"exporting and scoring {name}")
                    points[name] = exported(record, folder / name)
                if name is not None:
                    point["heldout"] = points[name].tasks["heldout"]
        record_heldout(folder, judge, sources, average, points)
        scored = points["best"]
        spent = {  # beside what each evaluation took
            "gradients": Refiner(setup, candidates).tokens(records) if config.refine else Tokens(0, 0),
            "finalists": finalists,
            "sources": total(s.tokens for s in (*sources.values(), *([] if average is None else [average]))),
            "result": total(s.tokens for s in points.values()),
        }
        result = {
            "average": None if average is None else average.fitness,
            "sources": baseline,
            "best": {
                **scored.fitness,
                **({"also": scored.also} if scored.also else {}),
                "genome": problem.values(np.asarray(best["genome"])),
                "evaluation": number,
            },
            "evaluations": len(records),
            "tokens": {name: tokens._asdict() for name, tokens in spent.items() if any(tokens)},
            "seconds": round(earlier + time.perf_counter() - began, 2),
            "export": "best",
            **({} if front is None else {"front": front}),
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
