"""What libtpu has to be told where there is no TPU: else it asks the network what it is part of, and complains."""

from __future__ import annotations

import os
from pathlib import Path


def tpu_is_here() -> bool:
    """Whether the system has a device that is a TPU, or may be one."""
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def describe_tpu(chip: str) -> None:
    """Set the environment for a `chip` such as v5e, before JAX looks for devices; what a TPU's own says stays."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    if not tpu_is_here() or "TPU_ACCELERATOR_TYPE" not in os.environ:
        os.environ["TPU_ACCELERATOR_TYPE"] = f"{chip}-8"
