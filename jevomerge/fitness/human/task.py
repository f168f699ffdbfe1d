"""A task that people judge: candidates write texts, and what these are worth comes out when all are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jevomerge.fitness.answers.extract import before_stop
from jevomerge.fitness.data import load_examples
from jevomerge.fitness.human.page import require
from jevomerge.fitness.human.votes import Output, as_text
from jevomerge.fitness.people import PeopleScore
from jevomerge.fitness.rollouts.beams import writing
from jevomerge.fitness.rollouts.generation import Generation
from jevomerge.fitness.schema import Task
from jevomerge.fitness.task import AsGiven, Material, of_examples


@dataclass(frozen=True)
class ByPeople(AsGiven):
    """A task of prompts; people compare what is written for them."""

    given: Task
    judged: PeopleScore
    tokenizer: Any
    rollout: Generation
    answers: ClassVar[None] = None
    likelihood: ClassVar[None] = None

    def material(self, split: str) -> Material:
        """The rows of a split as examples, whose scores are not known from one candidate's texts."""
        _, examples = load_examples(self.given, split, self.tokenizer)

        def read(numbers: Sequence[int], outputs: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
            return [(math.nan, 0.0)] * len(numbers)

        return of_examples(examples, read)

    def outputs(self, texts: Sequence[str]) -> list[Output]:
        """Texts as people see them: up to the first stop string."""
        return [as_text(before_stop(self.given, text)) for text in texts]


def make_people(task: Task, score: PeopleScore, tokenizer: Any) -> ByPeople:
    """A task that is ready.

    Raises:
        InputError: if there is nothing to show a page with.
    """
    require()
    return ByPeople(task, score, tokenizer, writing(task, tokenizer, None))
