"""What a run began with: written down, and compared when it goes on, so that no archive is of two searches."""

from __future__ import annotations

import inspect
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import yaml

from jevomerge.checkpoint.files import write_atomically
from jevomerge.checkpoint.source import Source
from jevomerge.config import RunConfig
from jevomerge.errors import InputError
from jevomerge.fitness.judge import SPLITS
from jevomerge.fitness.own import find_function
from jevomerge.fitness.schema import OwnScore
from jevomerge.search import records
from jevomerge.search.setup import Setup

PACKAGES = ("jevomerge", "jax", "jaxlib", "flax", "evosax", "orbax-checkpoint", "transformers", "numpy", "datasets")
# What neither candidates nor their scores depend on, but for rounding.
FREE = (
    "name", "trackers", "mesh", "members_per_device", "tokens_per_batch", "features", "search.evaluations",
    "search.finalists", "search.checkpoint_every", "search.time_limit", "search.share",
)  # fmt: skip
SINCE = "since {} began; put back what it was, or start a new run"


def record_run(setup: Setup, folder: Path) -> None:
    """Write down what is about to run; config.yaml last, for with it the folder is a run."""
    environment = {
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [str(d) for d in jax.devices()],
        "processor": machine()["processor"],
        "command": sys.argv,
        "genes": list(setup.problem.names),
        "population": setup.strategy.population_size,
        "seed": setup.config.seed,
        "evaluations": setup.config.search.evaluations,
        "memory": setup.memory,
        **fingerprints(setup),
    }
    write_atomically(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    write_atomically(folder / "config.yaml", yaml.safe_dump(setup.config.model_dump(mode="json"), sort_keys=False))


def machine() -> dict[str, str]:
    """What a search depends on beside its config, models and data: others round otherwise, and go other ways."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    devices = jax.devices()
    return {
        "processor": names[0] if names else platform.machine(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        **{name: version(name) for name in ("jevomerge", "jax", "jaxlib")},
    }


def fingerprints(setup: Setup) -> dict[str, Any]:
    """All that decides what a search finds, by its content."""
    return {
        "config": dumped(setup.config),
        "sources": {c.reference: c.fingerprint() for c in (*setup.problem.checkpoints, *lenders_of(setup))},
        "data": {split: setup.judge.fingerprint(split) for split in SPLITS},
        "functions": dict(judges_of(setup)),
    }


def lenders_of(setup: Setup) -> Sequence[Source]:
    """The image pipelines of which parts are beside those that are merged."""
    sources = setup.problem.sources
    return () if sources is None or sources.assembly is None else sources.assembly.sources


def dumped(config: RunConfig) -> dict[str, Any]:
    """A config without what a later version may add."""
    return config.model_dump(mode="json", exclude_defaults=True)


def judges_of(setup: Setup) -> Iterator[tuple[str, str]]:
    """(task, digest of the source of the function that judges it, where Python knows it, or of a scorer's files)."""
    for ready in setup.judge.tasks:
        if (scorer := getattr(ready.rollout, "scorer", None)) is not None:
            yield ready.name, sha256(json.dumps(scorer.fingerprint(), sort_keys=True).encode()).hexdigest()
    for task in setup.config.tasks:
        if isinstance(score := task.score, OwnScore):
            try:
                source = inspect.getsource(find_function(score).function)
            except (OSError, TypeError):  # typed in, or no Python
                continue
            yield task.name, sha256(source.encode()).hexdigest()


def check_unchanged(setup: Setup, folder: Path) -> None:
    """Raise InputError, naming what it is, if a run goes on with something else than it began with."""
    began, found = read_environment(folder), fingerprints(setup)
    check_config(setup.config, folder)
    remedy = SINCE.format(folder)
    for source, parts in found["sources"].items():
        if names := changed(began["sources"].get(source, {}), parts):
            raise InputError(f"{source}: {', '.join(names)} changed {remedy}")
    for split in SPLITS:
        for task in changed(began["data"][split], found["data"][split]):
            raise InputError(f"task {task}: its {split} data has changed {remedy}")
    for task in changed(began["functions"], found["functions"]):
        raise InputError(f"task {task}: who judges it has changed {remedy}")


def check_config(config: RunConfig, folder: Path, free: Sequence[str] = FREE) -> None:
    """The same for the config alone; `free`: the keys that may have changed."""
    old, new = map(flat, (read_environment(folder)["config"], dumped(config)))
    for key in changed(old, new):
        if not any(key == other or key.startswith(f"{other}.") for other in free):
            was, is_now = (json.dumps(values.get(key), ensure_ascii=False) for values in (old, new))
            raise InputError(f"`{key}` has changed from {was} to {is_now} {SINCE.format(folder)}")


def read_environment(folder: Path) -> dict[str, Any]:
    """What `record_run` wrote; InputError for what an earlier version did."""
    environment = records.read_environment(folder)
    if "config" not in environment:
        raise InputError(
            f"{folder} was begun by jevomerge {environment['packages']['jevomerge']}, before a run wrote down all that "
            "it depends on: finish it with that version, or start a new run"
        )
    return environment


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys of which two mappings have other values."""
    missing = object()
    return [key for key in {**old, **new} if old.get(key, missing) != new.get(key, missing)]


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """{"recipe.models.0.model": its value} of nested mappings and lists."""
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if not inside:
        return {where: value}
    return {k: v for key, inner in inside for k, v in flat(inner, f"{where}.{key}" if where else str(key)).items()}
