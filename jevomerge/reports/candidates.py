"""The candidates of a run as a table, each with the command that makes a model folder of it."""

from __future__ import annotations

import shlex
from typing import NamedTuple

import numpy as np

from jevomerge.reports.record import Run

SHOWN = 300


class Candidate(NamedTuple):
    """A row."""

    number: int  # of the evaluation, as `jevomerge export --genome` takes it
    generation: int  # from 1
    fitness: float
    tasks: dict[str, float]  # its score in each, where there are several
    how: str  # it came about, if not as all do
    outcome: bool
    command: str


def candidates(record: Run) -> list[Candidate]:
    """Those with a fitness, the best first; of many the first SHOWN."""
    known = np.flatnonzero(~np.isnan(record.fitness))
    ranked = known[np.argsort(-record.fitness[known], kind="stable")][:SHOWN]
    rows = []
    for i in ranked:
        e = record.evaluations[i]
        number = e["generation"] * record.environment["population"] + e["member"]
        several = len(record.config.tasks) > 1
        tasks = {t: float(np.mean(np.array(s, np.float64))) for t, s in e.get("scores", {}).items()} if several else {}
        out = f"{record.config.name}_{number}"
        command = shlex.join(["jevomerge", "export", str(record.folder), "--genome", str(number), out])
        won = record.result is not None and "source" not in record.result["best"] and i == record.best
        rows.append(Candidate(number, e["generation"] + 1, float(record.fitness[i]), tasks, how(e), won, command))
    return rows


def how(evaluation: dict[str, object]) -> str:
    """What is to be known of an evaluation, in a few words."""
    said = {
        "refined": "refined by gradients",
        "estimate": "estimated from anchors",
        "stopped": "stopped by racing: a bound",
        "copy_of": "known already",
    }
    return ", ".join(words for key, words in said.items() if key in evaluation)
