"""Writing Hugging Face folders: planned from shapes, streamed tensor by tensor, complete or absent."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.safetensors_file import DTYPES, NUMPY, stream_safetensors
from jevomerge.checkpoint.source import INDEX, WEIGHTS, Checkpoint
from jevomerge.checkpoint.specs import ParamSpec, flatten, tensor_names
from jevomerge.errors import InputError

SHARD_BYTES = 5 * 10**9


@contextlib.contextmanager
def export_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that appears as `path` only when the `with` block ends well."""
    path = Path(path)
    refuse_existing(path)
    with scratch_folder(path) as folder:
        yield folder
        refuse_existing(path)
        folder.rename(path)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for what is not finished, removed at the end.

    It is locked while its process lives; those that killed processes left behind are removed here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with contextlib.suppress(BlockingIOError), _locked(stale):
            shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
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
    """Output never overwrites anything."""
    if path.exists():
        raise InputError(f"{path} exists already and is not overwritten; choose another name or remove it")


def write_model(
    folder: Path,
    config_json: Mapping[str, Any],
    specs: Sequence[ParamSpec],
    dtype: str,
    tensor: Callable[[str, str, int | None], Any] | None,
) -> None:
    """Write config.json and the weights of a model into `folder`.

    Args:
        folder: an existing folder, usually from `export_folder`.
        config_json: the contents of config.json; the dtype in it is replaced.
        specs: the parameter table of the model that is written.
        dtype: of the weights: float32, bfloat16 or float16.
        tensor: (name, leaf path, layer or None) -> that tensor, called once per tensor in file order; None: the files
            have headers and holes.

    Raises:
        InputError: if the disk has no room, before anything is written.
    """
    itemsize = NUMPY[DTYPES[dtype]].itemsize
    where = {name: (spec.path, layer) for name, spec, layer in tensor_names(specs)}
    shapes = {name: spec.shape for name, spec, _ in tensor_names(specs)}
    sizes = {name: math.prod(shape) * itemsize for name, shape in shapes.items()}
    free = shutil.disk_usage(folder).free
    if (needed := sum(sizes.values()) + (1 << 20)) > free and tensor is not None:
        raise InputError(
            f"{folder.parent}: the model needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free"
        )
    config = {k: v for k, v in config_json.items() if k not in ("_name_or_path", "torch_dtype", "dtype")}
    # transformers 4 reads `torch_dtype`, transformers 5 both.
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}, indent=2) + "\n")

    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    files = [WEIGHTS] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    for file, names in zip(files, shards, strict=True):
        stream_safetensors(
            folder / file,
            {name: shapes[name] for name in names},
            dtype,
            lambda name: None if tensor is None else tensor(name, *where[name]),
        )
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def copy_tokenizer(folder: Path, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tokenizer files, and generation_config.json, whose token ids are that tokenizer's."""
    for path in (*checkpoint.tokenizer_files(), checkpoint.folder / "generation_config.json"):
        if path.exists():
            shutil.copyfile(path, folder / path.name)


def tensors_of(params: dict[str, Any]) -> Callable[[str, str, int | None], Any]:
    """`write_model`'s callback for a model that is in memory."""
    leaves = flatten(params)

    def tensor(name: str, path: str, layer: int | None) -> Any:
        return leaves[path] if layer is None else leaves[path][layer]

    return tensor
