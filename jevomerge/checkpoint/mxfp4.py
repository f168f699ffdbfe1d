"""MXFP4 tensors, as gpt-oss is published: four bits each, and a power of two for every 32 (OCP Microscaling, v1.0)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jevomerge.checkpoint.safetensors_file import NUMPY, StoredTensor
from jevomerge.errors import InputError

BLOCKS, SCALES = "_blocks", "_scales"
# Sign, two bits of exponent, one of mantissa.
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor (E, in, out) that is stored as blocks (E, out, in / 32, 16) and scales (E, out, in / 32) of bytes."""

    blocks: StoredTensor
    scales: StoredTensor
    code = "BF16"  # which holds all its values

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is read."""
        return NUMPY[self.code]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is read."""
        experts, rows, groups, half = self.blocks.shape
        return experts, groups * half * 2, rows

    @property
    def path(self) -> Path:
        """The file that it is in."""
        return self.blocks.path

    def read(self, out: np.ndarray | None = None, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Its values, or those at `index`, in `out` or in a new array; expert by expert, for they become larger."""
        index = index or (slice(None),) * 3
        chosen = range(self.shape[0])[index[0]]
        columns = range(self.shape[1])[index[1]], range(self.shape[2])[index[2]]
        if out is None:
            out = np.empty((len(chosen), *map(len, columns)), self.dtype)
        for target, expert in zip(out, chosen, strict=True):
            one = slice(expert, expert + 1)
            packed = self.blocks.read(index=(one, index[2], slice(None), slice(None)))[0]
            exponents = self.scales.read(index=(one, index[2], slice(None)))[0]
            values = np.stack([VALUES[packed & 15], VALUES[packed >> 4]], axis=-1)  # the low half of a byte comes first
            values = np.ldexp(values, exponents.astype(np.int32)[:, :, None, None] - 127)
            target[...] = values.reshape(len(values), -1)[:, index[1]].T
        return out


def unpacked(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The same, pairs of blocks and scales as the tensors that they stand for.

    Raises:
        InputError: for blocks without scales, and shapes that do not belong together.
    """
    found: dict[str, Any] = {}
    for name, stored in tensors.items():
        if name.endswith(SCALES) and f"{name.removesuffix(SCALES)}{BLOCKS}" in tensors:
            continue
        if not name.endswith(BLOCKS) or stored.code != "U8":
            found[name] = stored
            continue
        scales = tensors.get(f"{name.removesuffix(BLOCKS)}{SCALES}")
        if scales is None or scales.code != "U8" or (*scales.shape, 16) != stored.shape or len(stored.shape) != 4:
            raise InputError(f"{stored.path}: {name} has no {SCALES} that belong to it; download the file again")
        found[name.removesuffix(BLOCKS)] = Packed(stored, scales)
    return found
