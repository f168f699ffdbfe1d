"""The files of a run folder under damage: what was written is read as it was, or not at all."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import chex
import numpy as np
import pytest

from jevomerge.devices.signals import heeded
from jevomerge.search.archive import Archive, locked, read_archive
from jevomerge.search.snapshots import Snapshots


def record(generation, member, fitness=0.5):
    return {
        "generation": generation,
        "member": member,
        "genome": [0.25, member / 7],
        "fitness": fitness,
        "tie_break": None,
        "seconds": 0.5,
        "text": 'ä", ',
    }


RECORDS = [record(g, m) for g in range(3) for m in range(4)]


@pytest.fixture
def log(tmp_path):
    with Archive(tmp_path / "evaluations.jsonl") as archive:
        for r in RECORDS:
            archive.append([r])
    return tmp_path / "evaluations.jsonl"


def test_a_flipped_bit_costs_the_lines_it_touches(log):
    """Whichever of the file's bits it is; that of a line end is part of two lines."""
    whole = log.read_bytes()
    for i in range(len(whole)):
        data = bytearray(whole)
        data[i] ^= 1 << random.Random(i).randrange(8)
        log.write_bytes(data)
        found = read_archive(log)
        assert len(RECORDS) - 2 <= len(found) < len(RECORDS)
        assert all(r in RECORDS for r in found)


def test_a_file_cut_short_anywhere_goes_on(log):
    whole = log.read_bytes()
    for i in range(0, len(whole), 7):
        log.write_bytes(whole[:i])
        with Archive(log) as archive:
            count = len(archive.records)
            assert archive.damaged == 0
            archive.append(RECORDS[count:])
        assert log.read_bytes() == whole


def test_the_later_of_two_lines_counts(log):
    with Archive(log) as archive:
        archive.append([record(1, 2, fitness=0.75)])
        assert archive.find(1, 2, RECORDS[6]["genome"])["fitness"] == 0.75
        assert archive.find(1, 2, [0.0, 0.0]) is None
    assert read_archive(log) == [*RECORDS[:6], record(1, 2, fitness=0.75), *RECORDS[7:]]


def test_what_the_archive_holds(log):
    with Archive(log) as archive:
        assert archive.holds(3, 4)
        assert not archive.holds(4, 4)
        assert not archive.holds(3, 5)


def test_what_was_scored_before_is_found_by_a_smaller_generation_too(log):
    """In a log that was just opened, where a generation of other size has not asked before."""
    genomes = np.array([[0.25, 3 / 7], [0.25, 1 / 9], [0.25, 2 / 7]])
    for population, expected in ((genomes, {0: (0, 3), 2: (0, 2)}), (genomes[:1], {0: (0, 3)})):
        with Archive(log) as archive:
            found = archive.before(3, lambda rows: rows, population)
        assert {m: (r["generation"], r["member"]) for m, r in found.items()} == expected


class Counting(dict):
    """A record that counts how often something in it is looked up."""

    looks = 0

    def __getitem__(self, key):
        Counting.looks += 1
        return super().__getitem__(key)


def test_looking_back_costs_the_same_in_every_generation():
    """Counts, not seconds: 20,000 evaluations cost what 100 times 200 cost."""

    def counts(generations):
        Counting.looks, archive, rows = 0, Archive(None), []

        def distinct(genomes):
            rows.append(len(genomes))
            return genomes

        for generation in range(generations):
            archive.before(generation, distinct, np.full((20, 2), -1.0))
            archive.learn([Counting(record(generation, member)) for member in range(20)], 0)
        return np.array([Counting.looks, sum(rows)])

    assert (counts(1000) <= 1.1 * 100 * counts(10)).all()


def states(count):
    rng = np.random.default_rng(0)
    return [
        {"mean": rng.normal(size=5), "C": rng.normal(size=(5, 5)).astype(np.float32), "generation": np.asarray(i)}
        for i in range(count)
    ]


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 4 and 6."""
    notes = []
    checkpoints = Snapshots(tmp_path / "saved", notes.append)
    for step in (2, 4, 6):
        checkpoints.save(step, states(7)[step])
    assert notes == []
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["4", "6"]
    return tmp_path / "saved"


def test_damage_is_noticed_in_every_file(saved, tmp_path):
    files = sorted(p.relative_to(saved) for p in (saved / "6").rglob("*") if p.is_file())
    assert len(files) > 5
    rng = random.Random(0)
    for file in files:
        copy = shutil.copytree(saved, tmp_path / "copy")
        data = bytearray((copy / file).read_bytes())
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (copy / file).write_bytes(data or b"x")
        notes = []
        step, state = Snapshots(copy, notes.append).load(states(1)[0], lambda _: True)
        assert (step, notes) == (4, ["checkpoint 6 cannot be used and is ignored: it is damaged"])
        chex.assert_trees_all_equal(state, states(7)[4], strict=True)
        shutil.rmtree(copy)


def test_a_step_that_is_not_known_is_passed_over_and_replaced(saved):
    notes = []
    checkpoints = Snapshots(saved, notes.append)
    assert checkpoints.load(states(1)[0], lambda step: step < 6)[0] == 4
    assert "checkpoint 6" in notes[0]
    checkpoints.save(5, states(7)[5])
    assert sorted(p.name for p in saved.iterdir()) == ["4", "5"]
    step, state = Snapshots(saved, notes.append).load(states(1)[0], lambda _: True)
    assert step == 5
    chex.assert_trees_all_equal(state, states(7)[5], strict=True)


def test_an_emptied_checkpoint_is_ignored(saved):
    for path in (saved / "6").rglob("*"):
        if path.is_file():
            path.unlink()
    (saved / "hello").write_text("not ours")
    checkpoints = Snapshots(saved, lambda _: None)
    assert checkpoints.load(states(1)[0], lambda _: True)[0] == 4
    checkpoints.save(6, states(7)[6])
    assert sorted(p.name for p in saved.iterdir()) == ["4", "6", "hello"]
    assert Snapshots(saved, pytest.fail).load(states(1)[0], lambda _: True)[0] == 6


def test_of_another_shape_is_ignored(saved):
    notes = []
    other = states(1)[0] | {"other": np.zeros(3)}
    step, state = Snapshots(saved, notes.append).load(other, lambda _: True)
    assert step == 0
    assert state is other
    assert len(notes) == 2


def test_a_signal_waits_for_the_save(tmp_path):
    """Sent when the checkpoint's first file appears, it arrives when the checkpoint is whole."""
    folder = tmp_path / "saved"
    sender = """
import os, pathlib, signal, sys, time
while not any(pathlib.Path(sys.argv[1]).glob("*-tmp*")): time.sleep(0.001)
os.kill(int(sys.argv[2]), signal.SIGTERM)
"""
    process = subprocess.Popen([sys.executable, "-c", sender, str(folder), str(os.getpid())])

    def save():
        with heeded():
            Snapshots(folder, pytest.fail).save(1, {"large": np.zeros(10_000_000)})
            process.wait()

    with pytest.raises(SystemExit):
        save()
    assert Snapshots(folder, pytest.fail).load({"large": np.ones(10_000_000)}, lambda _: True)[0] == 1


def test_a_lock_dies_with_its_process(tmp_path):
    holder = """
import sys, time
from pathlib import Path
from jevomerge.search.archive import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(1000)
"""
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another process"), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        pass


HANGING = {
    "a regular expression": "import re; re.match(r'(a+)+$', 'a' * 100 + 'b')",
    "an XLA program": "jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, lambda x: x * 0.5, x))(1.0)"
    ".block_until_ready()",
}
WATCHED = """
import sys, time
import jax
from jevomerge.search.watchdog import Watchdog
with Watchdog(float(sys.argv[1])) as watchdog:
    for i in range(5):
        with watchdog.watching(f"short {i}"):
            pass
    time.sleep(1.5)
    print("still here", flush=True)
    with watchdog.watching("step 7 hangs"):
        exec(sys.argv[2])
print("done")
"""


@pytest.mark.parametrize("what", HANGING)
def test_the_watchdog_ends_what_hangs(what):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WATCHED, "1", HANGING[what]], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "still here\n")
    assert done.stderr == "\njevomerge: step 7 hangs\n"
    assert time.monotonic() - began < 60


def test_the_watchdog_leaves_the_rest_alone():
    done = subprocess.run([sys.executable, "-c", WATCHED, "1", "pass"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "still here\ndone\n", "")
