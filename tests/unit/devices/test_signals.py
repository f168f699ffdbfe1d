"""Ctrl-C and SIGTERM arrive, once and at a safe point, wherever the main thread was."""

import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from jevomerge.devices.signals import heeded, safe_point


class Told:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def in_a_callback():
    def told(phase, _):
        gc.callbacks.remove(told)
        signal.raise_signal(signal.SIGTERM)

    gc.callbacks.append(told)
    gc.collect()


@pytest.mark.parametrize("where", [in_a_callback, Told, lambda: signal.raise_signal(signal.SIGTERM)])
def test_a_signal_is_heeded_at_the_next_safe_point(where):
    """In the first two places an exception would be ignored."""
    passed = []

    def work():
        with heeded():
            where()
            passed.append("where it came")
            safe_point()
            passed.append("the safe point")

    with pytest.raises(SystemExit) as ended:
        work()
    assert passed == ["where it came"]
    assert ended.value.code == 128 + signal.SIGTERM
    safe_point()  # it has had its effect


def test_the_end_of_the_block_is_a_safe_point():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    with pytest.raises(KeyboardInterrupt), heeded():
        signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_other_handlers_are_left_alone():
    came = []
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            safe_point()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert came == [signal.SIGTERM]


BUSY = """
import jax
from jevomerge.devices.signals import heeded, safe_point
forever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, lambda x: x * 0.5, x)).lower(1.0).compile()
with heeded():
    print("begun", flush=True)
    forever(1.0).block_until_ready()
"""


def test_the_second_ends_what_runs_no_python():
    """Two that come together are one: `timeout` sends as many."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
