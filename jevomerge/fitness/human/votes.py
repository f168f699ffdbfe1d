"""Every vote of people, in votes.jsonl: on disk before the next question is asked, and all that ratings are made of.

A vote is about two outputs for one prompt, and so about all candidates that made them. A line holds what was shown, of
a picture the name of a file; of private tasks digests alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jevomerge.checkpoint.files import parse_json
from jevomerge.errors import InputError
from jevomerge.fitness.human.output import Output
from jevomerge.schema import Count, Part, check

VOTES_FILE = "votes.jsonl"
Vote = dict[str, Any]  # a line, as `Line` says
Choice = Literal["left", "right", "tie"]
WON: dict[str, float] = {"left": 1.0, "right": 0.0, "tie": 0.5}  # by what was on the left


class Side(Part):
    """What was on one side."""

    by: list[str]  # the candidates that had made it by then
    digest: str


class Line(Part):
    """A line of votes.jsonl."""

    task: str
    split: Literal["search", "heldout"]
    round: str  # in which it was given, such as "generation 3"
    prompt: Count  # its number in the split
    left: Side
    right: Side
    choice: Choice
    rater: str
    time: str  # UTC


def read_votes(path: Path) -> tuple[list[Vote], int]:
    """The votes of a run in their order, and how many bytes are whole lines: a crash may have cut the last one short.

    Raises:
        InputError: for a line that is no vote.
    """
    data = path.read_bytes() if path.exists() else b""
    *lines, torn = data.split(b"\n")
    return [_read(line, f"{path}:{number}") for number, line in enumerate(lines, 1)], len(data) - len(torn)


def _read(line: bytes, where: str) -> Vote:
    remedy = "no vote; remove the line, and the question is asked again"
    try:
        vote: Vote = check(Line, parse_json(line.decode()), where, remedy)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}; {remedy}") from None
    return vote


class Votes:
    """The log of a run, which grows."""

    def __init__(self, path: Path | None = None):
        """Read what is there; a last line cut short by a crash is removed. None: nothing is written."""
        self.all, self._file, self._folder = list[Vote](), None, None
        if path is not None:
            self.all, whole = read_votes(path)
            self._folder = path.parent
            self._file = path.open("ab", buffering=0)
            self._file.truncate(whole)

    def __enter__(self) -> Votes:
        """For `with`: the log is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()

    def of(self, task: str, split: str) -> list[Vote]:
        """Those about one split of a task."""
        return [vote for vote in self.all if (vote["task"], vote["split"]) == (task, split)]

    def keep(self, output: Output) -> Mapping[str, str]:
        """What a vote's line says that was shown."""
        return output.kept(self._folder)

    def add(self, vote: Vote) -> None:
        """One more, on disk when this returns."""
        if self._file is not None:
            left, end = memoryview(json.dumps(vote, ensure_ascii=False).encode() + b"\n"), os.fstat(self._file.fileno())
            try:
                while left:
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
            except OSError:  # of a full disk: half a line would spoil the next one
                self._file.truncate(end.st_size)
                raise
        self.all.append(vote)
