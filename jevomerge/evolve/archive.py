"""The run folder: what has been evaluated, written down as it happens.

config.yaml         the resolved configuration
environment.json    versions, command, machine
evaluations.jsonl   one line per evaluation, flushed to disk before the next one starts
checkpoints/        Orbax checkpoints of the search's state
result.json, best/  the outcome
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jevomerge.errors import InputError


def read_archive(path: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, in order."""
    if not path.exists():
        raise InputError(f"{path} does not exist; is {path.parent} a run folder?")
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a log, and how many of its bytes are whole lines."""
    records, good = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break  # cut short by a crash
        records.append(json.loads(line))
        good += len(line)
    return records, good


class Archive:
    """The append-only log of a run's evaluations, also the memory that a resumed run starts from."""

    def __init__(self, path: Path):
        """Read what is there; a last line cut short by a crash is removed."""
        self.records, good = _parse(path)
        self._file = path.open("ab")
        self._file.truncate(good)
        self._known = {self._key(r): r for r in self.records}

    def __enter__(self) -> Archive:
        """For `with`: the log is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the log."""
        self._file.close()

    @staticmethod
    def _key(record: dict[str, Any]) -> tuple[Any, ...]:
        return (record["generation"], record["member"], tuple(record["genome"]))

    def find(self, generation: int, member: int, genome: list[float]) -> dict[str, Any] | None:
        """The record of this very evaluation, if it was made before a crash."""
        return self._known.get((generation, member, tuple(genome)))

    def holds(self, generations: int, population: int) -> bool:
        """Whether every evaluation of the first `generations` is here."""
        return sum(r["generation"] < generations for r in self.records) == generations * population

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add records and wait until they are on disk."""
        self._file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records += records
        self._known |= {self._key(r): r for r in records}


def write_atomically(path: Path, text: str) -> None:
    """The file has either its old content or all of `text`, whenever the machine stops."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time works on a run folder; the lock goes with the process."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another process is working on this run") from None
        yield
