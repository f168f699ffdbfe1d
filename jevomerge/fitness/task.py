"""What a task is once its data is read: examples, documents, and how outputs become scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.fitness.tasks import AnyTask


class Document(NamedTuple):
    """A document of a task as people read it."""

    prompt: str
    answer: str
    pictures: tuple[Any, ...] = ()  # `fitness.pictures.Picture`s


# From the numbers of some documents and, of each, what a model made of its examples (see `Rollout.read`): of each the
# score, and what breaks ties.
Read = Callable[[Sequence[int], Sequence[Sequence[Any]]], Sequence[tuple[float, float]]]


class Material(NamedTuple):
    """One split of a task: D documents, the examples that a model is given for each, and what they come to."""

    examples: list[Any]
    first: np.ndarray  # (D + 1,) ints: document d has examples[first[d] : first[d + 1]]
    documents: list[Document]
    read: Read


class Ready(Protocol):
    """A task with all that it takes to read its data and to judge: ours, one of lm-evaluation-harness, anybody's."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def weight(self) -> float:
        """How much it counts among other tasks."""

    @property
    def rollout(self) -> Rollout:
        """What a model is asked for; it is settled once `material` has been read."""

    @property
    def notes(self) -> Sequence[str]:
        """What is worth knowing and needs no change; settled once its data has been read and checked."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest score of a document, -inf where there is no lowest; None: not known."""

    @property
    def apart(self) -> bool:
        """Whether held-out documents are others than those of the search."""

    @property
    def private(self) -> bool:
        """Whether nobody may read its texts."""

    @property
    def compared(self) -> bool:
        """Whether what models make is compared, and so kept until it has been."""

    @property
    def answers(self) -> Likelihood | None:
        """What asks for the likelihood of reference answers, if each document is one example that has one."""

    @property
    def likelihood(self) -> Literal["fitness", "tie_break"] | None:
        """Which of a document's two scores is that very likelihood; None: neither is."""

    def material(self, split: str) -> Material:
        """Its documents in `search` or `heldout`.

        Raises:
            InputError: for data that cannot be read, or is none.
        """

    def also(self, documents: Sequence[Document], texts: Sequence[str]) -> Mapping[str, float]:
        """{criterion: mean score} of texts that a model wrote for documents, by what does not count."""


@dataclass(frozen=True)
class AsGiven:
    """What a task that is ready has of the one that YAML gives."""

    given: AnyTask
    compared: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """As it is given."""
        return self.given.name

    @property
    def weight(self) -> float:
        """As it is given."""
        return self.given.weight

    @property
    def notes(self) -> Sequence[str]:
        """As they are given."""
        return self.given.notes

    @property
    def bounds(self) -> tuple[float, float] | None:
        """As they are given."""
        return self.given.bounds

    @property
    def apart(self) -> bool:
        """As it is given."""
        return self.given.apart

    @property
    def private(self) -> bool:
        """As it is given."""
        return self.given.private

    def also(self, documents: Sequence[Document], texts: Sequence[str]) -> Mapping[str, float]:
        """By nothing else."""
        return {}


def of_examples(examples: list[Any], read: Read) -> Material:
    """Material whose documents are one example each."""
    documents = [Document(e.prompt, e.answer, getattr(e, "pictures", ())) for e in examples]
    return Material(examples, np.arange(len(examples) + 1), documents, read)
