"""The page of a run, written when it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jevomerge.observers.observer import Observer


class PageWriter(Observer):
    """An observer, told of the end when the page is there: a run's own, or that of several stages."""

    def __init__(self, observer: Observer):
        """For `observer`."""
        self._observer = observer

    def stage(self, text: str) -> None:
        """For the observer."""
        self._observer.stage(text)

    def note(self, text: str) -> None:
        """For the observer."""
        self._observer.note(text)

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """For the observer."""
        self._observer.evaluated(done, total, best, mean)

    def scored(self, number: int, record: Mapping[str, Any]) -> None:
        """For the observer."""
        self._observer.scored(number, record)

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """Write the page of the run."""
        self._write(folder)
        self._observer.finished(result, folder)

    def stages_finished(self, results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
        """Write the page that links those of the stages."""
        self._write(folder)
        self._observer.stages_finished(results, folder)

    def _write(self, folder: Path) -> None:
        """A search of days does not fail for a picture."""
        self._observer.stage("writing the report")
        try:
            from jevomerge.reports.page import write_report  # imported late: matplotlib takes a second

            write_report(folder)
        except Exception as error:
            self._observer.note(f"no report: {error}; `jevomerge report {folder} --debug` tries again")
