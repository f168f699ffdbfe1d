"""TPU slices: their devices without having them, and what a chip can do.

Published peaks per chip, https://docs.cloud.google.com/tpu/docs (system architecture of v4, v5e, v5p and v6e, as of
2026): bf16 FLOP/s, HBM bytes and bytes/s, and the bidirectional bandwidth of the inter-chip interconnect. Memory of the
hosts: of the machine types with the fewest bytes for each chip (ct4p-hightpu-4t, ct5lp-hightpu-1t, ct5p-hightpu-4t,
ct6e-standard-1t).
"""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

import jax

from jevomerge.devices.tpu import describe_tpu
from jevomerge.errors import InputError

GIB = 1 << 30


class Chip(NamedTuple):
    """A device and its peaks."""

    name: str
    kind: str  # what `jax.Device.device_kind` says
    flops: float  # per second, bfloat16 in and float32 accumulated
    bandwidth: float  # bytes per second, of its memory
    interconnect: float  # bytes per second, all links, both directions
    memory: float  # bytes that a program can use: a little is the system's
    host: float | None = None  # bytes of the memory of its host, for each of the host's chips; None: not known
    link: float = 25e9  # bytes per second from there: an assumption, PCI Express 4 x16 as it is measured elsewhere


CHIPS = (
    Chip("v4", "TPU v4", 275e12, 1228e9, 300e9, 31.75 * GIB, 101e9),
    Chip("v5e", "TPU v5 lite", 197e12, 819e9, 400e9, 15.75 * GIB, 48e9),
    Chip("v5p", "TPU v5", 459e12, 2765e9, 1200e9, 94.75 * GIB, 112e9),
    Chip("v6e", "TPU v6 lite", 918e12, 1640e9, 800e9, 31.25 * GIB, 176e9),
)


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
SLICES = {"v4": DEEP[1:], "v5e": FLAT, "v5p": DEEP[1:], "v6e": FLAT}


SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([GT]i?B)")
BYTES = {"GB": 10**9, "GiB": 1 << 30, "TB": 10**12, "TiB": 1 << 40}


def assumed_chip(memory: str, bandwidth: float = 1.0, flops: float = 150.0, link: float = 25.0) -> Chip:
    """A device of which one knows how much memory it has, "24GiB".

    Args:
        memory: all of which programs can use.
        bandwidth: TB/s of the memory.
        flops: TFLOP/s in bfloat16.
        link: GB/s from the memory of the host.

    Raises:
        InputError: for what is no size, or no speed.
    """
    if (found := SIZE.fullmatch(memory)) is None or min(bandwidth, flops, link, float(found[1])) <= 0:
        raise InputError(f"--device-memory: `{memory}` is not a size such as 24GiB, or a speed is not above 0")
    size = float(found[1]) * BYTES[found[2]]
    peaks = flops * 1e12, bandwidth * 1e12, math.inf
    return Chip(f"a device with {memory}", "", *peaks, size, link=link * 1e9)


def larger_slices(topology: str) -> list[str]:
    """A slice and the larger ones of its chip, by size."""
    chip, _, shape = topology.partition(":")
    sizes = [math.prod(map(int, s.split("x"))) for s in (shape, *SLICES[chip])]
    return [topology, *(f"{chip}:{s}" for s, size in zip(SLICES[chip], sizes[1:], strict=True) if size > sizes[0])]


def chip_of(device: jax.Device) -> Chip | None:
    """The chip that a device is; None for what is in no table (CPUs, GPUs)."""
    return next((c for c in CHIPS if c.kind == device.device_kind), None)


def slice_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice such as "v5e:4x4", to compile for; there need not be one.

    Raises:
        InputError: for a topology that does not exist, or without the compiler.
    """
    chip = re.fullmatch(r"(v\w+):\d+(x\d+){1,2}", topology)
    if chip is None or chip[1] not in {c.name for c in CHIPS}:
        names = ", ".join(c.name for c in CHIPS)
        raise InputError(f"--topology: `{topology}` is not like v5e:4x8 or v5p:2x2x1 (chips: {names})")
    describe_tpu(chip[1])
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is touched, so nobody need wait for another
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if chip[1] == "v4" else {}  # its two cores as one device
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except Exception as error:
        try:
            import libtpu  # noqa: F401  # type: ignore[import-not-found]
        except ImportError:
            raise InputError(
                "--topology: compiling for a TPU needs its compiler: pip install 'jevomerge[plan]'"
            ) from None
        raise InputError(f"--topology: {topology}: {str(error).splitlines()[0]}") from None
