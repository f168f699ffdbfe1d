"""Merging LoRA adapters of one model into one more, tensor by tensor.

Of a linear method the matrices of all sources lie side by side, those of B times what it takes of each, which is exact.
Else, and for a lower rank, it is the best of that rank, by singular values (Eckart and Young, 1936).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import Array

from jevomerge.checkpoint.files import split_adapter
from jevomerge.checkpoint.lora import write_adapter
from jevomerge.methods.bank import shares
from jevomerge.methods.factors import even_factors, merge_factors, prepare_factors
from jevomerge.methods.method import MergeMethod
from jevomerge.recipe.adapter import low_rank_of, read_pair
from jevomerge.recipe.parts import Tensor
from jevomerge.recipe.resolve import Coefficients
from jevomerge.recipe.sources import Sources

WRITTEN = "adapter: of rank"  # what a note on one begins with


class Truncation:
    """How much of a change its best part of low rank leaves out, by what has been cut."""

    lost = size = 0.0  # squared norms

    def cut(self, up: np.ndarray, down: np.ndarray | None, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """B (O, r) and A (r, I) -> the best A and B of a rank up to `rank`; without A, of the matrix B (O, I)."""
        if down is None:
            u, s, vt = np.linalg.svd(up, full_matrices=False)
        else:  # of the small matrix between two orthogonal ones
            (left, up), (right, down) = np.linalg.qr(up), np.linalg.qr(down.T)
            u, s, vt = np.linalg.svd(up @ down.T, full_matrices=False)
            u, vt = left @ u, vt @ right.T
        self.lost += float(np.sum(s[rank:] ** 2))
        self.size += float(np.sum(s**2))
        return vt[:rank], u[:, :rank] * s[:rank]

    def __str__(self) -> str:
        return f"{100 * math.sqrt(self.lost / self.size):.2g} %" if self.size else "nothing"


def merge_adapter(
    folder: Path,
    sources: Sources,
    coefficients: Coefficients | None = None,
    merged: Callable[[Tensor], np.ndarray] | None = None,
    called: Callable[[str], str] = str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Write the merge as an adapter in a folder that is there.

    Args:
        folder: of adapter_config.json and adapter_model.safetensors.
        sources: of a recipe with `adapter`.
        coefficients: {path: {parameter: (..., [N])}}; None: weights are holes.
        merged: makes a tensor of the merged model in float32, for methods that are not linear.
        called: what the adapter calls its model.
        progress: called with (tensors written, tensors in all).

    Returns:
        a sentence on what is written.
    """
    wanted, method = sources.recipe.adapter, sources.method
    part, keys, error = sources.parts[0], sources.keys(), Truncation()
    tensors = [t for t in sources.tensors if any(low_rank_of(c, t.name) for c in part.checkpoints)]
    ranks = [[0 if (low := low_rank_of(c, t.name)) is None else low.rank for c in part.checkpoints] for t in tensors]
    rank = max(map(sum, ranks)) if wanted == "sum" else max(map(max, ranks)) if wanted == "factors" else wanted
    assert isinstance(rank, int)
    has_base = part.base is not None
    taken = jax.jit(functools.partial(shares, method, len(part.checkpoints), has_base))
    factors = jax.jit(functools.partial(_factors, method))

    def whole(tensor: Tensor) -> np.ndarray:
        """What is added to a tensor, (O, I) float64."""
        assert merged is not None
        return merged(tensor).astype(np.float64) - part.checkpoints[0].tensors[tensor.name].read().astype(np.float64)

    def pair(i: int) -> tuple[np.ndarray, np.ndarray] | None:
        """A (R, I) and B (O, R), float32."""
        if coefficients is None:
            return None
        tensor, at = tensors[i], tensors[i].at
        own = {name: values[at] for name, values in coefficients[tensor.spec.path].items()}
        if wanted != "factors" and not method.linear:
            down, up = error.cut(whole(tensor), None, rank)
        else:
            downs, ups, scales = _read(sources, tensor)
            if wanted == "factors":
                down, up = map(np.asarray, factors(downs, ups, scales, own, keys[tensor.spec.path][at]))
            else:
                found = np.asarray(taken(own, (), keys[tensor.spec.path][at]))
                down = np.concatenate(downs)
                up = np.concatenate([f * s * b for f, s, b in zip(found, scales, ups, strict=False)], axis=1)
            if isinstance(wanted, int):
                down, up = error.cut(up.astype(np.float64), down.astype(np.float64), rank)
        progress(i + 1, len(tensors))
        missing = rank - len(down)
        down, up = np.pad(down, ((0, missing), (0, 0))), np.pad(up, ((0, 0), (0, missing)))
        return down.astype(np.float32), up.astype(np.float32)

    shapes = {t.name: t.spec.shape for t in tensors}
    model = called(split_adapter(part.checkpoints[0].reference)[0])
    write_adapter(folder, model, rank, shapes, [t.name for t in sources.tensors], pair)
    if wanted == "factors":
        return f"{WRITTEN} {rank}, whose A and B are merged each by itself: it is not the sum of what the sources add"
    if wanted == "sum":
        return f"{WRITTEN} {rank}, all ranks of the sources together: nothing is left out"
    return f"{WRITTEN} {rank}, which leaves out {error} of what is added to the model (norm by norm)"


def _read(sources: Sources, tensor: Tensor) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """A and B, float32, of no rank where a source has none, and their scales, (N,)."""
    downs, ups, scales = [], [], []
    for checkpoint in sources.parts[0].checkpoints:
        low, (out, inside) = low_rank_of(checkpoint, tensor.name), tensor.spec.shape
        empty = np.zeros((0, inside), np.float32), np.zeros((out, 0), np.float32)
        down, up = empty if low is None else read_pair(low, tensor.name, checkpoint.reference)
        downs.append(down)
        ups.append(up)
        scales.append(1.0 if low is None else low.scale)
    return downs, ups, np.array(scales, np.float32)


def _factors(
    method: MergeMethod,
    downs: Sequence[Array],
    ups: Sequence[Array],
    scales: Array,
    own: Mapping[str, Array],
    keys: Array,
) -> tuple[Array, Array]:
    downs, ups = even_factors(downs, ups)
    return merge_factors(method, downs, ups, own, prepare_factors(method, downs, ups, scales), keys)
