"""A model that is in memory, where a recipe expects one in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jevomerge.checkpoint.frame import Frame
from jevomerge.checkpoint.lineage import Origin
from jevomerge.checkpoint.safetensors_file import DTYPES, all_finite, read_header
from jevomerge.errors import InputError
from jevomerge.models.model import Model
from jevomerge.models.specs import flatten, shardings, unflatten
from jevomerge.schema import Notes


class Held(NamedTuple):
    """Where a tensor lies: in a leaf."""

    leaf: str
    at: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class InMemory:
    """Parameters with a name, as a `checkpoint.source.Source`."""

    def __init__(self, name: str, model: Model, params: dict[str, Any]):
        """`params`: nested dictionaries with the leaves of the model's table.

        Raises:
            InputError: for leaves of another shape, or of a dtype that cannot be written.
        """
        self.reference, self.name, self.folder, self.notes = name, name, Path(name), Notes()
        self.frame: Frame | None = None
        self.model, self.specs = model, model.specs
        self._leaves = flatten(params)
        self.tensors: dict[str, Held] = {}
        for spec in self.specs:
            leaf = self._leaves[spec.path]
            dtype = np.dtype(leaf.dtype)
            if dtype.name not in DTYPES or tuple(leaf.shape) != spec.leaf_shape:
                raise InputError(
                    f"{name}: {spec.path} is {dtype.name}{list(leaf.shape)}; it must be {', '.join(DTYPES)} "
                    f"and of shape {list(spec.leaf_shape)}"
                )
            for at in spec.indices():
                self.tensors[spec.name(at)] = Held(spec.path, at, spec.shape, dtype)
        for head, embedding in model.tied.items():  # models with a head of their own ask for it
            self.tensors[head] = self.tensors[embedding]

    def tensor(self, name: str, out: np.ndarray | None = None, index: tuple[slice, ...] = ()) -> np.ndarray:
        """One tensor or a part of it (in `out` if given); NaN or infinity in it is an error."""
        held = self.tensors[name]
        array = np.asarray(self._leaves[held.leaf][(*held.at, *index)])
        if not all_finite(array):
            raise InputError(f"{self.name}: {name} contains NaN or infinity")
        if out is not None:
            out[...] = array
        return array if out is None else out

    @classmethod
    def read(cls, folder: Path, model: Model) -> InMemory:
        """A model with the weights in a folder, as `write_model` writes them.

        Raises:
            InputError: if they are not all there.
        """
        stored = read_header(folder / "model.safetensors")
        if stored.keys() != {name for spec in model.specs for name in spec.names()}:
            raise InputError(f"{folder}: its tensors are not those of the model; was it written for another one?")
        leaves = {}
        for spec in model.specs:
            tensors = [stored[name].read() for name in spec.names()]
            leaves[spec.path] = np.stack(tensors).reshape(spec.leaf_shape)
        return cls(str(folder), model, unflatten(leaves))

    def check_head(self) -> None:
        """Nothing is stored twice."""

    def load(self, mesh: Any = None) -> dict[str, Any]:
        """The whole model as nested dictionaries."""
        where = shardings(mesh, self.specs)
        return unflatten({path: jax.device_put(leaf, where[path]) for path, leaf in self._leaves.items()})

    def dtype(self) -> str:
        """That of its first matrix, or of its first tensor."""
        first = next((s for s in self.specs if len(s.shape) == 2), self.specs[0])
        return np.dtype(self._leaves[first.path].dtype).name

    def vocabulary(self) -> None:
        """It has no tokenizer."""

    def beside(self) -> Iterator[Path]:
        """No files go with it."""
        return iter(())

    def origins(self) -> list[Origin]:
        """Its name; nobody knows its licence."""
        return [Origin(self.name, None)]

    def fingerprint(self) -> dict[str, str]:
        """Of all its weights."""
        sha = hashlib.sha256()
        for spec in self.specs:
            leaf = np.ascontiguousarray(self._leaves[spec.path])
            sha.update(f"{spec.path} {leaf.dtype.name} {list(leaf.shape)}\n".encode() + leaf.tobytes())
        return {"weights": sha.hexdigest()}
