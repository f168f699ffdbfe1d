"""Tasks that people judge: what candidates make is worth what comes out when all are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jevomerge.fitness.answers.extract import before_stop
from jevomerge.fitness.data import load_examples
from jevomerge.fitness.drawn import make_drawing, notes_of, read_prompts
from jevomerge.fitness.human.output import Output, as_picture, as_text
from jevomerge.fitness.human.page import require
from jevomerge.fitness.people import PeopleScore
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.fitness.rollouts.beams import writing
from jevomerge.fitness.rollouts.drawing import Drawing
from jevomerge.fitness.rollouts.generation import Generation
from jevomerge.fitness.schema import Task
from jevomerge.fitness.task import AsGiven, Document, Material, of_examples
from jevomerge.recipe.studio import Studio


@dataclass(frozen=True)
class ByPeople(AsGiven):
    """A task of which each document is one example; people compare what is made of it."""

    judged: PeopleScore
    compared: ClassVar[bool] = True
    answers: ClassVar[None] = None
    likelihood: ClassVar[None] = None

    def prompt(self, document: Document) -> Output:
        """What both outputs are for."""
        raise NotImplementedError

    def output(self, made: Any) -> Output:
        """What a model made of an example."""
        raise NotImplementedError


def unknown(numbers: Sequence[int], outputs: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
    """The scores of documents, which one candidate's outputs do not tell."""
    return [(math.nan, 0.0)] * len(numbers)


@dataclass(frozen=True)
class ByReaders(ByPeople):
    """A task of prompts; people compare what is written for them."""

    given: Task
    tokenizer: Any
    rollout: Generation

    def material(self, split: str) -> Material:
        """The rows of a split as examples."""
        return of_examples(load_examples(self.given, split, self.tokenizer)[1], unknown)

    def prompt(self, document: Document) -> Output:
        """As the model reads it."""
        return as_text(document.prompt)

    def output(self, made: Any) -> Output:
        """The text up to the first stop string."""
        return as_text(before_stop(self.given, made))


@dataclass(frozen=True)
class ByViewers(ByPeople):
    """A picture task; people compare what is drawn of a prompt from the same noise, each seed for itself."""

    given: PictureTask
    rollout: Drawing

    @property
    def notes(self) -> Sequence[str]:
        """Also of prompts that are cut."""
        return notes_of(self.given, self.rollout)

    def material(self, split: str) -> Material:
        """The rows of a split with each of the seeds as documents."""
        return of_examples(read_prompts(self.given, split)[2], unknown)

    def prompt(self, document: Document) -> Output:
        """By what pictures are judged: the prompt, or what stands for it."""
        return as_text(document.answer)

    def output(self, made: Any) -> Output:
        """The whole picture; a broken one is black where it is not finite."""
        return as_picture(made.judged)


def make_read(task: Task, score: PeopleScore, tokenizer: Any) -> ByReaders:
    """A task of texts that is ready.

    Raises:
        InputError: if there is nothing to show a page with.
    """
    require()
    return ByReaders(task, score, tokenizer, writing(task, tokenizer, None))


def make_viewed(task: PictureTask, score: PeopleScore, studio: Studio, dtype: str) -> ByViewers:
    """A picture task that is ready; the rest as for `make_drawn`.

    Raises:
        InputError: also if there is nothing to show a page with.
    """
    require()
    return ByViewers(task, score, make_drawing(task, studio, None, dtype))
