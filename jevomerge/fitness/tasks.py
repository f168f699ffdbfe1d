"""Tasks of any kind, read from YAML and checked before data or a weight is read; each kind has a file of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from jevomerge.errors import InputError
from jevomerge.fitness.picture_task import SCORERS, PictureTask
from jevomerge.fitness.schema import DATA, SCORES, FunctionTask, HarnessTask, Task, own_score
from jevomerge.schema import Strict, anchor, load_one, validate


def _kind(task: Any) -> str:
    if not isinstance(task, dict):
        return type(task).__name__
    if "harness" in task:
        return "HarnessTask"
    if "prompts" in task:
        return "PictureTask"
    score = task.get("score")
    of = score.get("of") if isinstance(score, Mapping) else None
    return "FunctionTask" if of == "folder" or (of == "params" and not set(DATA) & task.keys()) else "Task"


AnyTask = Annotated[
    Annotated[Task, Tag("Task")]
    | Annotated[HarnessTask, Tag("HarnessTask")]
    | Annotated[PictureTask, Tag("PictureTask")]
    | Annotated[FunctionTask, Tag("FunctionTask")],
    Discriminator(_kind),
]
KINDS: dict[str, type[Task] | type[PictureTask] | type[HarnessTask] | type[FunctionTask]] = {
    kind.__name__: kind for kind in (Task, PictureTask, HarnessTask, FunctionTask)
}


class Suite(Strict):
    """Several tasks in one file."""

    name: str  # of all
    tasks: tuple[AnyTask, ...] = Field(min_length=1)  # each as in a file of its own


def read_tasks(path: str | Path) -> tuple[AnyTask, ...]:
    """The YAML of a task or of a suite of them; data paths are relative to it."""
    path = Path(path)
    if not path.suffix and not os.path.exists(path):
        named = f"`harness: {{task: {path.name}}}`"
        raise InputError(f"{path} does not exist; a task of lm-evaluation-harness is named in a YAML file: {named}")
    data, origin = load_one(path)
    if "tasks" in data:
        for task in data["tasks"] if isinstance(data["tasks"], list) else ():
            _anchor_task(task, path.parent)
        return validate(Suite, data, origin).tasks
    _anchor_task(data, path.parent)
    return (validate(KINDS[_kind(data)], data, origin),)


def tasks_of(task: Any, folder: Path) -> list[Any]:
    """An item of a run's `tasks`: the tasks of a file, or one given here."""
    if isinstance(task, str):
        tasks = read_tasks(folder / task)
        # Of a suite, those that can be a fitness.
        return [t.model_dump() for t in tasks if len(tasks) == 1 or t.searchable]
    _anchor_task(task, folder)
    return [task]


def _anchor_task(data: Any, folder: Path) -> None:
    if not isinstance(data, dict):
        return
    if isinstance(harness := data.get("harness"), dict):
        if "include_path" in harness:
            harness["include_path"] = anchor(harness["include_path"], folder)
        return
    for key in ("weights", "clip") if "prompts" in data else ():
        if isinstance(data.get(key), str):
            data[key] = anchor(data[key], folder)
    ours = SCORERS if "prompts" in data else SCORES
    if isinstance(score := own_score(data.get("score"), ours), dict):
        if isinstance(score.get("function"), str):
            score.setdefault("import_from", str(folder.resolve()))
        data["score"] = score
    for key in ("search", "heldout"):
        if isinstance(data.get(key), str):
            data[key] = anchor(data[key], folder)
        elif isinstance(data.get(key), dict) and "path" in data[key]:
            data[key]["path"] = anchor(data[key]["path"], folder)
