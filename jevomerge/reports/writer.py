"""The page of a run, or of several, written when it is finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import write_atomically
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

    def searching(self, size: int, source: float) -> None:
        """For the observer."""
        self._observer.searching(size, source)

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

    def line(self, text: str) -> None:
        """For the observer."""
        self._observer.line(text)

    def seeds_finished(self, results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
        """Write the page that compares the seeds, and say how far they are apart."""
        self._write(folder)
        with self._guarded(folder):
            from jevomerge.reports.compare import compare_page, find_runs, make_entries, read_runs, spreads

            entries = make_entries(read_runs(find_runs([folder])))
            write_atomically(folder / "compare.html", compare_page(entries))
            for line in spreads(entries):
                self._observer.line(line)
            self._observer.line(f"Page: {folder / 'compare.html'}")
        self._observer.seeds_finished(results, folder)

    def _write(self, folder: Path) -> None:
        self._observer.stage("writing the report")
        with self._guarded(folder):
            from jevomerge.reports.page import write_report  # imported late: matplotlib takes a second

            write_report(folder)

    @contextmanager
    def _guarded(self, folder: Path) -> Iterator[None]:
        """A search of days does not fail for a picture."""
        try:
            yield
        except Exception as error:
            self._observer.note(f"no report: {error}; `jevomerge report {folder} --debug` tries again")
