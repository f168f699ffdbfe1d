"""What votes say of candidates: who was preferred to whom, and how good that makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from jevomerge.fitness.human.output import Output
from jevomerge.fitness.human.rating import Strengths, fit
from jevomerge.fitness.human.votes import WON, Vote

Made = Mapping[str, Sequence[Output]]  # by candidate, for each prompt


class Standing(NamedTuple):
    """How good candidates are by all votes so far."""

    names: list[str]
    strengths: Strengths
    first: np.ndarray  # (N,) bool: who took part in the first round

    @property
    def scores(self) -> dict[str, float]:
        """The share of comparisons that each is expected to win against the mean of the first round."""
        mean = self.strengths.mean
        return dict(zip(self.names, expit(mean - mean[self.first].mean()).tolist(), strict=True))

    @property
    def best(self) -> str:
        """Who is most probably the best."""
        return self.names[int(self.strengths.mean.argmax())]


class Tally:
    """Who was preferred to whom, by votes about one split of a task.

    A vote counts for all that wrote the two outputs, those of a round at hand included, but once: each pair has a part
    of it.
    """

    def __init__(self, votes: Sequence[Vote], name: str = "", made: Made | None = None):
        """Of all whom the votes tell of, in their order, and of those who are in the round `name`, who made `made`."""
        self._made = made or {}
        order = {round: k for k, round in enumerate(dict.fromkeys([*(vote["round"] for vote in votes), name]))}
        self._came: dict[str, int] = {}  # in which round
        for vote in votes:
            for one in (*vote["left"]["by"], *vote["right"]["by"]):
                self._came.setdefault(one, order[vote["round"]])
        for one in self._made:
            self._came.setdefault(one, order[name])
        self._number = {one: i for i, one in enumerate(self._came)}
        self.wins = np.zeros((len(self._came), len(self._came)))
        for vote in votes:
            self.add(vote)

    def add(self, vote: Vote) -> None:
        """One more, about outputs of who is known already."""
        left, right = self._writers(vote, "left"), self._writers(vote, "right")
        won, part = WON[vote["choice"]], 1 / (len(left) * len(right))
        self.wins[np.ix_(left, right)] += won * part
        self.wins[np.ix_(right, left)] += (1 - won) * part

    def _writers(self, vote: Vote, side: str) -> np.ndarray:
        digest = vote[side]["digest"]
        now = (one for one, outputs in self._made.items() if outputs[vote["prompt"]].digest == digest)
        return np.array([self._number[one] for one in dict.fromkeys((*vote[side]["by"], *now))])

    @property
    def standing(self) -> Standing | None:
        """How good they are; None: there is nobody."""
        if not self._came:
            return None
        rounds = np.array([*self._came.values()])
        return Standing([*self._came], fit(self.wins, rounds), rounds == rounds.min())
