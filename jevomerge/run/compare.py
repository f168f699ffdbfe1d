"""`jevomerge compare`: show several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jevomerge.checkpoint.files import expanded, write_atomically
from jevomerge.errors import InputError
from jevomerge.reports.compare import Entry, compare_page, find_runs, make_entries, read_runs
from jevomerge.reports.page import check_replaceable


def compare(runs: Sequence[str | Path], output: str | Path = "compare.html") -> list[Entry]:
    """Write the page of several runs.

    Args:
        runs: two run folders or more, finished or not; of several stages each is a run.
        output: the page.

    Returns:
        a row of the table for each.

    Raises:
        InputError: for a folder that is no run, fewer than two runs, or a file in the way that is no report.
    """
    page = expanded(output)
    check_replaceable(page)
    found = find_runs([expanded(run) for run in runs])
    if len(found) < 2:
        raise InputError("compare: give two runs or more, each once")
    entries = make_entries(read_runs(found))
    write_atomically(page, compare_page(entries))
    return entries
