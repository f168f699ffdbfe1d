"""Devices that are assumed or not there: as users write them, plans for them, and convolutions counted."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.planning.chips import GIB, assumed_chip, larger_slices
from jevomerge.planning.cost import cost_of

QUICKSTART = str(Path(__file__).parents[3] / "configs" / "quickstart.yaml")


def test_sizes_and_speeds():
    assert assumed_chip("24GiB")[2:] == (150e12, 1e12, float("inf"), 24 * GIB, None, 25e9)
    assert assumed_chip("0.08 TB", 3.35, 990, 50)[2:] == (990e12, 3.35e12, float("inf"), 80e9, None, 50e9)
    for words in (("24",), ("GiB",), ("24GiB", 0), ("24GiB", 1, -1), ("24GiB", 1, 1, 0), ("0GiB",)):
        with pytest.raises(InputError, match="is not a size such as 24GiB"):
            assumed_chip(*words)


def test_a_device_of_which_one_knows_the_memory(capsys):
    assert main(["plan", QUICKSTART, "--device-memory", "24GiB", "--device-flops", "100"]) == 0
    said = capsys.readouterr().out
    assert "assumed of the device: 1 TB/s, 100 TFLOP/s in bfloat16, 25 GB/s from the host" in said
    assert "a device with 24GiB: pop 1 x model 1" in said
    assert "fits: " in said
    assert "% of the peak in bfloat16" in said
    assert main(["plan", QUICKSTART, "--device-memory", "0.001GiB"]) == 2
    assert "quickstart does not fit on a device with 0.001GiB: 0.0" in capsys.readouterr().err
    assert main(["plan", QUICKSTART, "--device-memory", "24GiB", "--topology", "v5e:1x1"]) == 2
    assert "--device-memory is one device; leave --topology" in capsys.readouterr().err


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_convolutions_are_counted_as_by_xla(stride, groups):
    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC"), feature_group_count=groups
        )

    traced = jax.jit(convolved).trace(jnp.ones((2, 9, 9, 8)), jnp.ones((6, 8 // groups, 3, 3)))
    assert cost_of(traced.jaxpr).matmul == traced.lower().compile().cost_analysis()["flops"]


def test_a_slice_that_does_not_exist(capsys):
    assert main(["plan", QUICKSTART, "--topology", "v9:1x1"]) == 2
    assert "is not like v5e:4x8" in capsys.readouterr().err


def test_without_the_compiler_the_remedy_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/nowhere/libtpu.so")
    assert main(["plan", QUICKSTART, "--topology", "v5e:2x2"]) == 2
    assert "pip install 'jevomerge[plan]'" in capsys.readouterr().err


def test_larger_slices():
    assert larger_slices("v5e:4x4") == ["v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"]
    assert larger_slices("v5p:4x4x8") == ["v5p:4x4x8", "v5p:4x8x8"]


@pytest.mark.slow
def test_for_a_slice_that_is_not_here():
    """The real compiler for TPUs, in a process of its own: it prints, and looks for a TPU."""
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "jevomerge", "plan", QUICKSTART, "--topology"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    one = subprocess.run([*command, "v5e:4x4"], capture_output=True, text=True, env=env)
    assert one.returncode == 0, one.stderr
    assert "v5e:4x4: pop 16 x model 1" in one.stdout
    assert "of 15.75 GiB per device" in one.stdout
    assert "a generation of 15 candidates" in one.stdout
    sweep = subprocess.run([*command, "v5e:8x16", "--sweep"], capture_output=True, text=True, env=env)
    lines = [line for line in sweep.stdout.splitlines() if "devices" in line]
    assert [line.split()[0] for line in lines] == ["v5e:8x16", "v5e:16x16"]
