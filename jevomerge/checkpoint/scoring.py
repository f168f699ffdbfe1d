"""What a card says of how good a model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

THIS = "this model"  # what a card calls the model that it is of


class Score(NamedTuple):
    """A score and, where it is known, its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        sure = "" if self.low is None or self.high is None else f" ({self.low:.4f} to {self.high:.4f})"
        return f"{self.value:.4f}{sure}"


class Judge(NamedTuple):
    """The data of a task."""

    name: str
    search: int  # examples that chose
    heldout: int  # examples that nothing chose by
    private: bool = False

    def __str__(self) -> str:
        held = f"{self.heldout} held out" if self.heldout else "none held out"
        return f"{self.name}: {self.search} examples chose, {held}{', private data' if self.private else ''}"


class Scoring(NamedTuple):
    """What is known of it."""

    scores: Mapping[str, Mapping[str, Score]] = {}  # {model: {column: score}}
    notes: Sequence[str] = ()  # sentences
    judges: Sequence[Judge] = ()
