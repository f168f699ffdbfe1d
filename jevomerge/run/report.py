"""`jevomerge report` and `jevomerge watch`: show a run on one page, as it is or as it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jevomerge.checkpoint.files import expanded
from jevomerge.devices.signals import safe_point
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.reports.page import write_report
from jevomerge.reports.server import HOST, Pages, serve


def report(run: str | Path, output: str | Path | None = None) -> Path:
    """Write a run's page, path.png if paths were searched, sheet.png if pictures were drawn.

    Of several stages each gets a page, and there is one that links them.

    Args:
        run: a run folder, finished or not.
        output: where to write the page, without the pictures; by default report.html in the folder.

    Returns:
        the page.

    Raises:
        InputError: for a folder that is no run, or a file in the way that is no report.
    """
    return write_report(expanded(run), None if output is None else expanded(output))


def watch(runs: Sequence[str | Path], port: int = 0, *, observer: Observer = SILENT) -> None:
    """Serve the page of a run, or of several, to browsers on this machine until Ctrl-C; nothing is written.

    Args:
        runs: run folders, finished or not; of several stages or seeds each is a run.
        port: of 127.0.0.1; 0: any that is free.
        observer: is told where the page is.

    Raises:
        InputError: for a folder that is no run, or a port that is taken.
    """
    with serve(Pages([expanded(run) for run in runs]), port) as server:
        server.timeout = 0.3  # seconds, after which a signal is heeded
        observer.line(f"http://{HOST}:{server.server_port}/ shows what happens; Ctrl-C ends this, and nothing else")
        try:
            while True:
                server.handle_request()
                safe_point()
        except KeyboardInterrupt:
            return
