"""What differs between the folders of two runs."""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

# --- comparing ----------------------------------------------------------------------------------------------

MERGED = "merged"
RECORDS = ("evaluations.jsonl", "anchors.json", "heldout.json", "result.json", "environment.json")
EXPORTS = ("best", "front", MERGED)  # whatever lies in these
ABOUT = ("genes", "population", "seed", "sources", "data")  # of environment.json; the rest is about the machine
# How long something took, and the checksum of a line that says so.
TIMED = re.compile(rb'(?<="seconds": )[-+.e\d]+|(?<="crc32": ")[0-9a-f]{8}(?="})')


def compared(folder: Path) -> list[str]:
    """The files that count, in the order in which differences arise."""
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and (name.name in RECORDS or set(EXPORTS) & set(name.parts)):
            found.append(str(name))
    return sorted(found, key=order)


def order(name: str) -> tuple[int, str]:
    base = Path(name).name
    return (RECORDS.index(base) if base in RECORDS else len(RECORDS), name)


def differences(before: Path, after: Path) -> list[str]:
    """What differs first in each file that differs."""
    names = compared(before), compared(after)
    found = []
    for name in sorted({*names[0], *names[1]}, key=order):
        if lacking := [side for side, known in zip(("before", "after"), names, strict=True) if name not in known]:
            found.append(f"{name}: not there {lacking[0]}")
        elif difference := differing(name, (before / name).read_bytes(), (after / name).read_bytes()):
            found.append(f"{name}: {difference}")
    return found


def differing(name: str, before: bytes, after: bytes) -> str | None:
    """The first field of a file that differs."""
    base = Path(name).name
    if base == "environment.json":
        return first_field(*({k: json.loads(x).get(k) for k in ABOUT} for x in (before, after)))
    if base == "evaluations.jsonl" and (bad := bad_line(after)):
        return f"line {bad}: its checksum is wrong"
    if base in RECORDS:
        before, after = (TIMED.sub(b"0", x).replace(b'"crc32": "0"', b'"crc32": ""') for x in (before, after))
    if before == after:
        return None
    if base.endswith(".safetensors"):
        return first_tensor(before, after)
    if base.endswith(".json"):
        return first_field(json.loads(before), json.loads(after)) or "the same fields, written differently"
    lines = before.splitlines(), after.splitlines()
    for number, (one, other) in enumerate(zip(*lines, strict=False), 1):
        if one != other and base.endswith(".jsonl"):
            field = first_field(json.loads(one), json.loads(other)) or "the same fields, written differently"
            return f"line {number}, {field}"
        if one != other:
            return f"line {number}, {short(one.decode())} before, {short(other.decode())} after"
    return f"{len(lines[0])} lines before, {len(lines[1])} after"


def bad_line(log: bytes) -> int | None:
    """The first line whose checksum is not that of the line."""
    for number, line in enumerate(log.splitlines(), 1):
        body, _, rest = line.rpartition(b', "crc32": "')
        if rest != b'%08x"}' % zlib.crc32(body):
            return number
    return None


def first_field(before: Any, after: Any, where: str = "") -> str | None:
    """The first field of two JSON values that differs, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            if lacking := [side for side, x in (("before", before), ("after", after)) if key not in x]:
                return f"{where}.{key}".removeprefix(".") + f": not there {lacking[0]}"
            if found := first_field(before[key], after[key], f"{where}.{key}".removeprefix(".")):
                return found
        return None
    if isinstance(before, list) and isinstance(after, list):
        for i, (one, other) in enumerate(zip(before, after, strict=False)):
            if found := first_field(one, other, f"{where}[{i}]"):
                return found
        same = len(before) == len(after)
        return None if same else f"{where}: {len(before)} items before, {len(after)} after"
    # Of NaN and of 1 and 1.0, too.
    same = json.dumps(before) == json.dumps(after)
    return None if same else f"{where}: {short(before)} before, {short(after)} after"


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def first_tensor(before: bytes, after: bytes) -> str:
    """The first tensor of two safetensors files that differs."""
    headers, starts = [], []
    for data in (before, after):
        size = int.from_bytes(data[:8], "little")
        headers.append(json.loads(data[8 : 8 + size]))
        starts.append(8 + size)
    if difference := first_field(*headers):
        return f"header, {difference}"
    for name, entry in headers[0].items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors = [
                np.frombuffer(d[s + begin : s + end], np.uint8) for d, s in ((before, starts[0]), (after, starts[1]))
            ]
            if count := int((tensors[0] != tensors[1]).sum()):
                return f"{name}, {count} of {end - begin} bytes"
    return "the same tensors, written differently"
