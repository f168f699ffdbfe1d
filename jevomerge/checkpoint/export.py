"""Writing Hugging Face folders: planned from shapes, streamed tensor by tensor, complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from jevomerge.checkpoint.source import INDEX, WEIGHTS, Checkpoint
from jevomerge.checkpoint.specs import flatten, tensor_names
from jevomerge.errors import InputError

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD_BYTES = 5 * 10**9


class ExportFolder:
    """A folder that appears under its name only when its `with` block ends well.

    Everything is written to a hidden sibling first.  On an error the sibling, which nobody else wrote, is
    removed, so a failed or killed export never leaves something that looks like a model.
    """

    def __init__(self, path: str | Path):
        """Refuse a `path` that exists."""
        self.path = Path(path)
        refuse_existing(self.path)

    def __enter__(self) -> Path:
        """The folder to write into."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.partial = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.partial-", dir=self.path.parent))
        self.partial.chmod(0o755)
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Rename into place, or clean up."""
        if error is None:
            refuse_existing(self.path)
            self.partial.rename(self.path)
        else:
            shutil.rmtree(self.partial, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Output never overwrites anything."""
    if path.exists():
        raise InputError(f"{path} exists already and is not overwritten; choose another name or remove it")


def write_model(folder: Path, like: Checkpoint, dtype: str, tensor: Callable[[str, str, int | None], Any]) -> None:
    """Write config, tokenizer and weights of a model shaped like `like` into `folder`.

    Args:
        folder: an existing folder, usually from `ExportFolder`.
        like: the checkpoint whose config.json, generation config and tokenizer are copied.
        dtype: of the weights: float32, bfloat16 or float16.
        tensor: (name, leaf path, layer or None) -> that tensor, called once per tensor in file order.

    Raises:
        InputError: if the disk has no room, before anything is written.
    """
    itemsize = 4 if dtype == "float32" else 2
    shapes = {name: spec.shape for name, spec, _ in tensor_names(like.specs)}
    sizes = {name: int(np.prod(shape)) * itemsize for name, shape in shapes.items()}
    free = shutil.disk_usage(folder).free
    if (needed := sum(sizes.values()) + (1 << 20)) > free:
        raise InputError(
            f"{folder.parent}: the model needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free"
        )
    config = {k: v for k, v in like.config_json.items() if k not in ("_name_or_path", "torch_dtype", "dtype")}
    # transformers 4 reads `torch_dtype`, transformers 5 both.
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}, indent=2) + "\n")
    for path in (like.folder / "generation_config.json", *like.tokenizer_files()):
        if path.exists():
            shutil.copyfile(path, folder / path.name)

    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    files = [WEIGHTS] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    where = {name: (spec.path, layer) for name, spec, layer in tensor_names(like.specs)}
    for file, names in zip(files, shards, strict=True):
        stream_safetensors(
            folder / file,
            {name: shapes[name] for name in names},
            dtype,
            lambda name: tensor(name, *where[name]),
        )
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def stream_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, tensor: Callable[[str], Any]
) -> None:
    """Write one safetensors file holding a single tensor in memory at a time.

    The library's own writer wants all tensors of a file at once; the format (a length, a JSON header,
    the bytes) is simple enough to stream, and a merge then needs no more than one leaf of each source.
    """
    itemsize = 4 if dtype == "float32" else 2
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            array = np.asarray(tensor(name))
            if array.shape != shape or array.dtype.name != dtype:
                raise ValueError(f"{name}: got {array.dtype} {array.shape}, planned {dtype} {shape}")
            file.write(np.ascontiguousarray(array).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def tensors_of(params: dict[str, Any]) -> Callable[[str, str, int | None], Any]:
    """`write_model`'s callback for a model that is in memory."""
    leaves = flatten(params)

    def tensor(name: str, path: str, layer: int | None) -> Any:
        return leaves[path] if layer is None else leaves[path][layer]

    return tensor
