"""Signals at random moments of a search: every one is heeded, and what is left goes on as if there had been none."""

import subprocess
import sys

import pytest

# Ends one search again and again, at random moments, in a process that collects garbage all the time.
RESTLESS = """
import gc, os, random, signal, sys, threading, time
import numpy as np
import jevomerge as jm
from jevomerge.observers.observer import SILENT
count, folder, rng = int(sys.argv[1]), sys.argv[2], random.Random(0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what they start in the background
gc.set_threshold(30, 1000, 1000)
trees = [{"w": np.zeros(3, np.float32)}, {"w": np.ones(3, np.float32)}]
model = jm.own_model(lambda params, x: params["w"] * x, trees[0])

def miss(model, params):
    return -abs(model.apply(params, 1.0) - 0.3)

def evolve(output, evaluations, resume):
    return jm.evolve(
        models=trees, model=model, recipe={"merge_method": "task_arithmetic", "base_model": "0"},
        genome={"weight": [0, 1]}, fitness=miss,
        search={"strategy": "random", "evaluations": evaluations, "population": 5, "checkpoint_every": 1000},
        output=output, observer=SILENT, resume=resume,
    )

def disturb(number, sent):
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.001)
    log = f"{folder}/evaluations.jsonl"
    if rng.random() < 0.8:  # while it searches; else in no matter what
        size = lambda: os.path.getsize(log) if os.path.exists(log) else 0
        before = size()
        while size() == before:
            time.sleep(0.001)
    time.sleep(rng.random() ** 2)
    sent.append(time.monotonic())
    os.kill(os.getpid(), number)

lost, slowest = 0, 0.0
for i in range(count):
    sent, number = [], rng.choice([signal.SIGTERM, signal.SIGINT])
    thread = threading.Thread(target=disturb, args=(number, sent))
    thread.start()
    resume = os.path.exists(f"{folder}/config.yaml")
    try:
        evolve(folder, 1_000_000, resume)
    except SystemExit as ended:
        assert (number, ended.code) == (signal.SIGTERM, 143)
    except KeyboardInterrupt:
        assert number == signal.SIGINT
    took = time.monotonic() - sent[0]
    thread.join()
    slowest = max(slowest, took)
    lost += took > 30
    if i % 25 == 24 or i == count - 1:  # it ends as one that nobody disturbed
        with open(f"{folder}/evaluations.jsonl") as file:
            evaluations = -(-sum(1 for _ in file) // 5) * 5 + 5
        found = evolve(folder, evaluations, True)
        alone = evolve(folder + "-alone", evaluations, False)
        np.testing.assert_array_equal(found.archive.genome, alone.archive.genome)
        assert found.genome == alone.genome
        folder += "-next"
print(f"{count} signals, {lost} lost, the slowest was heeded after {slowest:.1f} s")
assert not lost
"""


@pytest.mark.parametrize("count", [3, pytest.param(450, marks=pytest.mark.slow)])
def test_no_signal_is_lost(count, tmp_path):
    """The same safe points, hundreds of times in one process; a lost one would let it run on until the time is up."""
    arguments = [sys.executable, "-c", RESTLESS, str(count), str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600 + 10 * count)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "0 lost" in done.stdout
    print(done.stdout)
