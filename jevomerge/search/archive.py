"""The run folder: what has been evaluated, written down as it happens.

config.yaml         the resolved configuration
environment.json    versions, command, machine
evaluations.jsonl   one line per evaluation, on disk before the next one starts, with its CRC-32: a damaged line is as
                    if it had never been written, and of two lines of the same candidate the later one counts
votes.jsonl         what people said, where they judge; see `jevomerge.fitness.human.votes`
checkpoints/        Orbax checkpoints of the search's state
heldout.json        the held-out examples, and what each whole model scores and writes of them
result.json, best/  the outcome; with several goals also front/
tensorboard/, wandb/  copies for trackers, see `jevomerge.observers.trackers`
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jevomerge.checkpoint.files import parse_json
from jevomerge.errors import InputError
from jevomerge.schema import check
from jevomerge.search.records import Evaluation

Record = dict[str, Any]  # of one evaluation
MARK = b', "crc32": "'  # before the checksum, which ends a line and is of all that stands before the mark


def read_archive(path: Path) -> list[Record]:
    """The evaluations of a run, by generation and member."""
    if not path.exists():
        raise InputError(f"{path} does not exist; is {path.parent} a run folder?")
    return _in_order(_parse(path)[0])


def _parse(path: Path) -> tuple[dict[tuple[int, int], Record], int, int]:
    """The records of a log by (generation, member), how many lines are damaged, and how many bytes are whole lines."""
    data = path.read_bytes() if path.exists() else b""
    *lines, torn = data.split(b"\n")  # what follows the last line end was cut short
    records = [_decode(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    if len({len(r["genome"]) for r in records if r is not None}) > 1:
        raise InputError(f"{path}: its genomes have different lengths; is it of several runs? Keep the lines of one")
    known = {(r["generation"], r["member"]): r for r in records if r is not None}
    return known, records.count(None), len(data) - len(torn)


def _encode(record: Record) -> bytes:
    body = json.dumps(record, ensure_ascii=False)[:-1].encode()
    return body + MARK + b'%08x"}\n' % zlib.crc32(body)


def _decode(line: bytes, where: str) -> Record | None:
    """The record of a line, None if it is not as it was written; with the right checksum it must be a record."""
    body, _, rest = line.rpartition(MARK)
    if rest != b'%08x"}' % zlib.crc32(body):
        return None
    remedy = "no evaluation of this version; remove the line, and what it was about is evaluated again"
    try:
        record: Record = check(Evaluation, parse_json((body + b"}").decode()), where, remedy)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}; {remedy}") from None
    return record


def _in_order(known: dict[tuple[int, int], Record]) -> list[Record]:
    return [known[key] for key in sorted(known)]


class Archive:
    """The append-only log of a run's evaluations, also the memory that a resumed run starts from."""

    def __init__(self, path: Path | None):
        """Read what is there; a last line cut short by a crash is removed. None: nothing is written."""
        self._known: dict[int, dict[int, Record]] = {}  # by generation and member
        self._by_candidate: dict[bytes, Record] = {}
        self._sorted = 0  # generations whose records are in it
        self.damaged, self._file = 0, None
        if path is not None:
            known, self.damaged, whole = _parse(path)
            self.learn(list(known.values()), self.damaged)
            self._file = path.open("ab", buffering=0)  # a full disk is noticed at once, and once
            self._file.truncate(whole)

    def __enter__(self) -> Archive:
        """For `with`: the log is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()

    @property
    def records(self) -> list[Record]:
        """All evaluations, by generation and member."""
        return [record for generation in sorted(self._known) for record in self._of(generation)]

    def _of(self, generation: int) -> list[Record]:
        members = self._known.get(generation, {})
        return [members[member] for member in sorted(members)]

    def with_records(self, f: Callable[[list[Record]], list[Record]]) -> Archive:
        """In memory, what `f` makes of all records."""
        made = Archive(None)
        made.learn(f(self.records), self.damaged)
        return made

    def find(self, generation: int, member: int, genome: list[float]) -> Record | None:
        """The record of this very evaluation, if it was made before a crash."""
        record = self.at(generation, member)
        return record if record is not None and record["genome"] == genome else None

    def at(self, generation: int, member: int) -> Record | None:
        """The record of a member, whatever its genome."""
        return self._known.get(generation, {}).get(member)

    def ranked(self) -> list[Record]:
        """Those with a fitness, the best first: by fitness, then by the second criterion, then the earliest."""
        return sorted(
            (r for r in self.records if r["fitness"] is not None),
            key=lambda r: (-r["fitness"], math.inf if r["tie_break"] is None else -r["tie_break"]),
        )

    def before(
        self, generation: int, distinct: Callable[[np.ndarray], np.ndarray], population: np.ndarray
    ) -> dict[int, Record]:
        """The members of a generation that were scored in an earlier one, and the records of that.

        `distinct` makes of (P, n) genomes (P, n) numbers that are equal where candidates are.
        """
        if new := [record for g in range(self._sorted, generation) for record in self._of(g)]:
            for record, row in zip(new, distinct(np.array([r["genome"] for r in new])), strict=True):
                if record["fitness"] is not None and "stopped" not in record:
                    self._by_candidate.setdefault(row.tobytes(), record)
        self._sorted = max(self._sorted, generation)
        rows = enumerate(distinct(population))
        return {m: found for m, row in rows if (found := self._by_candidate.get(row.tobytes())) is not None}

    def holds(self, generations: int, population: int) -> bool:
        """Whether every evaluation of the first `generations` is here."""
        return all(self.at(g, m) is not None for g in range(generations) for m in range(population))

    def append(self, records: list[Record]) -> None:
        """Add records and wait until they are on disk."""
        if self._file is not None:
            left = memoryview(b"".join(map(_encode, records)))
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        self.learn(records, self.damaged)

    def learn(self, records: list[Record], damaged: int) -> None:
        """Know of records that are on disk already, and of how many damaged lines are among them."""
        for record in records:
            self._known.setdefault(record["generation"], {})[record["member"]] = record
        self.damaged = damaged


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time works on a run folder; the lock goes with the process."""
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another process is working on this run") from None
        yield
