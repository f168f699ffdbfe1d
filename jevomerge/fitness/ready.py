"""From tasks as YAML gives them to tasks that are ready; nobody else asks which kind a task is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jevomerge.checkpoint.source import Source
from jevomerge.errors import FitnessError, InputError
from jevomerge.fitness.answered import make_answered
from jevomerge.fitness.drawn import make_drawn
from jevomerge.fitness.human.task import make_read, make_viewed
from jevomerge.fitness.kept import KeepFeatures
from jevomerge.fitness.own import make_own
from jevomerge.fitness.people import PeopleScore
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.schema import FunctionTask, HarnessTask, OwnScore
from jevomerge.fitness.task import Ready
from jevomerge.fitness.tasks import AnyTask
from jevomerge.models.model import Model
from jevomerge.recipe.assembly import Assembly
from jevomerge.recipe.studio import Studio


def make_ready(
    tasks: Sequence[AnyTask],
    tokenizer: Any | None,
    model: Model,
    seer: Source | None = None,
    dtype: str = "float32",
    keep: KeepFeatures | None = None,
    assembly: Assembly | None = None,
) -> list[Ready]:
    """Tasks with all that it takes to read their data and to judge.

    Args:
        tasks: from `read_tasks` or a run's config.
        tokenizer: that of the models; None: they have none, and only functions of parameters or folders can judge.
        model: what will be judged; no weights are needed.
        seer: the model whose parts beside the language model it has, with which it looks at pictures.
        dtype: of what it sees in them.
        keep: where that is kept.
        assembly: the image pipeline whose merged parts will be judged; None: the models are none.

    Raises:
        InputError: for a task that cannot judge, or needs a package that is not installed.
        FitnessError: for what goes wrong in a function of the user's.
    """

    @functools.cache
    def eyes() -> Eyes:
        if seer is None:
            raise InputError("`image` needs a vision-language model among the models")
        return Eyes(seer, tokenizer, dtype, keep)

    return [_ready(task, tokenizer, model, eyes, assembly, dtype) for task in tasks]


def _ready(
    task: AnyTask,
    tokenizer: Any | None,
    model: Any,
    eyes: Callable[[], Eyes],
    assembly: Assembly | None,
    dtype: str,
) -> Ready:
    try:
        if isinstance(task, FunctionTask):
            return make_own(task, task.score, tokenizer, model)
        if isinstance(task, PictureTask):
            if assembly is None:
                raise InputError("`prompts` are drawn by image pipelines, and these models are none; give a `prompt`")
            studio = Studio(assembly, task.scheduler)
            if isinstance(task.score, PeopleScore):
                return make_viewed(task, task.score, studio, dtype)
            return make_drawn(task, studio, dtype)
        if assembly is not None:
            raise InputError("image pipelines write no texts; give `prompts`, for which they draw pictures")
        if tokenizer is None:
            raise InputError("the models have no tokenizer; judge them by a function of their parameters or folders")
        if isinstance(task, HarnessTask):
            from jevomerge.fitness.harness.task import LoadedTask  # imported late: lm-eval takes seconds

            return LoadedTask(task, tokenizer, model.max_length, eyes)
        if isinstance(task.score, PeopleScore):
            return make_read(task, task.score, tokenizer)
        sees = eyes() if task.image else None
        if isinstance(task.score, OwnScore):
            return make_own(task, task.score, tokenizer, model, sees)
        return make_answered(task, tokenizer, sees)
    except (InputError, FitnessError) as error:
        raise type(error)(f"task {task.name}: {error}") from error
