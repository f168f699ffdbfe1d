"""Functions of the user's as a fitness; the fitness is the mean of the scores that they give.

    params    f(model, params) -> (N,) or a number, or f(model, params, batch) -> (B,): pure, compiled once and run like
              our own scores; see `rollouts.own`. `batch` are a task's examples.
    texts     f(texts, rows) -> a score for each: plain Python, of the texts that candidates write for a task's prompts
              and of the rows of its data, as dictionaries; called with as many as are there at a time. Texts end before
              the task's first stop string.
    folder    f(folder) -> a number or (N,): plain Python, of a candidate as a Hugging Face folder that is gone
              afterwards. This is the slow way.
    pictures  f(pictures, rows) -> a score for each: plain Python, of what image models draw; see `fitness.drawn`.

In YAML `score: {function: module:f, of: texts}`, in short `score: module:f`. The module is imported, which runs its
code: from Python's path, or from the folder of the YAML file that names it. A package can offer a function by name, as
an entry point in the group "jevomerge.fitness". A run is resumed only while the function's source is what it was; what
the function calls is taken as it is then.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar

import numpy as np

from jevomerge.errors import FitnessError, InputError
from jevomerge.fitness.answers.extract import before_stop
from jevomerge.fitness.data import load_examples
from jevomerge.fitness.rollouts.beams import writing
from jevomerge.fitness.rollouts.folder import Folder
from jevomerge.fitness.rollouts.generation import Generation
from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.fitness.rollouts.own import Called, Numbered, OfBatch, OfParams, count_scores
from jevomerge.fitness.schema import DATA, GROUP, FunctionTask, OwnScore, Task
from jevomerge.fitness.task import AsGiven, Material, Ready, of_examples
from jevomerge.models.model import Model
from jevomerge.tokenizers.load import padding

ROUNDING = 1e-5  # of the range: so far may a score be out of bounds


def find_function(score: OwnScore) -> Called:
    """The function that a task names.

    Raises:
        InputError: if there is none, or importing it fails.
    """
    return Called(_function(score), score.name)


def _function(score: OwnScore) -> Callable[..., Any]:
    if not isinstance(score.function, str):
        return score.function
    module, _, name = score.function.partition(":")
    if score.import_from is not None and score.import_from not in sys.path:
        sys.path.append(score.import_from)
    try:
        if name:
            found: Any = import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        else:
            (entry,) = entry_points(group=GROUP, name=module)
            found = entry.load()
    except Exception as error:  # the module's own code can fail in any way
        where = f" (also looked for in {score.import_from})" if score.import_from else ""
        raise InputError(
            f"score: {score.function} cannot be imported{where}: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise InputError(f"score: {score.function} is {type(found).__name__}, not a function")
    return found


def check_signature(called: Called, wanted: str) -> None:
    """Refuse a function that cannot be called as `wanted`; one of parameters takes a batch with data, without none."""
    try:
        signature = inspect.signature(called.function)
    except (TypeError, ValueError):  # of some that are written in C nobody knows
        return
    try:
        signature.bind(*wanted.split(","))
    except TypeError:
        data = "leave out" if "batch" in wanted else "if it takes a batch, give"
        remedy = f"; {data} {', '.join(DATA)}" if "model" in wanted else ""
        raise InputError(f"score: {called.name}{signature} is called with {wanted}{remedy}") from None


def as_scores(
    found: Any, called: Called, count: int | None, bounds: tuple[float, float] | None, of: str = "texts"
) -> np.ndarray:
    """What a function gave as (N,) float64; `count`: how many are wanted, None: any number; `of`: what it judged.

    Raises:
        FitnessError: for another number of scores, for what is no number, or is out of bounds.
    """
    try:
        scores = np.asarray(found)
    except (TypeError, ValueError):  # lists of several lengths
        scores = np.array("")
    if scores.dtype.kind not in "biuf" or scores.ndim > 1:
        shown = repr(found)
        raise FitnessError(f"{called.name} gave {shown if len(shown) < 60 else f'{shown[:57]}...'}, not scores")
    scores = scores.astype(np.float64)
    if count is not None and scores.shape != (count,):
        many = "one number" if scores.ndim == 0 else f"{len(scores)} scores"
        raise FitnessError(f"{called.name} gave {many} for {count} {of}; it must give a score for each")
    if not scores.size:
        raise FitnessError(f"{called.name} gave no scores")
    if bounds is None:
        return scores.reshape(-1)
    low, high = bounds
    slack = ROUNDING * (high - low)
    if (outside := scores[(scores < low - slack) | (scores > high + slack)]).size:
        raise FitnessError(f"{called.name} gave {outside[0]:g}, which is not from {low:g} to {high:g}")
    return np.clip(scores, low, high).reshape(-1)


def with_ties(scores: np.ndarray) -> list[tuple[float, float]]:
    """Scores of documents, whose ties nothing breaks."""
    return [(score, 0.0) for score in scores.tolist()]


# --- three ways ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByTexts(AsGiven):
    """A task of prompts; a function judges what is written for them."""

    given: Task
    called: Called
    tokenizer: Any
    rollout: Generation
    answers: Likelihood
    likelihood: ClassVar[None] = None

    def material(self, split: str) -> Material:
        """The rows of a split as examples."""
        rows, examples = load_examples(self.given, split, self.tokenizer, self.answers.eyes)

        def read(numbers: Sequence[int], outputs: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
            texts = [before_stop(self.given, text) for (text,) in outputs]
            found = self.called(texts, [dict(rows[d]) for d in numbers])
            return with_ties(as_scores(found, self.called, len(texts), self.bounds))

        return of_examples(examples, read)


@dataclass(frozen=True)
class ByBatch(AsGiven):
    """A task of prompts and answers; a function judges parameters by batches of them."""

    given: Task
    called: Called
    tokenizer: Any
    rollout: OfBatch
    answers: Likelihood
    likelihood: ClassVar[None] = None

    def material(self, split: str) -> Material:
        """The rows of a split as examples."""
        _, examples = load_examples(self.given, split, self.tokenizer, self.answers.eyes)
        return of_examples(examples, self.read)

    def read(self, numbers: Sequence[int], outputs: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        """The scores as they are."""
        return with_ties(as_scores([score for (score,) in outputs], self.called, None, self.bounds))


@dataclass(frozen=True)
class ByParams(AsGiven):
    """A function judges parameters alone: as many documents as it gives scores."""

    given: FunctionTask
    called: Called
    rollout: OfParams
    answers: ClassVar[None] = None
    likelihood: ClassVar[None] = None

    def material(self, split: str) -> Material:
        """The same in both splits."""
        numbered = [Numbered(self.called.name, str(i), i) for i in range(self.rollout.count)]
        return of_examples(numbered, self.read)

    def read(self, numbers: Sequence[int], outputs: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        """The scores as they are."""
        return with_ties(as_scores([score for (score,) in outputs], self.called, None, self.bounds))


@dataclass(frozen=True)
class ByFolder(AsGiven):
    """A task that a function of a model's folder judges: one document, whose score is the mean of what it gives."""

    given: FunctionTask
    called: Called
    rollout: ClassVar[Folder] = Folder()
    answers: ClassVar[None] = None
    likelihood: ClassVar[None] = None

    def material(self, split: str) -> Material:
        """The model is the document."""

        def read(numbers: Sequence[int], outputs: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
            [[folder]] = outputs
            if folder is None:
                return [(math.nan, 0.0)]
            return [(float(np.mean(as_scores(self.called(folder), self.called, None, self.bounds))), 0.0)]

        return of_examples([Numbered(self.called.name, "", 0)], read)


def make_own(task: Task | FunctionTask, score: OwnScore, tokenizer: Any, model: Model, eyes: Any = None) -> Ready:
    """A task, judged by a function of the user's, that is ready; `eyes` as for `make_answered`.

    Raises:
        InputError: if there is no such function, or it does not take what it is given.
        FitnessError: for what goes wrong in a function of parameters, which is traced here.
    """
    called = find_function(score)
    if isinstance(task, FunctionTask):
        if score.of == "folder":
            return ByFolder(task, called)
        check_signature(called, "(model, params)")
        return ByParams(task, called, OfParams(called, count_scores(called, model)))
    answers = Likelihood(padding(tokenizer), eyes)
    if score.of == "texts":
        return ByTexts(task, called, tokenizer, writing(task, tokenizer, eyes), answers)
    check_signature(called, "(model, params, batch)")
    return ByBatch(task, called, tokenizer, OfBatch(answers.pad, eyes, function=called), answers)
