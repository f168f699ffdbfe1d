"""What several processes tell each other of the members that they score together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

from jevomerge.devices.hosts import collect, together
from jevomerge.fitness.outcome import Found


def several(mesh: Mesh) -> bool:
    """Whether several processes score the members of a group."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def share(found: Sequence[Found], tokens: np.ndarray, mine: Iterable[int], failure: Exception | None) -> None:
    """Let every process know of every member; each has read what its own wrote.

    Args:
        found: what is known of M members, by task; filled in.
        tokens: (M, k) what they took; filled in.
        mine: the members of this process.
        failure: what went wrong here; all processes raise it.
    """

    def known() -> dict[int, np.ndarray]:
        if failure is not None:
            raise failure
        return {m: np.concatenate([tokens[m], *(f.pairs[:, m].ravel() for f in found)]) for m in mine}

    rows = collect(together(known), len(tokens))
    start = tokens.shape[1]
    tokens[:] = rows[:, :start]
    for f in found:
        stop = start + 2 * len(f.documents)
        f.pairs[:] = rows[:, start:stop].reshape(len(rows), 2, -1).swapaxes(0, 1)
        start = stop
