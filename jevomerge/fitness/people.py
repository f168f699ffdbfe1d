"""People as judges, as YAML says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from jevomerge.schema import Strict

PEOPLE = "people"


class People(Strict):
    """Who judges in the page that `evolve` serves, and how much is asked of them."""

    raters: tuple[Annotated[str, Field(min_length=1)], ...] | Annotated[int, Field(gt=0)] = 1  # names, or how many
    question: str = "Which is better?"  # that the page asks about two outputs
    votes: int = Field(40, gt=0)  # on a generation at most, all raters together
    # The next generation begins when so many of all pairs of candidates are expected to be in the right order.
    enough: float = Field(0.9, gt=0.5, lt=1)
    port: int = Field(0, ge=0, lt=1 << 16)  # of the page, on 127.0.0.1; 0: one that is free

    @field_validator("raters")
    @classmethod
    def _named(cls, raters: tuple[str, ...] | int) -> tuple[str, ...] | int:
        if raters == () or (isinstance(raters, tuple) and len(set(raters)) < len(raters)):
            raise ValueError("give each rater a name of their own, or how many there are")
        return raters

    @property
    def names(self) -> tuple[str, ...]:
        """Of the raters."""
        return self.raters if isinstance(self.raters, tuple) else tuple(f"rater {i + 1}" for i in range(self.raters))


class PeopleScore(Strict):
    """People judge: they are shown what two candidates wrote for a prompt, or drew of it, and say which is better."""

    people: People  # `score: people` is {people: {}}

    of: ClassVar[str] = "texts"
    bounds: ClassVar[None] = None  # no single vote tells of one candidate
    answered: ClassVar[bool] = False
    meaning: ClassVar[str] = (
        "what people prefer: on the search split the share of comparisons that a candidate is expected to win against "
        "the mean of the sources, held out the share that a model has won against the others of the table"
    )

    def __str__(self) -> str:
        return PEOPLE


def of_people(value: Any) -> bool:
    """Whether a task's `score`, as it is given, says that people judge."""
    return isinstance(value, PeopleScore) or value == PEOPLE or (isinstance(value, Mapping) and PEOPLE in value)
