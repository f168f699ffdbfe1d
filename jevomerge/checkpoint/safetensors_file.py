"""The safetensors format: a length, a JSON header, the bytes.

Read with plain byte ranges, never mapped: touched pages of a mapping count as resident memory, and a merge of
many large models would seem (and, with a memory limit, be) as large as all of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jevomerge.checkpoint.files import parse_json
from jevomerge.devices.signals import safe_point
from jevomerge.errors import InputError, NotFinite

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # that models are written in
# The dtypes that are read: of weights the floating ones, of buffers that are ignored any.
NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
FLOATING = ("F64", "F32", "BF16", "F16")
LONGEST_HEADER = 100_000_000  # bytes, as in the format's own reader
ALIGNMENT = 64  # what XLA asks of host memory that it is to use in place
BLOCK = 1 << 18  # elements that stay in a core's cache while they are looked at twice
SMALL = 1 << 20  # bytes; of larger tensors a digest sees SAMPLES pieces of SAMPLE bytes
SAMPLES, SAMPLE = 16, 4096


class StoredTensor(NamedTuple):
    """Where a tensor lies: nothing of it has been read."""

    path: Path
    code: str  # its dtype as the format spells it: "BF16"
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its NumPy dtype."""
        return NUMPY[self.code]

    def read(self, out: np.ndarray | None = None, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Its values, or those at `index`, in `out` (of their shape and dtype, contiguous) or in a new aligned array.

        Of a part, its bytes alone are read. Raises InputError if the file has changed since its header was read.
        """
        safe_point()
        index = index or (slice(None),) * len(self.shape)
        ranges = [range(n)[part] for n, part in zip(self.shape, index, strict=True)]
        out = aligned_empty(tuple(map(len, ranges)), self.dtype) if out is None else out
        # Behind the last axis of which a part is read, all is one run of bytes.
        cut = max((i for i, r in enumerate(ranges) if len(r) < self.shape[i]), default=0)
        width, runs = math.prod(self.shape[cut + 1 :]), []
        first = ranges[cut].start if ranges else 0
        for at in itertools.product(*(range(len(r)) for r in ranges[:cut])):
            row = 0
            for i, r, n in zip(at, ranges, self.shape, strict=False):
                row = row * n + r[i]
            place: Any = (*at, ...)
            runs.append(((row * (self.shape[cut] if cut else 0) + first) * width, out[place]))
        with self.path.open("rb", buffering=0) as file:
            for start, target in runs:
                file.seek(self.offset + start * self.dtype.itemsize)
                left = target.reshape(-1).view(np.uint8).data
                while left and (done := file.readinto(left)):  # Linux reads at most 2 GiB at once
                    left = left[done:]
                if left:
                    raise InputError(f"{self.path} became shorter while it was read; is it still being written?")
        return out


def digest_tensors(tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, of a large tensor its ends and blocks evenly between.

    It does not depend on which files they are in. A model of 7 billion parameters takes some 20 MB of reading.
    """
    sha = hashlib.sha256()
    for name, stored in sorted(tensors.items()):
        sha.update(f"{name} {stored.code} {list(stored.shape)}\n".encode())
        size = math.prod(stored.shape) * stored.dtype.itemsize
        with stored.path.open("rb", buffering=0) as file:
            if size <= SMALL:
                file.seek(stored.offset)
                sha.update(file.read(size))
                continue
            for i in range(SAMPLES):
                file.seek(stored.offset + i * (size - SAMPLE) // (SAMPLES - 1))
                sha.update(file.read(SAMPLE))
    return sha.hexdigest()


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An uninitialised array that `jax.device_put` takes over on a CPU without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """{name: where it lies} of a file's tensors.

    Raises:
        InputError: for a file that is truncated, damaged, or in a dtype that is not read.
    """
    try:
        if not path.is_file():  # of a named pipe the reader would wait for ever
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start, end = 8 + length, path.stat().st_size
            if start > end:
                raise ValueError("its header is incomplete")
            if length > LONGEST_HEADER:
                raise ValueError(f"its header has {length} bytes, more than the format allows")
            header = parse_json(file.read(length).decode())
        header.pop("__metadata__", None)
        tensors = {}
        last = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            code, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(n) is int for n in (*shape, begin, stop)):
                raise ValueError(f"shape and data_offsets of {name} must be whole numbers")
            if code not in NUMPY:
                raise InputError(
                    f"{path}: {name} is stored as {code}, which is not read; of a quantised model name the original "
                    f"16-bit one, another save as {', '.join(DTYPES)}"
                )
            if begin != last:
                raise ValueError(f"{name} does not begin where the tensor before it ends")
            if any(n < 0 for n in shape) or stop - begin != math.prod(shape) * NUMPY[code].itemsize:
                raise ValueError(f"{name} has {stop - begin} bytes, not those of {code} {list(shape)}")
            tensors[name] = StoredTensor(path, code, shape, start + begin)
            last = stop
        if last != end - start:
            raise ValueError(f"its tensors take {last} bytes, it has {end - start}")
        return tensors
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}); it is truncated or damaged, download it again") from None


def read_metadata(path: Path) -> dict[str, str]:
    """What a file whose header has been read says of itself, {key: text}."""
    with path.open("rb") as file:
        header = parse_json(file.read(int.from_bytes(file.read(8), "little")).decode())
    return {key: value for key, value in (header.get("__metadata__") or {}).items() if isinstance(value, str)}


class Planned(NamedTuple):
    """A tensor that is to be written."""

    code: str  # as of a `StoredTensor`
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * NUMPY[self.code].itemsize


def stream_safetensors(
    path: Path, planned: Mapping[str, Planned], tensor: Callable[[str], Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file, holding a single tensor in memory at a time; a `tensor` that is None stays a hole, zeros.

    `metadata`: what the file says of itself.

    Raises:
        NotFinite: naming the first tensor with NaN or infinity.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, plan in planned.items():
        start, end = end, end + plan.size
        header[name] = {"dtype": plan.code, "shape": list(plan.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, plan in planned.items():
            safe_point()
            if (array := tensor(name)) is None:
                file.seek(plan.size, os.SEEK_CUR)
                continue
            array = np.asarray(array)
            if (array.dtype, array.shape) != (NUMPY[plan.code], plan.shape):
                raise ValueError(f"{name}: got {array.dtype} {array.shape}, planned {plan.code} {plan.shape}")
            if plan.code in FLOATING and not all_finite(array):
                wider = "write bfloat16 or float32 (`out_dtype`), or " if plan.code == "F16" else ""
                raise NotFinite(
                    f"{name} of the merged model has values that are too large for {array.dtype}, or none (NaN); "
                    f"{wider}bring its weights, their sum, lambda or scales closer to 1"
                )
            left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            while left:  # Linux writes at most 2 GiB at once
                left = left[file.write(left) :]
        file.truncate(len(encoded) + 8 + end)
        os.fsync(file.fileno())


def all_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite.

    Floating-point numbers are ordered like their bits, negative ones like their bits without a sign: two maxima
    of integers tell, at the speed of memory and without a temporary array.
    """
    size, flat = array.dtype.itemsize, array.reshape(-1)
    infinity = np.array(np.inf, array.dtype)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        largest, smallest = block.view(f"i{size}").max(), block.view(f"u{size}").max()
        if largest >= infinity.view(f"i{size}") or smallest >= (-infinity).view(f"u{size}"):
            return False
    return True
