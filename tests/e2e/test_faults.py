"""Faults, real ones: kills, full disks and damaged files.

Whatever happens, a run continues or stops with the reason, and a resumed one ends as if nothing had happened.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from jevomerge.cli import main
from jevomerge.search.archive import read_archive

EVALUATIONS, POPULATION = 200, 10


def configure(path, **search):
    """Change the search of a config, or of a run that is to be resumed."""
    text = path.read_text()
    for key, value in search.items():
        text, count = re.subn(rf"\b{key}: [\w.]+", f"{key}: {value}", text)
        assert count == 1, key
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def problem(siblings, tmp_path_factory):
    """The siblings, with a search of 20 generations."""
    folder = tmp_path_factory.mktemp("faults") / "siblings"
    shutil.copytree(siblings, folder)
    configure(folder / "run.yaml", evaluations=EVALUATIONS)
    return folder


@pytest.fixture(scope="module")
def undisturbed(problem, tmp_path_factory):
    """The outcome of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(["evolve", str(problem / "run.yaml"), "--output", str(folder), "--debug"]) == 0
    return outcome(folder)


@pytest.fixture(scope="module")
def half_done(problem, tmp_path_factory):
    """A run that stopped after 10 of its 20 generations, with checkpoints of the last and of the eighth."""
    folder = tmp_path_factory.mktemp("half") / "run"
    config = configure(shutil.copy(problem / "run.yaml", problem / "half.yaml"), evaluations=EVALUATIONS // 2)
    assert main(["evolve", str(config), "--output", str(folder), "--debug"]) == 0
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "best")
    configure(folder / "config.yaml", evaluations=EVALUATIONS)
    assert steps(folder) == [8, 10]
    return folder


@pytest.fixture
def half(half_done, tmp_path):
    return shutil.copytree(half_done, tmp_path / "half")


def steps(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir())


def outcome(folder):
    """All that must not depend on what happened on the way."""
    result = json.loads((folder / "result.json").read_text())
    records = read_archive(folder / "evaluations.jsonl")
    for timed in (result, *records):
        del timed["seconds"]
    del result["ran_on"]  # this process has more devices
    exported = {p.name: p.read_bytes() for p in (folder / "best").iterdir()}
    for name in ("recipe.yaml", "README.md", "bom.cdx.json"):  # models by their paths from there; a digest of these
        exported[name] = re.sub(rb'(\.\./)+|"(serialNumber|value)": "[^"]{40,}"', b"", exported[name])
    assert "model.safetensors" in exported
    return result, records, {name: hashlib.sha256(content).hexdigest() for name, content in exported.items()}


def resumed(folder, capsys):
    """What a resumed run prints, if it ends well."""
    capsys.readouterr()
    status = main(["evolve", "--resume", str(folder)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def stopped(capsys, status, *arguments):
    """The one message of a command that ends with `status`."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == status
    message = capsys.readouterr().err
    assert message.startswith("jevomerge: ")
    return message


def command(*arguments, module="jevomerge", **environment):
    """A process of its own."""
    environment = os.environ | environment
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# --- damaged files ------------------------------------------------------------------------------------------


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def damage(newest, how, rng):
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
    match how:
        case "flipped":
            flip(rng.choice(files), rng)
        case "truncated":
            path = rng.choice(files)
            os.truncate(path, rng.randrange(path.stat().st_size))
        case "renamed":
            newest.rename(newest.with_name("9"))


@pytest.mark.parametrize("how", [pytest.param(how, marks=pytest.mark.slow) for how in ("flipped", "renamed")])
def test_a_damaged_checkpoint_gives_way_to_the_older_one(how, half, undisturbed, capsys):
    damage(half / "checkpoints" / "10", how, random.Random(0))
    (half / "checkpoints" / "mine").mkdir()
    out = resumed(half, capsys)
    assert f"checkpoint {9 if how == 'renamed' else 10} cannot be used and is ignored" in out
    assert "checkpoint 8" not in out
    assert outcome(half) == undisturbed
    assert (half / "checkpoints" / "mine").exists()
    (half / "checkpoints" / "mine").rmdir()
    assert steps(half) == [18, 20]


@pytest.mark.slow
def test_without_a_checkpoint_the_search_is_replayed(half, undisturbed, capsys):
    for step in steps(half):
        damage(half / "checkpoints" / str(step), "truncated", random.Random(step))
    before = (half / "evaluations.jsonl").read_bytes()
    assert "checkpoint 8 cannot be used" in resumed(half, capsys)
    assert outcome(half) == undisturbed
    assert (half / "evaluations.jsonl").read_bytes().startswith(before)  # nothing was evaluated again


def test_whole_checkpoints_are_used_in_silence(half, undisturbed, capsys):
    assert "cannot be used" not in resumed(half, capsys)
    assert outcome(half) == undisturbed


def test_damaged_evaluations_are_made_again(half, undisturbed, capsys):
    log, rng = half / "evaluations.jsonl", random.Random(0)
    for _ in range(5):
        flip(log, rng)
    before = log.read_bytes()
    lost = EVALUATIONS // 2 - len(read_archive(log))
    assert 1 <= lost <= 10
    assert "evaluations that are missing are made again" in resumed(half, capsys)
    assert outcome(half) == undisturbed
    assert log.read_bytes().startswith(before.rpartition(b"\n")[0])
    number = EVALUATIONS - 1
    assert main(["export", str(half), "--genome", str(number), str(half / "last")]) == 0
    flip(log, random.Random(1))
    assert "evaluations.jsonl has" in stopped(capsys, 2, "export", half, "--genome", number + 1, half / "none")


def test_groups_are_scored_as_they_were(problem, tmp_path, capsys):
    """Of a group of four, of which only some are lost: 10 members are 4 + 4 + 2."""
    config = shutil.copy(problem / "run.yaml", problem / "groups.yaml")
    configure(config, evaluations=30)
    config.write_text(config.read_text() + "members_per_device: 4\n")
    run = tmp_path / "run"
    assert main(["evolve", str(config), "--output", str(run), "--debug"]) == 0
    expected = outcome(run)
    (run / "result.json").unlink()
    log = (run / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for i, line in enumerate(log) if i not in (2, 9, 15, 16)]
    (run / "evaluations.jsonl").write_bytes(b"".join(kept))
    resumed(run, capsys)
    assert outcome(run) == expected
    found = (run / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    assert found[: len(kept)] == kept
    assert len(found) == 30  # nothing twice


# --- full disks ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB, and a function that leaves so many bytes of it free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("may not mount a disk")

    def leave(free):
        filler = disk / "filler"
        filler.unlink(missing_ok=True)
        if free is not None:
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - free))

    yield disk, leave
    subprocess.run(["umount", disk], check=True)


def when_it_begins(run, do):
    """Do something as soon as a run evaluates."""

    def wait():
        while not (run / "evaluations.jsonl").exists():
            time.sleep(0.001)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize(("free", "goal"), [(60_000, "log"), pytest.param(700_000, "export", marks=pytest.mark.slow)])
def test_a_disk_that_fills_up(free, goal, problem, undisturbed, small_disk, capsys):
    """The log does not fit, or just the model; neither checkpoint does."""
    disk, leave = small_disk
    run = disk / "run"
    filling = when_it_begins(run, lambda: leave(free))
    assert main(["evolve", str(problem / "run.yaml"), "--output", str(run)]) == 2
    filling.join()
    printed = capsys.readouterr()
    assert "checkpoint 2 cannot be written: the disk is full" in printed.out
    assert "Traceback" not in printed.err
    if goal == "log":
        assert "the disk is full" in printed.err
        assert f"free some space; continue with `jevomerge evolve --resume {run}`" in printed.err
        assert not (run / "evaluations.jsonl").read_bytes().endswith(b"\n")  # torn
        assert 10 < len(read_archive(run / "evaluations.jsonl")) < EVALUATIONS
    else:
        assert "the model needs" in printed.err
        assert len(read_archive(run / "evaluations.jsonl")) == EVALUATIONS
    leave(None)
    resumed(run, capsys)
    assert outcome(run) == undisturbed


def test_a_disk_that_is_full_before(problem, small_disk, capsys):
    disk, leave = small_disk
    leave(700_000)
    message = stopped(capsys, 2, "evolve", problem / "run.yaml", "--output", disk / "run")
    assert "the model that comes out needs" in message
    assert "loading" not in message
    assert not (disk / "run").exists()


@contextlib.contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(problem, undisturbed, tmp_path, capsys):
    run = tmp_path / "run"
    with largest_file(50_000):
        message = stopped(capsys, 2, "evolve", problem / "run.yaml", "--output", run)
    assert "free some space; continue with" in message
    resumed(run, capsys)
    assert outcome(run) == undisturbed


# --- kills --------------------------------------------------------------------------------------------------


def lines(run):
    log = run / "evaluations.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.slow
def test_a_run_is_left_alone_until_it_is_terminated(problem, undisturbed, tmp_path, capsys):
    """Two processes cannot write one folder; SIGTERM saves what is finished and says how to continue."""
    run, config = tmp_path / "run", shutil.copy(problem / "run.yaml", problem / "long.yaml")
    process = command("evolve", configure(config, evaluations=100_000, checkpoint_every=100_000), "--output", run)
    try:
        while process.poll() is None and lines(run) < 1:
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)  # it holds its lock, however long the others take
        assert "another process is working on this run" in stopped(capsys, 2, "evolve", "--resume", run)
        assert "exists already" in stopped(capsys, 2, "evolve", config, "--output", run)
        process.send_signal(signal.SIGCONT)
        while process.poll() is None and lines(run) < 35:
            time.sleep(0.01)
        process.terminate()
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert err.endswith(f"jevomerge: terminated; continue with `jevomerge evolve --resume {run}`\n")
    assert "Traceback" not in err
    (step,), count = steps(run), lines(run)
    assert step * POPULATION <= count <= (step + 1) * POPULATION
    assert 35 <= count < EVALUATIONS
    configure(run / "config.yaml", evaluations=EVALUATIONS, checkpoint_every=2)
    assert "cannot be used" not in resumed(run, capsys)
    assert outcome(run) == undisturbed


# Forks a process for every command, which saves it the imports (those that start no threads).
NURSERY = """
import json, os, signal, sys
from orbax.checkpoint import v1
from transformers import AutoTokenizer
from jevomerge.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what they start in the background
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        os.dup2(2, 1)
        sys.argv = ["jevomerge", *json.loads(line)]
        sys.exit(main())
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture
def nursery(tmp_path):
    """(start, status): starts a command and gives its process id; waits for its end and gives its exit status."""
    with (
        (tmp_path / "output").open("w") as output,
        subprocess.Popen(
            [sys.executable, "-c", NURSERY], text=True, bufsize=1, env=dict(os.environ),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
        ) as process,
    ):  # fmt: skip

        def start(*arguments):
            process.stdin.write(json.dumps([str(a) for a in arguments]) + "\n")
            return int(process.stdout.readline())

        def status():
            return int(process.stdout.readline())

        yield start, status
        process.stdin.close()


def kill_at_random(rng, pid, run, numbers):
    """Kill it, or end it, in no matter what, in the search, or in the export; None: it had its result by then."""
    when, number = rng.choices(["whenever", "search", "export"], [4, 4, 2])[0], rng.choice(numbers)
    goal, ends = lines(run) + rng.randint(1, 50), time.monotonic() + 60
    while time.monotonic() < ends and not (run / "result.json").exists():
        exporting = any(run.glob(".best.partial-*")) or (run / "best").exists()
        if {"whenever": True, "search": lines(run) >= goal, "export": exporting}[when]:
            break
        time.sleep(0.02)
    time.sleep(rng.random() * {"whenever": 6, "search": 0.3, "export": 1.5}[when])
    done = True  # unless it is there to be stopped, so that it cannot get its result between the look and the signal
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        done = (run / "result.json").exists()
        for sent in (getattr(signal, f"SIG{number}"), signal.SIGCONT):
            os.kill(pid, sent)
    return None if done else (when, number)


# How a process ends: by the signal itself only before `main` has begun or when it is over.
ENDS = {
    "KILL": {-signal.SIGKILL},
    "TERM": {128 + signal.SIGTERM, -signal.SIGTERM},
    "INT": {1, -signal.SIGINT},
}


def survive(kills, rng, nursery, problem, undisturbed, tmp_path, numbers=("KILL", "TERM")):
    """Kill runs so many times; each ends as the undisturbed one did. Returns how many were killed in what.

    Without a result a run that was killed has not ended well: no signal is lost.
    """
    start, status = nursery
    done, tally, runs = 0, {}, itertools.count()
    while done < kills:
        run = tmp_path / f"run{next(runs)}"
        while not (run / "result.json").exists():
            begun = (run / "config.yaml").exists()
            pid = start(*(("evolve", "--resume", run) if begun else ("evolve", problem / "run.yaml", "--output", run)))
            how = kill_at_random(rng, pid, run, numbers) if done < kills else None
            code = status()
            assert code in (ENDS[how[1]] if how else {0}.union(*ENDS.values())), (how, code)
            if how:
                done += 1
                tally[how] = tally.get(how, 0) + 1
        assert outcome(run) == undisturbed
        logged = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
        assert [r["genome"] for r in logged] == [r["genome"] for r in undisturbed[1]]  # in order, nothing twice
    return tally


def test_killed_and_resumed(nursery, problem, undisturbed, tmp_path):
    survive(2, random.Random(0), nursery, problem, undisturbed, tmp_path)


@pytest.mark.slow
def test_killed_fifty_times(nursery, problem, undisturbed, tmp_path):
    tally = survive(50, random.Random(1), nursery, problem, undisturbed, tmp_path)
    assert [{*words} for words in zip(*tally, strict=True)] == [{"whenever", "search", "export"}, {"KILL", "TERM"}]


@pytest.mark.slow
def test_ended_fifty_times(nursery, problem, undisturbed, tmp_path):
    survive(50, random.Random(2), nursery, problem, undisturbed, tmp_path, numbers=("TERM", "INT"))
