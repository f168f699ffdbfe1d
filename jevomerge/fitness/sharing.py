"""What several processes tell each other of the members that they score together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jevomerge.devices.hosts import from_all, said_by_all, together
from jevomerge.fitness.outcome import Found


def several(mesh: Mesh) -> bool:
    """Whether several processes score the members of a group."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def share(found: Sequence[Found], tokens: np.ndarray, failure: Exception | None) -> np.ndarray:
    """Let every process know of every member and document; each has read what was written here.

    Args:
        found: what is known of M members, by task; filled in.
        tokens: (S, k) what was taken where members lie; NaN where that is not here.
        failure: what went wrong here; all processes raise it.

    Returns:
        (S, k) what was taken, wherever that is.
    """

    def known() -> np.ndarray:
        if failure is not None:
            raise failure
        return np.concatenate([tokens.ravel(), *(f.pairs.ravel() for f in found)])

    rows = from_all(together(known))
    # Who knows it first says it: several do where a member's weights are split over them.
    values = np.take_along_axis(rows, np.isnan(rows).argmin(axis=0)[None], axis=0)[0]
    start = tokens.size
    for f in found:
        f.pairs[:] = values[start : start + f.pairs.size].reshape(f.pairs.shape)
        start += f.pairs.size
    return values[: tokens.size].reshape(tokens.shape)


def share_texts(found: Sequence[Found]) -> None:
    """Let every process know what one model wrote, wherever it was read.

    Args:
        found: of the tasks where it writes; what is missing here is filled in.
    """
    here = [{row: text for row, text in enumerate(f.outputs[0]) if text is not None} for f in found]
    for process in said_by_all(here):
        for f, texts in zip(found, process, strict=True):
            for row, text in texts.items():
                f.outputs[0][int(row)] = text
