"""drawn.json: what sources and the best candidate so far draw for the search, to look at during a run.

It is laid out like heldout.json, with `drawn` and `scores` of the first prompts alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jevomerge.checkpoint.files import read_json, write_atomically
from jevomerge.fitness.judge import Judge
from jevomerge.fitness.outcome import Scores
from jevomerge.search.baselines import Baselines
from jevomerge.search.records import DRAWN


def open_gallery(folder: Path, judge: Judge, baselines: Baselines) -> None:
    """Write the first of a run whose candidates draw, unless it is there from before the run was resumed."""
    if not any(task.rollout.draws and not task.private for task in judge.tasks) or (folder / DRAWN).exists():
        return
    examples = {
        task.name: [{"prompt": d.prompt, "answer": d.answer} for d in judge.material["search"][task.name].documents]
        for task in judge.tasks
        if not task.private
    }
    found = {name: _shown(scored.search) for name, scored in baselines.named.items()}
    sources = {name: found[name] for name in baselines.sources}
    average = next((row for name, row in found.items() if name not in sources), None)
    _write(folder, {"examples": examples, "sources": sources, "average": average, "best": None})


def hang(folder: Path, scores: Scores, evaluation: int) -> None:
    """Put the pictures of a candidate there as those of the best so far."""
    if (folder / DRAWN).exists() and any(scores.drawn.values()):
        _write(folder, read_json(folder / DRAWN) | {"best": {**_shown(scores), "evaluation": evaluation}})


def _shown(scores: Scores) -> dict[str, Any]:
    # Where people judge, all documents have one score.
    first = {task: np.resize(scores.fitness[task], len(drawn)) for task, drawn in scores.drawn.items()}
    kept = {task: [float(x) if x == x else None for x in values] for task, values in first.items()}
    return {"drawn": dict(scores.drawn), "scores": kept}


def _write(folder: Path, values: Any) -> None:
    write_atomically(folder / DRAWN, json.dumps(values, ensure_ascii=False) + "\n")
