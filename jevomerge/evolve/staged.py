"""Several searches in a row: the winner of each is a model for those that follow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import yaml

from jevomerge.checkpoint.export import export_folder
from jevomerge.config import RunConfig, StagedConfig
from jevomerge.evolve.archive import write_atomically
from jevomerge.evolve.observer import Observer
from jevomerge.evolve.problem import WeightProblem
from jevomerge.evolve.run import check_folder, evolve, report
from jevomerge.evolve.setup import Setup
from jevomerge.hosts import on_first, together
from jevomerge.stream import write_hollow
from jevomerge.trackers import check_trackers


def evolve_config(
    config: RunConfig | StagedConfig, folder: Path, observer: Observer, *, resume: bool = False
) -> dict[str, Any]:
    """Run (or continue) a config in `folder`; of several stages each has a run folder in it.

    Returns:
        what `result.json` holds: of the only search, or of each stage by name.

    Raises:
        InputError: as `evolve`, and for what is wrong with any stage before the first one begins.
    """
    if isinstance(config, RunConfig):
        return evolve(config, folder, observer, resume=resume)
    on_first(lambda: check_folder(folder, resume))
    on_first(lambda: check_trackers(config.trackers))
    if not resume:
        together(lambda: rehearse(config))
        on_first(lambda: begin(config, folder))
    results: dict[str, Any] = {}
    for stage in config.stages:
        own = folder / stage.name
        winners = {name: str((folder / name / "best").resolve()) for name in results}
        if (done := on_first(lambda own=own: read_result(own))) is not None:  # type: ignore[misc]
            results[stage.name] = done
            continue
        observer.stage(f"stage {stage.name}")
        run, begun = config.run_of(stage, winners), on_first(lambda own=own: (own / "config.yaml").exists())  # type: ignore[misc]
        results[stage.name] = evolve(run, own, observer, resume=begun)
    on_first(lambda: finish(results, folder, observer))
    return results


def begin(config: StagedConfig, folder: Path) -> None:
    """Make the folder of all stages."""
    with export_folder(folder) as new:
        write_atomically(new / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The outcome of a stage, if it has one."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def finish(results: dict[str, Any], folder: Path, observer: Observer) -> None:
    """Write what came out of all stages."""
    write_atomically(folder / "result.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    report(folder, observer)


def rehearse(config: StagedConfig) -> None:
    """Set up every stage.

    (How many layers a path will have is not known before it is found, so what builds on one is checked later.)
    """
    for _ in set_up(config):
        pass


def set_up(config: RunConfig | StagedConfig, devices: Sequence[jax.Device] | None = None) -> Iterator[Setup]:
    """Every search of a config but those that build on paths; hollow models stand in for the merges of earlier ones."""
    if isinstance(config, RunConfig):
        yield Setup(config, devices)
        return
    with tempfile.TemporaryDirectory(prefix="jevomerge-") as work:
        winners: dict[str, str] = {}
        unknown: set[str] = set()
        for stage in config.stages:
            named = {*(stage.path.models if stage.path else ()), *(stage.recipe.references if stage.recipe else ())}
            if named & unknown:
                unknown.add(stage.name)
                continue
            yield (setup := Setup(config.run_of(stage, winners), devices))
            if not isinstance(setup.problem, WeightProblem):
                unknown.add(stage.name)
                continue
            hollow = Path(work) / stage.name
            write_hollow(hollow, setup.problem.sources)
            winners[stage.name] = str(hollow)
