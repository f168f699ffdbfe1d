"""Who watches a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Observer(Protocol):
    """Whoever watches a run; see `jevomerge.console` and `jevomerge.trackers`."""

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """Something that is worth knowing and needs no change."""

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """So many evaluations are done; `mean` is over the current generation."""

    def scored(self, number: int, record: Mapping[str, Any]) -> None:
        """Evaluation `number` is in evaluations.jsonl; all have their turn in order, in a resumed run once more."""

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """The outcome."""
