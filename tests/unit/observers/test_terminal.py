"""What a person sees of a run: the bar, the lines, the time that is left."""

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from jevomerge.observers import terminal as console
from jevomerge.observers.observer import SILENT
from jevomerge.observers.terminal import Terminal, duration, remaining


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is told to go on."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def watch(clock, reports, *, terminal, total=100):
    """What is shown of reports [(seconds later, done)]."""
    shown = io.StringIO()
    watcher = Terminal(Console(file=shown, force_terminal=terminal, width=100))
    for later, done in reports:
        clock[0] += later
        watcher.evaluated(done, total, 0.75, 0.5)
    watcher._stop()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())


def test_lines_where_there_is_no_terminal(clock):
    # Resumed at 50; the evaluations of large models take minutes, those of copies no time.
    reports = [(600, 51), (60, 52), (60, 53), (0, 60), (60, 61), (60, 62)]
    lines = watch(clock, reports, terminal=False).splitlines()
    assert lines[0] == "evaluation 51/100  best 0.7500  mean 0.5000"  # compiling says nothing of the pace
    assert lines[1] == "evaluation 52/100  best 0.7500  mean 0.5000  48:00 left"
    assert lines[-1] == f"evaluation 62/100  best 0.7500  mean 0.5000  {duration(38 * 240 / 11)} left"
    assert len(lines) == 5
    assert watch(clock, [(1, 1), (1, 2), (1, 3)], terminal=False).count("\n") == 1  # not a line for each
    assert "3/3" in watch(clock, [(1, 1), (1, 2), (1, 3)], terminal=False, total=3)


def test_a_bar_in_a_terminal(clock):
    shown = watch(clock, [(600, 51), (60, 52)], terminal=True)
    assert re.search(r"52/100 best 0\.7500  mean 0\.5000 .* 48:00 left", shown)


def test_generations_and_the_best_source():
    shown = io.StringIO()
    watcher = Terminal(Console(file=shown, width=200))
    watcher.searching(12, 0.25)
    watcher.evaluated(25, 300, 0.75, 0.5)
    assert shown.getvalue() == ("evaluation 25/300  generation 3/25  best 0.7500  source 0.2500  mean 0.5000\n")


def test_a_bar_fits_into_a_small_terminal(clock):
    shown = io.StringIO()
    watcher = Terminal(Console(file=shown, force_terminal=True, width=80))
    watcher.searching(12, 0.25)
    for done in (299, 300):
        clock[0] += 60
        watcher.evaluated(done, 2400, 0.75, 0.5)
    watcher._stop()
    (line,) = {line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).splitlines() if " left" in line}
    assert "300/2400 generation 25/200  best 0.7500  source 0.2500 " in line
    assert line.rstrip().endswith("1 d 11 h left")


def test_nothing_is_known_yet():
    shown = io.StringIO()
    Terminal(Console(file=shown)).evaluated(1, 9, -float("inf"), float("nan"))
    assert shown.getvalue() == "evaluation 1/9\n"
    assert remaining([(0.0, 5)], 10) is None


def test_each_stage_has_a_pace_of_its_own(clock):
    shown = io.StringIO()
    watcher = Terminal(Console(file=shown, width=100))
    for done in (98, 99, 100):
        clock[0] += 1
        watcher.evaluated(done, 100, 0, 0)
    watcher.stage("stage [two]")
    for done in (1, 2):
        clock[0] += 30
        watcher.evaluated(done, 10, 0, 0)
    assert shown.getvalue().splitlines()[-3:] == [
        "stage [two] ...",
        "evaluation 1/10  best 0.0000  mean 0.0000",
        "evaluation 2/10  best 0.0000  mean 0.0000  4:00 left",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (100000, "1 d 3 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_lines_are_printed_as_they_are(capsys):
    """Whatever looks like markup, an emoji, or is long: names of files and models may."""
    text = "a:b:c [bold] :smile: 0.25 " + "x" * 200
    Terminal().line(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_table_is_not_squeezed_where_there_is_no_terminal(capsys):
    table = Table("run", "page")
    table.add_row("one", "x" * 120)
    Terminal().table(table)
    assert "x" * 120 in capsys.readouterr().out


def test_whoever_shows_nothing(capsys, tmp_path):
    SILENT.stage("a")
    SILENT.line("b")
    SILENT.counter("c")(1, 2)
    SILENT.searching(1, 0.5)
    SILENT.evaluated(1, 2, 0.5, 0.5)
    assert SILENT.ask("a?", ["b", "c"], "b") == "b"
    SILENT.scored(0, {})
    SILENT.finished({}, tmp_path)
    assert capsys.readouterr() == ("", "")


def test_names_are_no_markup(capsys):
    table = Table("model", title="[bold]title[/bold]")
    table.add_row("[/red] :boom: [link=x]y[/link]")
    Terminal().table(table)
    shown = capsys.readouterr().out
    assert "[/red] :boom: [link=x]y[/link]" in shown
    assert "[bold]title[/bold]" in shown
