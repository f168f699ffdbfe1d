"""The weights of a folder: one safetensors file, or shards that an index lists; and how they are written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.safetensors_file import Planned, StoredTensor, read_header, stream_safetensors
from jevomerge.errors import InputError
from jevomerge.schema import Notes

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_weights(folder: Path, notes: Notes, weights: str = WEIGHTS, index: str = INDEX) -> dict[str, StoredTensor]:
    """Where each tensor lies, from the files' own headers.

    Raises:
        InputError: naming what is missing or damaged.
    """
    if (folder / weights).exists():  # transformers looks for it first, and then at no index
        files = [weights]
        if (folder / index).exists():
            notes.add(f"{folder}: {weights} is read, as by transformers; {index} beside it is not")
    elif (folder / index).exists():
        files = _shards(folder, index)
    else:
        pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt*"))]
        remedy = (
            f"only pickle files ({', '.join(sorted(pickles)[:3])}), which can run code and are never opened; "
            "convert them once with `transformers`: model.save_pretrained(FOLDER, safe_serialization=True)"
            if pickles
            else f"no {weights} and no {index}"
        )
        raise InputError(f"{folder} has {remedy}")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        header = read_header(folder / file)
        if doubled := tensors.keys() & header.keys():
            raise InputError(f"{folder}: tensor {min(doubled)} is in two files; remove the one that is wrong")
        tensors |= header
    return tensors


def _shards(folder: Path, index: str) -> list[str]:
    """The files that the index names."""
    found = read_json(folder / index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise InputError(f"{folder / index}: `weight_map` must give each tensor's file; download it again")
    files = sorted(set(found.values()))
    for file in files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise InputError(
                f"{folder / index} names {file}, which lies outside the folder and is not read; copy it there"
            )
        if not (folder / file).exists():
            raise InputError(f"{folder}: shard {file} is missing, though {index} lists it; download it again")
    return files


def check_room(folder: Path, planned: Mapping[str, Planned]) -> None:
    """Raise InputError unless the disk has room for what is to be written in `folder`."""
    free = shutil.disk_usage(folder).free
    if (needed := sum(p.size for p in planned.values()) + (1 << 20)) > free:
        raise InputError(
            f"{folder.parent}: the model needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free"
        )


def write_weights(
    folder: Path,
    planned: Mapping[str, Planned],
    tensor: Callable[[str], Any],
    shard_bytes: int,
    stem: str = "model",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `planned` tensors, in their order, as files of at most `shard_bytes` unless one tensor is larger."""
    shards: list[list[str]] = [[]]
    for name, plan in planned.items():
        if shards[-1] and sum(planned[n].size for n in shards[-1]) + plan.size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    files = [f"{stem}.safetensors"] if len(shards) == 1 else [
        f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    for file, names in zip(files, shards, strict=True):
        stream_safetensors(folder / file, {name: planned[name] for name in names}, tensor, metadata)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(p.size for p in planned.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
