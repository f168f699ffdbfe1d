"""Several processes as one: each runs the same program on its own devices, and the first alone writes.

    join()                                          # under SLURM, Open MPI or on TPU hosts; or join("host:1234", 4, 0)
    weights = together(lambda: read(mesh))          # in every process; if one fails, all raise what it says
    records = on_first(lambda: read_records())      # in the first one, its result in all

In a single process, which has joined nothing, both just call.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jevomerge.errors import FitnessError, InputError

T = TypeVar("T")
MESSAGE_BYTES = 4096  # bytes of a message
RAISED: dict[str, type[Exception]] = {"InputError": InputError, "FitnessError": FitnessError}


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Meet the other processes, before anything else is done with JAX; what is not given the environment says.

    Raises:
        InputError: if the environment says nothing, or the others do not come.
    """
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is the command line's
    try:
        jax.distributed.initialize(coordinator, processes, process, shutdown_timeout_seconds=30)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes of this run cannot meet ({error}); start them by SLURM, mpirun or on a TPU slice, or give "
            "each --coordinator HOST:PORT, --num-processes and --process-id"
        ) from None


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def together(f: Callable[[], T]) -> T:
    """`f()` in every process; an exception in any of them is raised in all."""
    if jax.process_count() == 1:
        return f()
    error, result = None, None
    try:
        result = f()
    except Exception as raised:
        error = raised
    message = "" if error is None else f"{type(error).__name__}\n{error}"
    texts = multihost_utils.process_allgather(
        np.frombuffer(message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0"), np.uint8)
    )
    if error is not None:
        raise error
    for process, text in enumerate(texts):
        kind, _, said = bytes(text).rstrip(b"\0").decode(errors="ignore").partition("\n")
        if kind:
            raise RAISED.get(kind, RuntimeError)(f"process {process}: {said}")
    return result  # type: ignore[return-value]


def from_all(values: np.ndarray) -> np.ndarray:
    """(k,) float64 of this process -> (processes, k)."""
    everybody = multihost_utils.process_allgather(values.view(np.uint8))  # as bytes, for JAX would round it
    return np.ascontiguousarray(everybody).view(np.float64)


def said_by_all(value: Any) -> list[Any]:
    """What each process says, something that JSON can hold, by process."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([text.size], np.int32)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def on_first(f: Callable[[], Any]) -> Any:
    """The result of `f()` in the first process, something that JSON can hold, in all; so are its exceptions."""
    if jax.process_count() == 1:
        return f()
    result = together(lambda: f() if first() else None)
    text = np.frombuffer(json.dumps(result).encode(), np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.asarray([text.size], np.int32)).item()
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(text if first() else np.zeros(size, np.uint8))))
