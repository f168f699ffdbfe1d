"""Writing Hugging Face folders: planned from shapes, streamed tensor by tensor, complete or absent."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import expanded
from jevomerge.checkpoint.frame import Frame
from jevomerge.checkpoint.safetensors_file import DTYPES, Planned
from jevomerge.checkpoint.source import Source
from jevomerge.checkpoint.weights import check_room, write_weights
from jevomerge.errors import InputError
from jevomerge.models.model import Model
from jevomerge.models.specs import ParamSpec, flatten, tensor_names

SHARD_BYTES = 5 * 10**9
LONGEST_NAME = 200  # bytes; with what `scratch_folder` adds, below the 255 of most file systems


@contextlib.contextmanager
def export_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that appears as `path` only when the `with` block ends well."""
    path = expanded(path)
    refuse_existing(path)
    with scratch_folder(path) as folder:
        yield folder
        refuse_existing(path)
        folder.rename(path)


@contextlib.contextmanager
def export_file(path: str | Path) -> Iterator[Path]:
    """A file to write, which appears as `path` only when the `with` block ends well."""
    path = expanded(path)
    refuse_existing(path)
    with scratch_folder(path) as folder:
        yield folder / path.name
        refuse_existing(path)
        (folder / path.name).rename(path)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for what is not finished, removed at the end.

    It is locked while its process lives; those that killed processes left behind are removed here, and nothing that
    has another name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.partial-jevomerge-"
    for stale in path.parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(BlockingIOError), _locked(stale):
            shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    folder.chmod(0o755)
    with _locked(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def refuse_existing(path: Path) -> None:
    """Output never overwrites anything, and goes where it can be written: both are found before the work.

    Raises:
        InputError: naming what is in the way.
    """
    if os.path.lexists(path):
        what = "exists already" if path.exists() else "is a link to nothing"
        raise InputError(f"{path} {what} and is not overwritten; choose another name or remove it")
    new = [path]
    while not os.path.lexists(parent := new[-1].absolute().parent):
        new.append(parent)
    if too_long := [p.name for p in new if len(os.fsencode(p.name)) > LONGEST_NAME]:
        raise InputError(f"{path}: {too_long[0][:40]}... has more than {LONGEST_NAME} bytes; choose a shorter name")
    if not parent.is_dir():
        raise InputError(f"{path} cannot be made, for {parent} is not a folder; choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be made, for nothing may be written in {parent}; choose another place")


def write_model(
    folder: Path,
    files: Mapping[str, Any],
    specs: Sequence[ParamSpec],
    dtype: str,
    tensor: Callable[[str, str, tuple[int, ...]], Any] | None,
    shard_bytes: int | None = None,
    frame: Frame | None = None,
) -> None:
    """Write a model's weights, and JSON files such as config.json, into `folder`.

    Args:
        folder: an existing folder, usually from `export_folder`.
        files: {name: JSON object} as `Model.files`; the dtype in config.json is replaced.
        specs: the parameter table of the model that is written.
        dtype: of the weights: float32, bfloat16 or float16.
        tensor: (name, leaf path, where in the leaf) -> that tensor, called once per tensor in file order; None: the
            files have headers and holes.
        shard_bytes: how large a file of weights may be, unless one tensor is larger; None: SHARD_BYTES.
        frame: into which the model goes: the parts of a folder that are not the model's, and how it calls these.

    Raises:
        InputError: if the disk has no room, before anything is written, and for values that are not finite.
    """
    called = frame.name if frame else str
    carried = frame.carried(name for name, *_ in tensor_names(specs)) if frame else {}
    where = {called(name): (name, spec.path, at) for name, spec, at in tensor_names(specs)}
    planned = {called(name): Planned(DTYPES[dtype], spec.shape) for name, spec, _ in tensor_names(specs)}
    planned |= {name: Planned(stored.code, stored.shape) for name, stored in carried.items()}
    if tensor is not None:
        check_room(folder, planned)
    for name, values in files.items():
        if name == "config.json":  # transformers 4 reads `torch_dtype`, transformers 5 both
            values = frame.around(values) if frame else values
            values = {k: v for k, v in values.items() if k not in ("_name_or_path", "torch_dtype", "dtype")}
            values |= {"torch_dtype": dtype}
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def made(name: str) -> Any:
        if tensor is None:
            return None
        return carried[name].read() if name in carried else tensor(*where[name])

    write_weights(folder, planned, made, shard_bytes or SHARD_BYTES)


def copy_tokenizer(folder: Path, source: Source) -> None:
    """Copy what goes with a model's weights: its tokenizer's files, and generation_config.json."""
    for path in source.beside():
        copy_beside(path, source.folder, folder)


def copy_processor(folder: Path, frame: Frame | None) -> None:
    """Copy what goes with a folder's other parts, if there are any."""
    for path in frame.files if frame else ():
        copy_beside(path, frame.folder, folder)  # type: ignore[union-attr]


def copy_beside(path: Path, source: Path, folder: Path) -> None:
    """Copy a file of the folder `source` to the same place in `folder`."""
    target = folder / path.relative_to(source)
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, target)


def write_whole(
    path: Path, params: dict[str, Any], model: Model, tokenizer: Any | None, frame: Frame | None = None
) -> None:
    """Write a model that is in memory as a new folder, in the widest dtype of its leaves, with a tokenizer if any.

    `frame`: what is around it, as for `write_model`, the processor's files too.
    """
    path.mkdir()
    dtype = max((leaf.dtype for leaf in flatten(params).values()), key=lambda dtype: dtype.itemsize)
    write_model(path, model.files, model.specs, dtype.name, tensors_of(params), frame=frame)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    copy_processor(path, frame)


def tensors_of(params: dict[str, Any]) -> Callable[[str, str, tuple[int, ...]], Any]:
    """`write_model`'s callback for a model that is in memory."""
    leaves = flatten(params)

    def tensor(name: str, path: str, at: tuple[int, ...]) -> Any:
        return leaves[path][at] if at else leaves[path]

    return tensor
