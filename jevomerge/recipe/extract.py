"""Fine-tuned models as adapters of their base: the best of a rank that their task vectors come close to."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint.source import abstract_leaf, read_leaf
from jevomerge.devices.mesh import everywhere, put
from jevomerge.errors import InputError
from jevomerge.methods.bank import Adapters, is_product
from jevomerge.models.specs import ParamSpec, flatten, shardings, unflatten
from jevomerge.recipe.parts import Tensor, by_leaf
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_adapter import Truncation

BESIDE, POWERS = 8, 2  # of a random range: directions beyond the rank, and how often it is multiplied


class Extraction(Truncation):
    """Extracts adapters, and adds up what they leave out."""

    def __init__(self, rank: int):
        """Up to this rank."""
        self.rank = rank

    def factors(self, delta: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(O, I) float32 -> A (r, I) and B (O, r), whose product is close to the best of that rank.

        Halko, Martinsson & Tropp, 2011, algorithms 4.4 and 5.1.
        """
        width = min(self.rank + BESIDE, *delta.shape)
        q = np.random.default_rng(seed).standard_normal((delta.shape[1], width), np.float32)
        for _ in range(POWERS):
            q = np.linalg.qr(delta.T @ np.linalg.qr(delta @ q)[0])[0]
        q = np.linalg.qr(delta @ q)[0]
        inside = q.T @ delta
        beside = max(0.0, float(np.vdot(delta, delta)) - float(np.vdot(inside, inside)))
        self.lost += beside
        self.size += beside
        return self.cut(q, inside, min(self.rank, *delta.shape))


def refuse_extract(sources: Sources) -> None:
    """Raise InputError, with the remedy, unless the models of a recipe are a base and models that begin as it."""
    part = sources.parts[0]
    if not sources.plain or sources.eyes or sources.alignment is not None or part.base is None:
        what = "whole language models, with the tokens of their `base_model`, from which task vectors are counted"
    elif sources.pool is not None:
        what = "models; those of this recipe are adapters already, and stay so"
    elif not sources.method.linear:
        what = f"linear methods, whose candidates need not be merged, and {sources.method.name} is none"
    else:
        return
    raise InputError(f"extract: it is for {what}; leave it out")


def extracted(sources: Sources) -> list[tuple[ParamSpec, list[Tensor]]]:
    """The leaves of linear maps inside the model, of which adapters are made, with their tensors."""
    return [(s, tensors) for s, tensors in by_leaf(sources.tensors).items() if is_product(s) and not s.vocabulary]


def numbers_of(sources: Sources, rank: int) -> int:
    """How many numbers the adapters have."""
    inputs = len(sources.parts[0].inputs)
    return sum(s.count * inputs * min(rank, *s.shape) * sum(s.shape) for s, _ in extracted(sources))


def load_extracted(
    sources: Sources, rank: int, mesh: Mesh | None = None, *, abstract: bool = False
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Adapters]]:
    """As `recipe.pool.load_pool`: the base's matrices for all sources, and by path what they add to them, nearly.

    What is left out is noted.
    """
    leaves, found = extracted(sources), Extraction(rank)
    trees, base = sources.load(mesh, abstract=abstract, but={spec.path for spec, _ in leaves})
    flat, flat_base = [flatten(tree) for tree in trees], flatten(base or {})
    make, where = abstract_leaf if abstract else read_leaf, shardings(mesh, [spec for spec, _ in leaves])
    adapters = {}
    for spec, tensors in leaves:
        bases = [(t.part.base, t.base_name) for t in tensors if t.part.base is not None]
        leaf = make(spec, bases, where[spec.path])
        for tree in (*flat, flat_base):
            tree[spec.path] = leaf
        adapters[spec.path] = _adapters(sources, spec, tensors, found, mesh, abstract)
    if not abstract:
        sources.notes.add(
            f"extract: candidates are scored with adapters of rank {rank}, which leave out {found} of task vectors' "
            "matrices (norm of the error by theirs); finalists, the sources and the result are scored as they are"
        )
    return [unflatten(tree) for tree in flat], unflatten(flat_base), adapters


def _adapters(
    sources: Sources, spec: ParamSpec, tensors: list[Tensor], found: Extraction, mesh: Mesh | None, abstract: bool
) -> Adapters:
    inputs, (out, inside), rank = len(tensors[0].part.inputs), spec.shape, min(found.rank, *spec.shape)
    shapes = [(*spec.leading, inputs * rank, inside), (*spec.leading, out, inputs * rank)]
    where = None if mesh is None else everywhere(mesh)
    ranks, scales = (rank,) * inputs, ((1.0,) * spec.count,) * inputs
    if abstract:
        down, up = (jax.ShapeDtypeStruct(shape, np.float32, sharding=where) for shape in shapes)
        return Adapters(down, up, ranks, scales)  # type: ignore[arg-type]
    downs, ups = (np.zeros(shape, np.float32) for shape in shapes)
    for at, tensor in zip(spec.indices(), tensors, strict=True):
        models, base = sources.read(tensor)
        assert base is not None
        for i, model in enumerate(models):
            name = f"{tensor.part.checkpoints[i].name} {spec.name(at)}"
            rows = slice(i * rank, (i + 1) * rank)
            delta = model.astype(np.float32) - base.astype(np.float32)
            downs[at][rows], ups[at][:, rows] = found.factors(delta, zlib.crc32(name.encode()))
    return Adapters(put(downs, where), put(ups, where), ranks, scales)
