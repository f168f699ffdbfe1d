"""What a person sees: live progress, tables, messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Silent:
    """Shows nothing: what all processes of a run but the first do. An `evolve.observer.Observer`."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """Nothing."""

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """Nothing."""


class Terminal:
    """Shows a run: a progress bar in a terminal, plain lines elsewhere. An `evolve.observer.Observer`."""

    def __init__(self, console: Console | None = None):
        """Write to `console`, by default standard output."""
        self.console = console or Console(highlight=False)
        self._progress: Progress | None = None
        self._last = 0.0

    def stage(self, text: str) -> None:
        """Say what happens next."""
        self._stop()
        self.console.print(f"[dim]{text} ...[/]")

    def note(self, text: str) -> None:
        """Something that is worth knowing and needs no change."""
        self.console.print(f"note: {text}", markup=False, soft_wrap=True)

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """Move the bar, or print a line every few seconds."""
        status = f"best {best:.4f}  mean {mean:.4f}"
        if not self.console.is_terminal:
            if time.monotonic() - self._last > LINE_EVERY or done == total:
                self._last = time.monotonic()
                self.console.print(f"evaluation {done}/{total}  {status}")
            return
        if self._progress is None:
            columns = (TextColumn("evolving"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self._progress.add_task("evolving", total=total, status=status)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, status=status)

    def tensors(self, label: str) -> Callable[[int, int], None]:
        """A progress callback for work that goes tensor by tensor."""

        def progress(done: int, total: int) -> None:
            if done == total or time.monotonic() - self._last > (0.1 if self.console.is_terminal else LINE_EVERY):
                self._last = time.monotonic()
                end = "\n" if done == total or not self.console.is_terminal else "\r"
                self.console.print(f"{label} {done}/{total} tensors", end=end)

        return progress

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """The table of who scored what, and where the result is."""
        self._stop()
        average = {} if result["average"] is None else {"plain average": result["average"]}
        rows = {**result["sources"], **average, "evolved merge": result["best"]}
        table = Table(
            "model", "search", "held-out", title=f"{result['evaluations']} evaluations, {result['seconds']:.0f} s"
        )
        for name, row in rows.items():
            style = "bold" if name == "evolved merge" else None
            table.add_row(name, f"{row['search']:.4f}", f"{row['heldout']:.4f}", style=style)
        self.console.print(table)
        self.console.print(f"Merged model: {folder / result['export']}", soft_wrap=True)
        if (page := folder / "report.html").exists():
            self.console.print(f"Report: {page}", soft_wrap=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
