"""Orbax checkpoints as sources of a merge: parameters of MaxText, states of nnx, training states.

A tree is merged as it lies there, leaf by leaf, whatever its owner does with it: its metadata says what there is, and
nothing of it is converted. Where it has `params`, the floating-point leaves below are merged, else all of them; what
else there is (a step, an optimizer's state) comes unchanged from one of the models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jevomerge.checkpoint.files import digest
from jevomerge.checkpoint.safetensors_file import DTYPES
from jevomerge.checkpoint.source import Stored
from jevomerge.errors import InputError
from jevomerge.models.own import own_model
from jevomerge.models.specs import tensor_names, unflatten

METADATA = "_METADATA"  # of a tree
PARAMS = "params"  # under which a training state and MaxText have what a model computes with


def is_orbax(folder: Path) -> bool:
    """Whether a folder is a tree that Orbax wrote, or holds one of several."""
    return (folder / METADATA).exists() or (folder / "_CHECKPOINT_METADATA").exists()


class StoredLeaf(NamedTuple):
    """A leaf in a file."""

    folder: Path
    path: tuple[Any, ...]  # JAX's, from the root on
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, out: np.ndarray | None = None, index: tuple[slice, ...] = ()) -> np.ndarray:
        """All of it or a part, into `out` if given."""
        found = _restored(self.folder, {self.path: self})[self.path][index or ...]
        if out is None:
            return found
        out[...] = found
        return out


class OrbaxTree(Stored):
    """A checkpoint of Orbax that has been opened and checked, of which no weight has been read.

    Attributes:
        model: a table of leaves, which computes nothing.
        carried: {name: leaf} of what is not merged.
    """

    def __init__(self, reference: str | Path | Stored):
        """Open `reference`, the folder of a tree.

        Raises:
            InputError: for a folder that holds trees and is none, an adapter, and leaves that cannot be merged.
        """
        super().__init__(reference)
        self.adapter = None
        if self.behind is not None:
            raise InputError(f"{self.reference}: adapters of Orbax checkpoints are not supported; merge them into it")
        self._tree = _metadata(self.folder)
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="."): StoredLeaf(
                self.folder, path, tuple(leaf.shape), np.dtype(leaf.dtype)
            )
            for path, leaf in jax.tree_util.tree_flatten_with_path(self._tree)[0]
            if hasattr(leaf, "shape")
        }
        below = f"{PARAMS}." if any(name.startswith(f"{PARAMS}.") for name in leaves) else ""
        self.tensors = {n: x for n, x in leaves.items() if n.startswith(below) and x.dtype.name in DTYPES}
        self.carried = {name: leaf for name, leaf in leaves.items() if name not in self.tensors}
        if not self.tensors:
            raise InputError(f"{self.folder} has no floating-point leaf that can be merged: {', '.join(DTYPES)}")
        sketch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self.tensors.items()}
        self.model = own_model(_nothing, unflatten(sketch))
        self.specs = self.model.specs
        if self.carried:
            first, more = min(self.carried), len(self.carried) - 1
            also = f" and {more} more" if more else ""
            self.notes.add(f"{first}{also}: not merged; the result has the base model's, or without one the first's")

    def dtype(self) -> str:
        """That of its first matrix, or of its first leaf."""
        first = next((spec for spec in self.specs if len(spec.shape) > 1), self.specs[0])
        return self.tensors[first.path].dtype.name

    def vocabulary(self) -> None:
        """It has no tokenizer."""

    def beside(self) -> Iterator[Path]:
        """No files go with it."""
        return iter(())

    def fingerprint(self) -> dict[str, str]:
        """Of all its files."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): digest(path) for path in files}

    def write(self, folder: Path, dtype: str, tensor: Callable[[str], np.ndarray | None]) -> None:
        """Write a tree like this one, which is in memory while it is written.

        Args:
            folder: that exists and is empty.
            dtype: of the leaves that are merged.
            tensor: "params.decoder.norm" -> that leaf, called in the order of the table; None: zeros.
        """
        merged: dict[str, np.ndarray] = {}
        for name, spec, _ in tensor_names(self.specs):
            found = tensor(name)
            merged[name] = np.zeros(spec.shape, np.dtype(dtype)) if found is None else np.asarray(found)
        kept = _restored(self.folder, {leaf.path: leaf for leaf in self.carried.values()})

        def leaf(path: tuple[Any, ...], described: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return merged[name] if name in merged else kept.get(path, described)

        write_tree(folder, jax.tree_util.tree_map_with_path(leaf, self._tree))


def write_tree(folder: Path, tree: Any) -> Path:
    """A pytree of arrays as Orbax has it; what is in the folder is replaced."""
    import orbax.checkpoint as ocp  # imported late: seconds

    with quiet(), ocp.PyTreeCheckpointer() as orbax:
        orbax.save(folder.absolute(), tree, force=True)
    return folder


def _nothing(params: Any) -> None:
    """What is known of how a tree computes."""


def _metadata(folder: Path) -> Any:
    """The tree, with what describes each leaf in its place."""
    import orbax.checkpoint as ocp

    if not (folder / METADATA).exists():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{METADATA}"))
        raise InputError(f"{folder} holds {', '.join(inside) or 'no tree'}; name the folder of one tree of Orbax")
    try:
        with quiet(), ocp.PyTreeCheckpointer() as orbax:
            return orbax.metadata(folder.absolute()).item_metadata.tree
    except Exception as error:  # Orbax raises many
        raise InputError(f"{folder}: Orbax cannot read it: {error}; copy it again") from None


def _restored(folder: Path, leaves: Mapping[tuple[Any, ...], StoredLeaf]) -> dict[tuple[Any, ...], np.ndarray]:
    """The leaves at these paths, and nothing else is read."""
    import orbax.checkpoint as ocp

    def wanted(path: tuple[Any, ...], described: Any) -> Any:
        return described if path in leaves else ocp.PLACEHOLDER

    def how(path: tuple[Any, ...], described: Any) -> Any:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaves[path].dtype if path in leaves else None)

    tree = _metadata(folder)
    items, args = (jax.tree_util.tree_map_with_path(f, tree) for f in (wanted, how))
    try:
        with quiet(), ocp.PyTreeCheckpointer() as orbax:
            found = orbax.restore(folder.absolute(), args=ocp.args.PyTreeRestore(items, args))
    except Exception as error:  # Orbax raises many
        raise InputError(f"{folder}: Orbax cannot read it: {error}; copy it again") from None
    return {path: leaf for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0] if path in leaves}


@contextmanager
def quiet() -> Iterator[None]:
    """Orbax logs what it raises, with the tracebacks of all its threads."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
