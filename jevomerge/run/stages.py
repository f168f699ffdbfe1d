"""Several searches: in a row, where the winner of each is a model for those that follow; or one for each seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from jevomerge.checkpoint.export import export_folder
from jevomerge.checkpoint.files import write_atomically
from jevomerge.checkpoint.pipeline import open_model
from jevomerge.checkpoint.remote import Mirror, is_remote, mirrored
from jevomerge.config import RunConfig, StagedConfig
from jevomerge.devices.hosts import first, on_first, together
from jevomerge.devices.signals import heeded
from jevomerge.observers.observer import Observer
from jevomerge.observers.trackers import check_trackers
from jevomerge.recipe.opening import Opener
from jevomerge.run.begun import FREE, check_config
from jevomerge.run.search import check_folder, run_search
from jevomerge.search.records import read_outcome
from jevomerge.search.setup import set_up, set_up_stages

# What of a stage that is finished may change: nothing that its outcome depends on.
AFTERWARDS = tuple(key for key in FREE if key not in ("search.evaluations", "search.finalists"))


def evolve_config(
    config: RunConfig | StagedConfig,
    folder: Path,
    observer: Observer,
    *,
    resume: bool = False,
    opener: Opener = open_model,
) -> dict[str, Any]:
    """Run (or continue) a config in `folder`; of several stages, or seeds, each has a run folder in it.

    `opener`: of the models of a config without stages.

    Returns:
        what `result.json` holds: of the only search, or of each stage or seed by its folder's name.

    Raises:
        InputError: as `run_search`, and for what is wrong with any stage before the first one begins.
    """
    with heeded():
        if not is_remote(folder):
            return _evolve(config, folder, observer, resume, opener)
        with mirrored(str(folder), first()) as mirror:
            on_first(lambda: mirror.pull(resume))
            observer.note(f"{folder}: the run works in {mirror.folder}, of which copies are made there all the time")
            found = _evolve(config, mirror.folder, observer, resume, opener, mirror)
    observer.line(f"Run folder: {folder}")
    return found


def _evolve(
    config: RunConfig | StagedConfig,
    folder: Path,
    observer: Observer,
    resume: bool,
    opener: Opener,
    mirror: Mirror | None = None,
) -> dict[str, Any]:
    if config.seeds > 1:
        return evolve_seeds(config, folder, observer, resume, opener, mirror)
    if isinstance(config, RunConfig):
        return run_search(config, folder, observer, resume=resume, opener=opener)
    return run_stages(config, folder, observer, resume, opener, mirror)


def run_stages(
    config: StagedConfig,
    folder: Path,
    observer: Observer,
    resume: bool,
    opener: Opener,
    mirror: Mirror | None = None,
) -> dict[str, dict[str, Any]]:
    """The same of several stages, in the folder of a `mirror` or one below it, if there is one.

    A winner is then read from where it is kept, for other machines have nothing else.
    """
    prepare(config, folder, resume, opener)
    results: dict[str, Any] = {}
    for stage in config.stages:
        own = folder / stage.name
        winners = {name: _winner(folder / name / "best", mirror) for name in results}
        run = config.run_of(stage, winners)
        if (done := on_first(lambda own=own: read_outcome(own))) is not None:  # type: ignore[misc]
            on_first(lambda run=run, own=own: check_config(run, own, AFTERWARDS))  # type: ignore[misc]
            results[stage.name] = done
            continue
        observer.stage(f"stage {stage.name}")
        begun = on_first(lambda own=own: (own / "config.yaml").exists())  # type: ignore[misc]
        results[stage.name] = run_search(run, own, observer, resume=begun)
        if mirror is not None:
            on_first(mirror.push)
    on_first(lambda: finish(results, folder))
    observer.stages_finished(results, folder)
    return results


def _winner(best: Path, mirror: Mirror | None) -> str:
    """What later stages call it."""
    return str(best.resolve()) if mirror is None else f"{mirror.home}/{best.relative_to(mirror.folder)}"


def evolve_seeds(
    config: RunConfig | StagedConfig,
    folder: Path,
    observer: Observer,
    resume: bool,
    opener: Opener,
    mirror: Mirror | None = None,
) -> dict[str, Any]:
    """The same for each seed, in seed_K."""
    prepare(config, folder, resume, opener)
    results: dict[str, Any] = {}
    for k, name in enumerate(config.parts):
        own = folder / name
        if (done := on_first(lambda own=own: read_outcome(own))) is not None:  # type: ignore[misc]
            results[name] = done
            continue
        observer.stage(f"seed {config.seed + k}")
        one = config.model_copy(update={"seed": config.seed + k, "seeds": 1})
        begun = on_first(lambda own=own: (own / "config.yaml").exists())  # type: ignore[misc]
        results[name] = _evolve(one, own, observer, begun, opener, mirror)
    on_first(lambda: finish(results, folder))
    observer.seeds_finished(results, folder)
    return results


def prepare(config: RunConfig | StagedConfig, folder: Path, resume: bool, opener: Opener) -> None:
    """Refuse what cannot be right of any part before the first begins, and make the folder of all."""
    on_first(lambda: check_folder(folder, resume))
    on_first(lambda: check_trackers(config.trackers))
    if not resume:
        together(lambda: rehearse(config, opener))
        on_first(lambda: begin(config, folder))


def begin(config: RunConfig | StagedConfig, folder: Path) -> None:
    """Make the folder of all stages, or seeds."""
    with export_folder(folder) as new:
        write_atomically(new / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def finish(results: dict[str, Any], folder: Path) -> None:
    """Write what came out of all."""
    write_atomically(folder / "result.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def rehearse(config: RunConfig | StagedConfig, opener: Opener) -> None:
    """Set up every stage, or the only one.

    (How many layers a path will have is not known before it is found, so what builds on one is checked later.)
    """
    if isinstance(config, RunConfig):
        set_up(config, opener=opener)
        return
    for _ in set_up_stages(config):
        pass
