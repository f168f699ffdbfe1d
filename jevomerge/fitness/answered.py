"""Tasks of our own: prompts with reference answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jevomerge.errors import InputError
from jevomerge.fitness.answers.extract import NUMBERS, extract_answer, grade, other_criteria
from jevomerge.fitness.answers.language import check_language
from jevomerge.fitness.batches import Example
from jevomerge.fitness.data import load_examples
from jevomerge.fitness.rollouts.beams import writing
from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.fitness.schema import Task
from jevomerge.fitness.task import AsGiven, Document, Material, of_examples
from jevomerge.tokenizers.load import padding


@dataclass(frozen=True)
class Answered(AsGiven):
    """A task whose documents are prompts with reference answers: each is one example."""

    given: Task
    tokenizer: Any
    rollout: Rollout
    answers: Likelihood
    likelihood: Literal["fitness", "tie_break"] | None

    def material(self, split: str) -> Material:
        """The rows of a split as examples."""
        _, examples = load_examples(self.given, split, self.tokenizer, self.answers.eyes)
        for example in examples:
            self._check(split, example)

        def read(numbers: Sequence[int], outputs: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
            return [self._score(o, examples[d].answer) for d, (o,) in zip(numbers, outputs, strict=True)]

        return of_examples(examples, read)

    def _check(self, split: str, example: Example) -> None:
        """Refuse an answer that no text can give, and a pattern that comes to no end with texts like these."""
        try:
            for text in (example.prompt, example.answer):
                found = extract_answer(self.given, text)
        except InputError as error:
            raise InputError(f"task {self.name}, {split}: {error}") from None
        if self.given.extract in NUMBERS and not found:
            raise InputError(
                f"task {self.name}, {split}: the answer {example.answer!r} has no number, which extract: "
                f"{self.given.extract} needs"
            )

    def _score(self, output: Any, answer: str) -> tuple[float, float]:
        """The score of an example, and what breaks ties."""
        if self.likelihood is None:
            return grade(self.given, output, answer), 0.0
        mean, match = output
        return (mean, match) if self.likelihood == "fitness" else (match, mean)

    def also(self, documents: Sequence[Document], texts: Sequence[str]) -> Mapping[str, float]:
        """By other extractors, and in any language."""
        pairs = [(text, d.answer) for text, d in zip(texts, documents, strict=True)]
        ways = other_criteria(self.given).items()
        return {name: float(np.mean([grade(way, *pair) for pair in pairs])) for name, way in ways}


def make_answered(task: Task, tokenizer: Any, eyes: Any = None) -> Answered:
    """A task of ours that is ready; `eyes`: `fitness.pictures.Eyes`, if it has pictures.

    Raises:
        InputError: if its texts could not be judged, for want of a package, of such a language or of their end.
    """
    answers = Likelihood(padding(tokenizer), eyes)
    if task.score == "likelihood":
        return Answered(task, tokenizer, answers, answers, "fitness")
    if task.score == "match":
        return Answered(task, tokenizer, answers, answers, "tie_break")
    if task.language is not None:
        check_language(task.language)
    grade(task, "", "")
    return Answered(task, tokenizer, writing(task, tokenizer, eyes), answers, None)
