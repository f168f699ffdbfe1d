"""Ctrl-C and SIGTERM: they wait for a point where stopping loses nothing, and a second one ends the process at once.

    with heeded():
        for batch in batches:
            safe_point()        # here KeyboardInterrupt or SystemExit(143) is raised, if a signal came
            ...

Python runs a signal's handler wherever the main thread is. In a callback of the garbage collector (JAX has one), in a
`__del__`, or below code that is not Python, an exception is printed and forgotten or becomes another one, and the
program goes on. So the handler raises none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

# What they do where nobody cares.
USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
COPIES = 0.1  # seconds: `timeout` sends a signal to the process, and to its group as well
FIRST = b"\njevomerge: stopping where nothing is lost by it; the same again ends at once\n"
_pending: list[int] = []


def safe_point() -> None:
    """Raise what a signal asks for, if one came; for loops whose turns take a while."""
    if _pending and threading.current_thread() is threading.main_thread():
        number = _pending.pop()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """The signals that would end the process wait for safe points of the block, of which its end is one.

    Those that are ignored, or handled by the program that this is part of, are left alone.
    """
    in_main = threading.current_thread() is threading.main_thread()  # which alone runs handlers
    mine = [number for number, usual in USUAL.items() if in_main and signal.getsignal(number) is usual]
    if not mine:
        yield
        return
    _pending.clear()
    receive, send = os.pipe()
    os.set_blocking(send, False)
    earlier = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(receive,), daemon=True).start()
    for number in mine:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, USUAL[number])
        signal.set_wakeup_fd(earlier)
        os.close(send)
    safe_point()


def _note(number: int, _: object) -> None:
    if not _pending:
        _pending.append(number)
        with contextlib.suppress(OSError):
            os.write(2, FIRST)  # a handler must not print: it may have interrupted that


def _end_at_the_second(receive: int) -> None:
    """Read the signals that come, also while the main thread runs no Python and therefore no handlers."""
    came: float | None = None
    while number := os.read(receive, 1):
        if number[0] in USUAL:
            if came is not None and time.monotonic() - came > COPIES:
                os._exit(128 + number[0])
            came = came or time.monotonic()
    os.close(receive)
