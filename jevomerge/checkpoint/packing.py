"""Leaves of sources in eight bits, straight from their files; see `methods.packed`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jevomerge.checkpoint.source import Source
from jevomerge.methods.packed import WORD, Packed, pack, places_of, words_of
from jevomerge.models.specs import ParamSpec


class PackingError:
    """How far packed task vectors are from the true ones, by what of them this process has read."""

    off = size = 0.0  # squared norms

    def __str__(self) -> str:
        return f"{100 * math.sqrt(self.off / self.size):.2g} %" if self.size else "nothing"


def packed_leaf(
    spec: ParamSpec,
    places: Sequence[tuple[Source, str]],
    origin: Sequence[tuple[Source, str]],
    where: NamedSharding,
    error: PackingError | None,
) -> Packed:
    """One leaf of a source, whose tensors are at `places`, packed as it differs from those at `origin`.

    `error` is added to; None: nothing is read, the parts are their `jax.ShapeDtypeStruct`.
    """
    lies, halved = places_of(spec, where), [*spec.leaf_shape]
    halved[lies.axis] //= 2
    shape, one = tuple(halved), (*spec.leaf_shape[:-1], 1)
    if error is None:
        shapes = jax.ShapeDtypeStruct(shape, WORD, sharding=lies.words)
        return Packed(shapes, jax.ShapeDtypeStruct(one, np.float32, sharding=lies.step), lies.axis)
    known: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # what several devices hold is read once

    def read(index: Any) -> tuple[np.ndarray, np.ndarray]:
        """Whole numbers and step of whole rows, so that they do not depend on how these are split."""
        rows = index[:-1] if lies.axis == -1 else (*index[:-2], slice(None))
        if str(rows) not in known:
            known[str(rows)] = _rows(spec, places, origin, rows, error)
        return known[str(rows)]

    def part(index: Any) -> np.ndarray:
        whole, _ = read(index)
        return words_of(whole if lies.axis == -1 else whole[..., index[-1]], lies.axis)

    words = jax.make_array_from_callback(shape, lies.words, part)
    return Packed(words, jax.make_array_from_callback(one, lies.step, lambda index: read(index)[1]), lies.axis)


def _rows(
    spec: ParamSpec,
    places: Sequence[tuple[Source, str]],
    origin: Sequence[tuple[Source, str]],
    index: tuple[slice, ...],
    error: PackingError,
) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and step of these rows of these tensors, of which one is in memory at a time."""
    numbers = np.arange(spec.count).reshape(spec.leading)[index[:-1]]
    rows, columns = len(range(spec.shape[0])[index[-1]]), spec.shape[1]
    whole, step = np.empty((numbers.size, rows, columns), np.int8), np.empty((numbers.size, rows, 1), np.float32)
    inside = () if rows == spec.shape[0] else (index[-1], slice(None))
    for at, i in enumerate(numbers.ravel().tolist()):
        x, zero = (source.tensor(name, index=inside) for source, name in (places[i], origin[i]))
        whole[at], step[at], off, size = pack(x, zero)
        error.off += off
        error.size += size
    return whole.reshape(*numbers.shape, *whole.shape[1:]), step.reshape(*numbers.shape, *step.shape[1:])
