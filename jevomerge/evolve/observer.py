"""Who watches a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Observer(Protocol):
    """Whoever watches a run; see `jevomerge.console`."""

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """Something that is worth knowing and needs no change."""

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """So many evaluations are done; `mean` is over the current generation."""

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """The outcome."""
