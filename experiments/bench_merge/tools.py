"""The benchmark's other processes: `make` the sources, the `floor`, the `largest` tensor, `compare` two outputs.

The floor reads all sources and writes one model, tensor by tensor, with NumPy and nothing else: no merge that is
written to a disk is faster.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

TYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
NOISE = 0.01  # of a tensor's standard deviation: about what a fine-tune changes


def header_of(path: Path) -> tuple[int, dict]:
    """(where the data begin, {name: entry})."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header


def make(model: str, out: str, dtype: str, count: str) -> None:
    """`out`/base and `out`/source0, ...: the model in this dtype, and copies of it with seeded noise."""
    from safetensors.numpy import load_file, save_file

    for i in range(-1, int(count)):
        folder = Path(out) / ("base" if i < 0 else f"source{i}")
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # ours: left by an interrupted run
            shutil.copytree(model, partial, ignore=lambda *_: ["model.safetensors"])
            rng = np.random.default_rng(i + 1)
            weights = load_file(Path(model) / "model.safetensors")
            for name, x in weights.items():
                noise = np.float32(NOISE * x.std()) * rng.standard_normal(x.shape, np.float32) if i >= 0 else 0
                weights[name] = (x + noise).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
            save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
            config = json.loads((partial / "config.json").read_text())
            (partial / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype, "dtype": dtype}))
            partial.rename(folder)
        (folder / "model.safetensors").read_bytes()  # into the page cache, for everybody


def largest(folder: str) -> None:
    """MB of the largest tensor."""
    _, header = header_of(Path(folder) / "model.safetensors")
    sizes = [stop - start for start, stop in (entry["data_offsets"] for entry in header.values())]
    print(max(sizes) / 2**20)


def floor(out: str, *folders: str) -> None:
    """Read every tensor of every source, write those of the first."""
    start, cpu = time.perf_counter(), time.process_time()
    paths = [Path(folder) / "model.safetensors" for folder in folders]
    begins, headers = zip(*(header_of(path) for path in paths), strict=True)
    entries = sorted(headers[0].items(), key=lambda item: item[1]["data_offsets"])
    buffers = [np.empty(max(e["data_offsets"][1] - e["data_offsets"][0] for _, e in entries), np.uint8) for _ in paths]
    files = [path.open("rb", buffering=0) for path in paths]
    Path(out).mkdir()
    encoded = json.dumps(headers[0]).encode()
    with (Path(out) / "model.safetensors").open("wb", buffering=0) as target:
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, _ in entries:
            for file, begin, header, buffer in zip(files, begins, headers, buffers, strict=True):
                first, last = header[name]["data_offsets"]
                file.seek(begin + first)
                file.readinto(buffer[: last - first])
            target.write(buffers[0][: last - first])
        before = time.perf_counter()
        os.fsync(target.fileno())
        fsync = time.perf_counter() - before
    seconds = time.perf_counter() - start
    print(json.dumps({"loop_seconds": seconds, "loop_cpu_seconds": time.process_time() - cpu, "fsync": fsync}))


def compare(first: str, second: str) -> None:
    """How far two models lie apart: the largest difference, and the share of elements that differ by over 1 %."""
    paths = [Path(first), Path(second)]
    (begin, header), (other_begin, other) = (header_of(path) for path in paths)
    assert header.keys() == other.keys(), header.keys() ^ other.keys()
    largest_difference, different, size = 0.0, 0, 0
    for name, entry in header.items():
        arrays = []
        for path, start, e in zip(paths, (begin, other_begin), (entry, other[name]), strict=True):
            low, high = e["data_offsets"]
            kind = TYPES[e["dtype"]]
            data = np.fromfile(path, kind, (high - low) // kind.itemsize, offset=start + low)
            arrays.append(data.astype(np.float32))
        difference = np.abs(arrays[0] - arrays[1])
        largest_difference = max(largest_difference, float(difference.max()))
        different += int((difference > 0.01 * np.abs(arrays[0]) + 1e-6).sum())
        size += difference.size
    print(json.dumps({"largest_difference": largest_difference, "share_that_differs": different / size}))


if __name__ == "__main__":
    {f.__name__: f for f in (make, largest, floor, compare)}[sys.argv[1]](*sys.argv[2:])
