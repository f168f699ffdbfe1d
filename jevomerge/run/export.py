"""`jevomerge export`: write a genome of a run as a model folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jevomerge.checkpoint.export import refuse_existing
from jevomerge.checkpoint.files import expanded
from jevomerge.config import read_run
from jevomerge.errors import InputError
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.recipe.to_folder import merge_to_folder
from jevomerge.search.archive import read_archive
from jevomerge.search.records import read_outcome
from jevomerge.search.setup import set_up


def export(run: str | Path, genome: str | int, out: str | Path, *, observer: Observer = SILENT) -> Path:
    """Merge a genome of a run again and write it as a Hugging Face folder.

    Args:
        run: a run folder.
        genome: "best", what the run's best/ is, or the number of an evaluation, from 0.
        out: the folder to write; it must not exist.
        observer: is told how far the merge is.

    Returns:
        the folder.

    Raises:
        InputError: for a genome that the run does not have, or models that are not there any more.
    """
    run, out, source = expanded(run), expanded(out), None
    refuse_existing(out)
    if not (run / "config.yaml").exists():
        raise InputError(f"{run} is not a run folder: it has no config.yaml; give one that `jevomerge evolve` wrote")
    config, records = read_run(run / "config.yaml"), read_archive(run / "evaluations.jsonl")
    if genome == "best":
        if (outcome := read_outcome(run)) is None:
            raise InputError(f"{run} is not finished: resume it, or export an evaluation by number")
        number, source = outcome["best"]["evaluation"], outcome["best"].get("source")
    elif str(genome).isdecimal():
        number = int(genome)
    else:
        raise InputError(f"--genome: `{genome}` is neither `best` nor a number")
    setup = set_up(config)
    if source is not None:
        merge = setup.problem.merge_of(source)
        merge_to_folder(merge, merge.coefficients, out, progress=observer.counter("merged"))
        return out
    place = divmod(number, setup.strategy.population_size)
    record = next((r for r in records if (r["generation"], r["member"]) == place), None)
    if record is None:
        raise InputError(f"--genome: evaluations.jsonl has no whole line of evaluation {number}")
    setup.problem.export(np.asarray(record["genome"]), out, progress=observer.counter("merged"))
    return out
