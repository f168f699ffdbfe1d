"""Machines without a TPU but with its compiler: it neither asks the network nor complains."""

import os
import subprocess
import sys

import pytest

from jevomerge.devices.tpu import describe_tpu, tpu_is_here

CODE = "from jevomerge.cli import main; main(['report', 'nowhere']); import jax; jax.devices()"


def test_nothing_is_said_where_there_is_none():
    pytest.importorskip("libtpu")
    if tpu_is_here():
        pytest.skip("there is one")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["jevomerge", "jevomerge"]


def test_what_is_said_of_a_tpu(monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_ID", "TPU_MIN_LOG_LEVEL", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    describe_tpu("v5e")
    describe_tpu("v4")
    assert os.environ["TPU_ACCELERATOR_TYPE"] == ("v5e-8" if tpu_is_here() else "v4-8")
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"
