"""`jevomerge evaluate`: score a model on a task."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.export import refuse_existing
from jevomerge.checkpoint.files import expanded, write_atomically
from jevomerge.checkpoint.pipeline import Pipeline, open_model
from jevomerge.checkpoint.source import Checkpoint, Source
from jevomerge.errors import InputError
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.people import PeopleScore
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.tasks import AnyTask, read_tasks
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.tokenizers.load import load_tokenizer


def evaluate(
    model: str | Path,
    task: str | Path,
    split: str | None = None,
    json: str | Path | None = None,
    *,
    pooled_from: int | None = None,
    observer: Observer = SILENT,
) -> dict[str, Any]:
    """Score a model on a task, or as lm-evaluation-harness does on tasks of its own.

    Args:
        model: a Hugging Face folder, an image pipeline's folder or file, or a hub name.
        task: the YAML of a task, or of several of the harness's.
        split: "search" or "heldout", by default "heldout"; the harness's tasks name theirs themselves.
        json: where to write what is returned, too.
        pooled_from: of an image pipeline, see `generate`.
        observer: is told the scores, a line each.

    Returns:
        {"model", "split", "results": {task: {metric: its value}}, "examples": {task: the score of each}, "texts":
        {task: what was written for each, unless that is private}}. The first metric is the fitness. Of the harness's
        tasks the metrics are those that it names, "acc,none" and "acc_stderr,none", and there are no examples and
        texts.

    Raises:
        InputError: for whatever is wrong with the task, its data or the model.
    """
    if json is not None:
        json = expanded(json)
        refuse_existing(json)
        if not json.parent.is_dir():
            raise InputError(f"--json: {json.parent} is not a folder")
    tasks, checkpoint = read_tasks(task), open_model(model)
    if pooled_from is not None and not isinstance(checkpoint, Pipeline):
        raise InputError(f"--pooled-from: {model} is no image pipeline; leave it out")
    for note in checkpoint.notes:
        observer.note(note)
    result: dict[str, Any] = {"model": str(model), "split": split, "results": {}, "examples": {}, "texts": {}}
    if len(tasks) == 1 and tasks[0].harness is None:
        result |= by_own(tasks[0], checkpoint, split or "heldout", observer, pooled_from)
    elif isinstance(checkpoint, Pipeline):
        raise InputError(f"{model} is an image pipeline; give one task with `prompts`, for which it draws pictures")
    else:
        result["results"] = by_harness(tasks, checkpoint, split, observer)
    if json is not None:
        write_atomically(expanded(json), dumps(result) + "\n")
    return result


def by_own(
    task: AnyTask, model: Source, split: str, observer: Observer, pooled_from: int | None = None
) -> dict[str, Any]:
    """The scores of a task of our own."""
    if isinstance(task.score, PeopleScore):
        raise InputError("--task: people compare models with each other, in `jevomerge evolve`; they score none alone")
    whole = None
    if isinstance(model, Pipeline):
        alone = {"merge_method": "passthrough", "models": [{"model": model.reference}], "pooled_from": pooled_from}
        whole = Sources(Recipe.model_validate(alone)).assembly
    tokenizer = load_tokenizer(model.folder) if isinstance(model, Checkpoint) else None
    ready = make_ready([task], tokenizer, model.model, model, assembly=whole)
    judge = make_judge(ready, model.model, splits=[split])
    for note in ready[0].notes:
        observer.note(note)
    scores = judge.model(model.load(), split, write=lambda path: path.symlink_to(model.folder.resolve()))
    fitness, _ = judge.fitness(scores)
    examples = scores.fitness[task.name].tolist()
    what = f"{split}, {len(examples)} examples" if task.apart else f"scores: {len(examples)}"
    observer.line(f"{task.name} ({what}, {task.score}): {fitness:.4f}")
    also = judge.also(scores.texts, split).get(task.name, {})
    for criterion, score in also.items():
        observer.line(f"  by {criterion}: {score:.4f}")
    return {
        "split": split,
        "results": {task.name: {str(task.score): fitness, **also}},
        "examples": {task.name: examples},
        "texts": {} if task.private else scores.texts,
    }


def by_harness(
    tasks: Sequence[AnyTask], model: Source, split: str | None, observer: Observer
) -> dict[str, dict[str, Any]]:
    """The metrics of tasks of lm-evaluation-harness, with their errors."""
    from jevomerge.fitness.harness.task import evaluate, find, require, with_pictures

    if own := [t.name for t in tasks if t.harness is None]:
        raise InputError(f"--task: {', '.join(own)} is not a task of the harness; evaluate it by its own file")
    if split is not None:
        raise InputError("--split: the harness scores the split that its task names; leave --split out")
    require()
    from jevomerge.fitness.harness.model import HarnessModel

    chosen = [t.harness for t in tasks if t.harness is not None]
    found = list(map(find, chosen))  # a name that is wrong is found out before weights are read
    tokenizer = load_tokenizer(model.folder)
    eyes = Eyes(model, tokenizer) if any(map(with_pictures, found)) else None
    judged = HarnessModel(model.load(), model.model, tokenizer, model.model.max_length, eyes=eyes)
    results: dict[str, dict[str, Any]] = {}
    for harness in chosen:
        for name, row in evaluate(harness, judged).items():
            results[name] = row
            for key, value in row.items():
                metric, _, how = key.partition(",")
                if not how or metric.endswith("_stderr") or not isinstance(value, float | int):
                    continue
                error = row.get(f"{metric}_stderr,{how}")
                shown = f" ± {error:.4f}" if isinstance(error, float) else ""
                observer.line(f"{name}: {metric} {value:.4f}{shown}" + (f" ({how})" if how != "none" else ""))
    return results
