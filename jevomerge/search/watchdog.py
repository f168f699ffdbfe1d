"""A limit on how long something takes that cannot be interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Reads lines: what is being done, or nothing. The silence after the former is limited.
SCRIPT = """
import os, select, signal, sys
limit, watched, doing = float(sys.argv[1]), int(sys.argv[2]), b""
while True:
    if not select.select([0], [], [], limit if doing else None)[0]:
        os.write(2, b"\\njevomerge: " + doing + b"\\n")
        os.kill(watched, signal.SIGKILL)
        break
    if not (lines := os.read(0, 1 << 16)):
        break
    doing = lines.split(b"\\n")[-2]
"""


class Watchdog:
    """A process that ends this one, with exit status 137, when something in it takes too long.

    Nothing inside could: a running XLA program cannot be interrupted, and a regular expression lets no thread run.
    """

    def __init__(self, limit: float | None):
        """`limit` in seconds; None: nothing is watched."""
        self._process = None
        if limit is not None:
            command = [sys.executable, "-I", "-S", "-c", SCRIPT, str(limit), str(os.getpid())]
            # In a session of its own, Ctrl-C does not reach it; it ends with its standard input.
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)

    def __enter__(self) -> Watchdog:
        """For `with`: nothing is watched after the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Send it away."""
        if self._process is not None:
            self._process.communicate()

    @contextmanager
    def watching(self, last_words: str) -> Iterator[None]:
        """If the block takes longer than the limit, the process ends with this one line."""
        self._tell(last_words)
        try:
            yield
        finally:
            self._tell("")

    def _tell(self, line: str) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n".encode())
