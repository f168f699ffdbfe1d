"""What a person sees: live progress, tables, messages."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.prompt import Prompt
from rich.table import Column, Table
from rich.text import Text

from jevomerge.observers.observer import Observer, outcome_name

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal
WIDTH = 200  # letters of a table where there is no terminal
PACE = 100  # reports from which the time that is left is estimated


def remaining(pace: Sequence[tuple[float, int]], total: int) -> float | None:
    """Seconds until `total` evaluations are done, by the pace of [(time, done)]; None: not known yet.

    What was done before the first report, by an earlier process or while programs were compiled, says nothing. (Rich's
    own column forgets what is older than half a minute, a single evaluation of a large model.)
    """
    (began, before), (now, done) = pace[0], pace[-1]
    return (total - done) * (now - began) / (done - before) if done > before else None


def duration(seconds: float) -> str:
    """3725 -> "1:02:05", 100000 -> "1 d 3 h"."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02}"
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours}:{minutes % 60:02}:{seconds:02}"


class TimeLeft(ProgressColumn):
    """What is left until the task's field `ends`, counting down between evaluations."""

    def render(self, task: Task) -> Text:
        """So much of it."""
        ends = task.fields["ends"]
        return Text("" if ends is None else f"{duration(max(0.0, ends - time.monotonic()))} left")


class Terminal(Observer):
    """Shows what a command does: a progress bar in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None):
        """Write to `console`, by default standard output, where a name such as "[/red]" is no markup."""
        self.console = console or Console(highlight=False, emoji=False, markup=False)
        self._progress: Progress | None = None
        self._last = 0.0
        self._pace = deque[tuple[float, int]](maxlen=PACE)
        self._size, self._source = 0, math.nan  # of a generation; what the best source scores

    def stage(self, text: str) -> None:
        """Say what happens next."""
        self._stop()
        self.console.print(f"{text} ...", style="dim", markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Something that is worth knowing and needs no change."""
        self.console.print(f"note: {text}", markup=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """As it is."""
        self.console.print(text, markup=False, soft_wrap=True)

    def ask(self, question: str, choices: Sequence[str], guess: str | None) -> str | None:
        """Ask until one of them is given, in a terminal; Enter takes the guess, and so does its absence."""
        if len(choices) < 2 or not (self.console.is_terminal and sys.stdin.isatty()):
            return guess
        default: Any = ... if guess is None else guess
        try:
            return Prompt.ask(Text(question), console=self.console, choices=list(choices), default=default)
        except EOFError:  # Ctrl-D
            return guess

    def table(self, table: Table) -> None:
        """A table, as wide as it has to be where there is no terminal."""
        wide = Console(file=self.console.file, highlight=False, emoji=False, markup=False, width=WIDTH)
        (self.console if self.console.is_terminal else wide).print(table)

    def searching(self, size: int, source: float) -> None:
        """To be shown beside what candidates score."""
        self._size, self._source = size, source

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """Move the bar, or print a line every few seconds."""
        now = time.monotonic()
        self._pace.append((now, done))
        left = remaining(self._pace, total)
        scores = {"best": best, "source": self._source, "mean": mean}
        if self.console.is_terminal and math.isfinite(self._source):
            del scores["mean"]  # 80 letters have no room for all
        status = "  ".join(f"{name} {x:.4f}" for name, x in scores.items() if math.isfinite(x))
        if self._size:
            status = f"generation {-(-done // self._size)}/{-(-total // self._size)}  {status}"
        if not self.console.is_terminal:
            if now - self._last > LINE_EVERY or done == total:
                self._last = now
                parts = (f"evaluation {done}/{total}", status, f"{duration(left)} left" if left else "")
                self.console.print("  ".join(filter(None, parts)), soft_wrap=True)
            return
        fields: dict[str, Any] = {"status": status, "ends": None if left is None else now + left}
        if self._progress is None:
            bar = BarColumn(None, table_column=Column(ratio=1))  # what the others leave
            columns = (bar, MofNCompleteColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
            self._progress = Progress(*columns, TimeLeft(), console=self.console, expand=True)
            self._progress.add_task("evolving", total=total, completed=done, **fields)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, **fields)

    def counter(self, label: str, unit: str = "tensors") -> Callable[[int, int], None]:
        """A line that counts them."""

        def progress(done: int, total: int) -> None:
            if done == total or time.monotonic() - self._last > (0.1 if self.console.is_terminal else LINE_EVERY):
                self._last = time.monotonic()
                end = "\n" if done == total or not self.console.is_terminal else "\r"
                self.console.print(f"{label} {done}/{total} {unit}", end=end)

        return progress

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """The table of who scored what, and where the result is."""
        self._stop()
        average = {} if result["average"] is None else {"plain average": result["average"]}
        outcome = outcome_name(result["best"].get("source"))
        rows = {**result["sources"], **average, outcome: result["best"]}
        table = Table(
            "model", "search", "held-out", title=f"{result['evaluations']} evaluations, {result['seconds']:.0f} s"
        )
        for name, row in rows.items():
            style = "bold" if name == outcome else None
            table.add_row(name, f"{row['search']:.4f}", f"{row['heldout']:.4f}", style=style)
        self.console.print(table)
        for note in result.get("notes", ()):  # not in runs of earlier versions
            self.line(note)
        self.console.print(f"Merged model: {folder / result['export']}", soft_wrap=True)
        if front := result.get("front"):
            names = [point["export"] for point in front if "export" in point]
            self.console.print(f"Front: {len(front)} points, of which here: {', '.join(names)}", soft_wrap=True)
        if (page := folder / "report.html").exists():
            self.console.print(f"Report: {page}", soft_wrap=True)

    def stages_finished(self, results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
        """Nothing: each stage has had its table."""

    def _stop(self) -> None:
        self._pace.clear()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
