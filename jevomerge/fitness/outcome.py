"""What becomes of a batch: which rows are here, what they mean for documents, and how many tokens that took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jevomerge.fitness.batches import Example
from jevomerge.fitness.racing import Stopped
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.fitness.task import Material

SHOWN = 6  # documents of which people see pictures


class Tokens(NamedTuple):
    """How many tokens a model was run on to be scored: those of the examples, without padding."""

    prompt: int
    answer: int  # of the reference answers; where it generates, those it wrote, with the ends of its texts


def total(several: Iterable[Tokens]) -> Tokens:
    """Their sum."""
    several = list(several)
    return Tokens(sum(t.prompt for t in several), sum(t.answer for t in several))


class Scores(NamedTuple):
    """Scores of one model: {task: (n,)} by document, and the same of a second criterion that breaks ties."""

    fitness: dict[str, np.ndarray]
    tie_break: dict[str, np.ndarray]
    texts: dict[str, list[str]]  # what it wrote, where it generates; a member's where it was scored in this process
    stopped: Stopped | None = None  # if it was not scored to the end; the rest of its scores are NaN
    tokens: Tokens = Tokens(0, 0)
    drawn: Mapping[str, list[str]] = {}  # of tasks where it draws, the first pictures, JPEGs in base64; as `texts`
    made: Mapping[str, list[Any]] = {}  # of each document of tasks whose outputs are compared; as `texts`
    broken: Mapping[str, int] = {}  # of tasks where it draws, how many pictures are not finite or of one colour, if any


def over_tasks(weights: Mapping[str, float], values: Mapping[str, Any]) -> Any:
    """The weighted mean of {task: a number or an array}: what a fitness is made of."""
    return sum(weight * values[name] for name, weight in weights.items()) / sum(weights.values())


class Found:
    """What M members made of some documents of a task, as it comes in."""

    def __init__(self, material: Material, documents: np.ndarray, members: int):
        """Nothing yet."""
        self.material, self.documents = material, documents
        counts = np.diff(material.first)[documents]
        self.first = np.concatenate([[0], np.cumsum(counts)])  # as Material's, of these documents alone
        self.owner = np.repeat(np.arange(len(documents)), counts)  # (R,) whose an example is
        self.missing = counts.copy()
        self.outputs: list[list[Any]] = [[None] * len(self.owner) for _ in range(members)]
        self.pairs = np.full((2, members, len(documents)), np.nan)  # scores, and what breaks their ties

    def add(self, rows: np.ndarray, outputs: Mapping[int, Sequence[Any]]) -> None:
        """What members made of the examples `rows`; documents of which none is missing any more are scored."""
        for m, new in outputs.items():
            for row, output in zip(rows, new, strict=True):
                self.outputs[m][row] = output
        np.subtract.at(self.missing, self.owner[rows], 1)
        owners = np.unique(self.owner[rows])
        whole = owners[self.missing[owners] == 0]
        numbers = self.documents[whole].tolist()
        for m in outputs if len(whole) else ():
            made = [self.outputs[m][self.first[d] : self.first[d + 1]] for d in whole]
            self.pairs[:, m, whole] = np.array(self.material.read(numbers, made)).T

    @property
    def seen(self) -> np.ndarray:
        """(D,) which documents are scored."""
        return self.missing == 0

    def texts(self, member: int) -> list[str]:
        """What a member wrote, by document."""
        written = [text or "" for text in self.outputs[member]]
        return ["\n".join(written[a:b]) for a, b in zip(self.first, self.first[1:], strict=False)]

    def drawn(self, member: int) -> list[str]:
        """What a member drew of the first documents, one picture of each; of none that was not drawn here."""
        pictures = (self.outputs[member][first] for first in self.first[:-1][:SHOWN])
        return [picture.jpeg for picture in pictures if picture is not None]

    def broken(self, member: int) -> int:
        """How many of its pictures are."""
        return sum(picture.broken for picture in self.outputs[member] if picture is not None)


def of_this_process(output: Any, chosen: Any = ...) -> dict[int, tuple[np.ndarray, ...]]:
    """Of arrays whose first axis is over members, the rows of those in this process, and of these the `chosen`."""
    rows: dict[int, list[np.ndarray]] = {}
    for array in jax.tree.leaves(output):
        # Several devices have a member whose weights are split over them.
        shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        for start, data in shards.items():
            for m, row in enumerate(np.asarray(data), start):
                rows.setdefault(m, []).append(row[chosen])
    return {m: tuple(own) for m, own in rows.items()}


def count_tokens(
    rollout: Rollout, examples: Sequence[Example], batch: Any, outputs: Sequence[np.ndarray]
) -> np.ndarray:
    """What a member's outputs of these examples took, in the order of `Tokens`."""
    spent = rollout.spent(examples, batch, outputs)
    return np.array([spent.get(kind, 0) for kind in Tokens._fields])
