"""`jevomerge merge RECIPE OUT` in this process, to tell the imports from the merge and its parts from each other.

Prints one line of JSON.  Parts, in seconds: `read`, `finite` (the check for NaN), `prepare`, `compile`, `write`,
`fsync`; what remains of `merge_seconds` is the kernel and Python.
"""

import collections
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

start = time.perf_counter()
import jax  # noqa: E402

from jevomerge import cli  # noqa: E402
from jevomerge.checkpoint import export, safetensors_file, source  # noqa: E402
from jevomerge.recipe import to_folder as stream  # noqa: E402

imports = time.perf_counter() - start
parts: dict[str, float] = collections.defaultdict(float)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, its seconds added to `part`, less the compilations in it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        compiled, begin = parts["compile"], time.perf_counter()
        try:
            return jax.block_until_ready(work(*args, **kwargs))
        finally:
            parts[part] += time.perf_counter() - begin - (parts["compile"] - compiled)

    return call


def on_event(name: str, seconds: float, **_: Any) -> None:
    if name.startswith("/jax/core/compile/"):
        parts["compile"] += seconds


def merge(sources: Any, *args: Any, **kwargs: Any) -> None:
    sources.method = sources.method._replace(prepare=timed("prepare", sources.method.prepare))
    parts["imported_mb"] = peak_mb()
    cpu, begin = time.process_time(), time.perf_counter()
    merge_to_folder(sources, *args, **kwargs)
    parts["merge_seconds"] = time.perf_counter() - begin
    parts["merge_cpu_seconds"] = time.process_time() - cpu


def stream_safetensors(path: Any, planned: Any, tensor: Callable[[str], Any]) -> None:
    inside = parts["tensors"] + parts["fsync"]
    begin = time.perf_counter()
    write(path, planned, timed("tensors", tensor))
    parts["write"] += time.perf_counter() - begin - (parts["tensors"] + parts["fsync"] + parts["compile"] - inside)


jax.monitoring.register_event_duration_secs_listener(on_event)
merge_to_folder, stream.merge_to_folder = stream.merge_to_folder, merge
write, export.stream_safetensors = export.stream_safetensors, stream_safetensors
source.all_finite = timed("finite", source.all_finite)
safetensors_file.StoredTensor.read = timed("read", safetensors_file.StoredTensor.read)  # type: ignore[method-assign]
safetensors_file.os.fsync = timed("fsync", safetensors_file.os.fsync)
begin = time.perf_counter()
if cli.main(["merge", *sys.argv[1:], "--debug"]):
    raise SystemExit(1)
total = time.perf_counter() - begin
del parts["tensors"]
print(json.dumps({"import_seconds": imports, "command_seconds": total} | parts))
