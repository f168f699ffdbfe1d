"""Several processes, two CPU devices each, that meet on this machine: one run, whoever and however many make it."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jevomerge.cli import main


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def launch(arguments, processes, environment=lambda process: {}, devices=2, flags=True):
    """Start `jevomerge evolve` in so many processes."""
    coordinator = f"localhost:{free_port()}"
    started = []
    for i in range(processes):
        joining = ["--coordinator", coordinator, "--num-processes", processes, "--process-id", i] if flags else []
        variables = {"JAX_NUM_CPU_DEVICES": str(devices), **environment(i)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "jevomerge", "evolve", *map(str, [*arguments, *joining])],
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started, timeout=150):
    """[(exit status, standard output, standard error)] of processes."""
    ended = []
    for process in started:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for other in started:
                other.kill()
                other.communicate()  # or a later test finds it unread
            raise
        ended.append((process.returncode, out, err))
    return ended


def done(ended):
    assert [status for status, _, _ in ended] == [0] * len(ended), ended
    return ended


def lines(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def same(folder, other):
    """The same search: genomes and fitness of every candidate, the outcome and its bytes."""
    mine, its = lines(folder), lines(other)
    assert [(r["generation"], r["member"]) for r in mine] == [(r["generation"], r["member"]) for r in its]
    assert None not in [r["fitness"] for r in mine]  # what the death of a process makes of a candidate is no score
    np.testing.assert_allclose([r["genome"] for r in mine], [r["genome"] for r in its], atol=1e-5)
    np.testing.assert_allclose([r["fitness"] for r in mine], [r["fitness"] for r in its], atol=1e-5)
    assert [r["tokens"] for r in mine] == [r["tokens"] for r in its]
    written = [[r["scores"]["first_words"] for r in records] for records in (mine, its)]
    assert written[0] == written[1]
    assert np.ptp(np.mean(written[0], axis=1)) > 0  # some write other words than others
    results = [json.loads((f / "result.json").read_text()) for f in (folder, other)]
    assert results[0]["best"]["evaluation"] == results[1]["best"]["evaluation"]
    np.testing.assert_allclose(results[0]["best"]["heldout"], results[1]["best"]["heldout"], atol=1e-5)
    assert results[0]["sources"].keys() == results[1]["sources"].keys()
    # Whole models are scored in parts, by all processes.
    mine, its = (json.loads((f / "heldout.json").read_text()) for f in (folder, other))
    for name in mine["sources"]:
        assert mine["sources"][name]["texts"] == its["sources"][name]["texts"]
        assert mine["sources"][name]["tokens"] == its["sources"][name]["tokens"]
    assert mine["best"]["texts"] == its["best"]["texts"]
    assert all(any(texts) for texts in mine["best"]["texts"].values())


@pytest.fixture(scope="module")
def small(siblings):
    """A short search, judged by likelihood and by what is written."""
    likely = (siblings / "task.yaml").read_text()
    written = likely.replace("score: likelihood", "score: generation").replace("name: stories", "name: first_words")
    (siblings / "thrice.jsonl").write_text(3 * (siblings / "heldout.jsonl").read_text())  # parts for both processes
    written = written.replace("heldout: heldout", "heldout: thrice")
    (siblings / "written.yaml").write_text(written + "pattern: '^\\W*(\\w+)'\nmax_new_tokens: 4\n")
    text = (siblings / "run.yaml").read_text().replace("[task.yaml]", "[task.yaml, written.yaml]")
    text = re.sub(r"search: \{.*\}", "search: {evaluations: 24, population: 6, checkpoint_every: 1}", text)
    (siblings / "small.yaml").write_text(text)
    return siblings / "small.yaml"


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    """What one process with one device makes of it."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done(finish(launch([small, "--output", folder], 1, devices=1, flags=False)))
    return folder


@pytest.mark.parametrize(
    ("before", "processes", "mesh"), [("4x1", 2, "4x1"), pytest.param("1x4", 4, "4x2", marks=pytest.mark.slow)]
)
def test_killed_in_two_processes_and_resumed_in_several(before, processes, mesh, small, alone, tmp_path):
    """The last members' examples are split over both; or the model, then both: what one device makes."""
    folder = tmp_path / "run"
    started = launch([small, "--output", folder, "--mesh", before], 2)
    wait_for(lambda: len(lines(folder)) >= 8, folder / "evaluations.jsonl", started)
    started[1].send_signal(signal.SIGKILL)  # a worker
    ended = finish(started)
    assert 0 not in [status for status, _, _ in ended]
    assert 8 <= len(lines(folder)) < 24
    assert len(json.loads((folder / "environment.json").read_text())["devices"]) == 4
    ended = done(finish(launch(["--resume", folder, "--mesh", mesh], processes)))
    same(folder, alone)
    assert "evolved merge" in ended[0][1]
    assert not any("evaluation" in out for _, out, _ in ended[1:])  # only the first one talks


def wait_for(condition, path, started, timeout=120):
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if path.exists() and condition():
            return
        if any(p.poll() not in (None, 0) for p in started):
            raise AssertionError(finish(started))
        time.sleep(0.05)
    raise AssertionError("nothing happened")


def open_mpi(job, process):
    return {
        "OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(process),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
    }


def slurm(job, process):
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
    }


@pytest.mark.parametrize("cluster", [open_mpi, slurm])
def test_a_cluster_says_who_is_who_and_bad_input_stops_all(cluster, small, tmp_path):
    """`--distributed` reads the variables of mpirun or srun; a run folder that exists is refused by every process."""
    (tmp_path / "run").mkdir()
    variables = functools.partial(cluster, free_port() % 4096 + 4096)  # the port follows from the job's number
    ended = finish(launch([small, "--output", tmp_path / "run", "--distributed"], 2, variables, flags=False))
    assert [status for status, _, _ in ended] == [2, 2]
    assert "exists already" in ended[0][2]
    assert "process 0: " in ended[1][2]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--num-processes", "2"], "go together"),
        (["--distributed"], "the processes of this run cannot meet"),
        (["--mesh", "4by2"], "is not POPxMODEL"),
        (["--mesh", "3x5"], "is not the number of devices, 8"),
    ],
)
def test_bad_flags(flags, expected, small, tmp_path, capsys):
    assert main(["evolve", str(small), "--output", str(tmp_path / "run"), *flags]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
