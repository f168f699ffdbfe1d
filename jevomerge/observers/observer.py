"""Who watches a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEST = "evolved merge"


def outcome_name(source: str | None) -> str:
    """What tables call the outcome of a search; `source`: the model that no candidate was better than, if so."""
    return BEST if source is None else f"the result: {source}"


class Observer:
    """Whoever watches a command, here without showing anything; see `observers.terminal` and `observers.trackers`."""

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """Something that is worth knowing and needs no change."""

    def line(self, text: str) -> None:
        """A line of what was asked for, such as a score."""

    def ask(self, question: str, choices: Sequence[str], guess: str | None) -> str | None:
        """Which one a person chooses; where nobody can be asked, as here, what was guessed."""
        return guess

    def counter(self, label: str, unit: str = "tensors") -> Callable[[int, int], None]:
        """What is called with (how many are done, of how many) in work that goes one by one."""
        return lambda done, total: None

    def searching(self, size: int, source: float) -> None:
        """A search begins, in generations of so many evaluations; the best of its sources scores `source`."""

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """So many evaluations are done; `mean` is over the current generation."""

    def scored(self, number: int, record: Mapping[str, Any]) -> None:
        """Evaluation `number` is in evaluations.jsonl; all have their turn in order, in a resumed run once more."""

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """The outcome of a search: what `result.json` in its folder holds."""

    def stages_finished(self, results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
        """All stages of a config are finished; their outcomes by name, in the folder that has theirs in it."""

    def seeds_finished(self, results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
        """The runs of all seeds are finished; their outcomes by the names of their folders, in that of all."""


SILENT = Observer()  # for programs, and for all processes of a run but the first
