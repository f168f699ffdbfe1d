"""`jevomerge report`: show a run on one page."""

from __future__ import annotations

from pathlib import Path

from jevomerge.checkpoint.files import expanded
from jevomerge.reports.page import write_report


def report(run: str | Path, output: str | Path | None = None) -> Path:
    """Write a run's page, and path.png if paths were searched; of several stages a page each and one that links them.

    Args:
        run: a run folder, finished or not.
        output: where to write the page, without path.png; by default report.html in the folder.

    Returns:
        the page.

    Raises:
        InputError: for a folder that is no run, or a file in the way that is no report.
    """
    return write_report(expanded(run), None if output is None else expanded(output))
