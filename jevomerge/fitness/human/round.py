"""One round of comparisons: which two outputs are shown next, and when enough is known."""

from __future__ import annotations

import datetime
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jevomerge.fitness.human.output import Output
from jevomerge.fitness.human.rating import in_order, worth
from jevomerge.fitness.human.tally import Made, Tally
from jevomerge.fitness.human.votes import WON, Choice, Vote, Votes


class Question(NamedTuple):
    """Two outputs for one prompt."""

    prompt: int
    left: Output
    right: Output

    @property
    def key(self) -> tuple[int, frozenset[str]]:
        """The same whichever is on the left."""
        return self.prompt, frozenset((self.left.digest, self.right.digest))


class Round:
    """A round: questions are asked one by one, each once, where they tell most; see `worth`.

    It is over when it has had `limit` votes, when `enough` of its pairs are expected to be in the right order, or when
    nothing is left to ask. Votes of earlier rounds about the same outputs count, and are not asked for again.
    """

    def __init__(
        self,
        name: str,
        task: str,
        split: str,
        prompts: Sequence[Output],
        made: Made,
        votes: Votes,
        *,
        limit: int | None = None,
        enough: float | None = None,
        asked: str = "",
        private: bool = False,
    ):
        """`limit` or `enough` None: that does not end it; `asked` of two outputs; `private`: none goes to a disk."""
        self.name, self.task, self.split, self.prompts, self.made, self.asked = name, task, split, prompts, made, asked
        self.limit, self.enough, self.private, self._log = limit, enough, private, votes
        self._pairs = {
            (a, b): [d for d in range(len(prompts)) if made[a][d].digest != made[b][d].digest]
            for a, b in itertools.combinations(made, 2)
        }
        self._writers = defaultdict[tuple[int, str], list[str]](list)
        for one, outputs in made.items():
            for d, output in enumerate(outputs):
                self._writers[d, output.digest].append(one)
        earlier = votes.of(task, split)
        self._tally = Tally(earlier, name, made)
        self.count = sum(vote["round"] == name for vote in earlier)  # given in this round
        self.answered = defaultdict[tuple[int, frozenset[str]], list[Vote]](list)
        for vote in earlier:
            self._note(vote)
        self._rate()

    def _note(self, vote: Vote) -> None:
        """An answer is known."""
        self.answered[vote["prompt"], frozenset((vote["left"]["digest"], vote["right"]["digest"]))].append(vote)

    def _rate(self) -> None:
        """Find out how good all are, and of which pairs least is known."""
        found = self._tally.standing
        assert found is not None
        place = {one: i for i, one in enumerate(found.names)}
        pairs = [(place[a], place[b]) for a, b in self._pairs]
        differ = np.zeros((len(place), len(place)), bool)
        for pair, prompts in zip(pairs, self._pairs.values(), strict=True):
            differ[pair] = bool(prompts)
        told = worth(found.strengths)
        self.standing, self.known = found, in_order(found.strengths, differ)
        self._order = [pair for _, pair in sorted(zip([-told[p] for p in pairs], self._pairs, strict=True))]

    def question(self, taken: Sequence[Question] = ()) -> Question | None:
        """What to ask next, and not one of those that others have before them; None: nothing is left."""
        given = {question.key for question in taken}
        often = Counter(prompt for prompt, _ in [*self.answered, *given])
        for a, b in self._order:
            open_ = [
                question
                for d in self._pairs[a, b]
                if (question := Question(d, self.made[a][d], self.made[b][d])).key not in self.answered
                and question.key not in given
            ]
            if open_:
                prompt, *sides = min(open_, key=lambda question: often[question.prompt])
                random.shuffle(sides)
                return Question(prompt, *sides)
        return None

    @property
    def over(self) -> bool:
        """Whether enough is known, or no more can be."""
        if self.limit is not None and self.count >= self.limit:
            return True
        return (self.enough is not None and self.known >= self.enough) or self.question() is None

    def vote(self, question: Question, choice: Choice, rater: str, seconds: float = 0.0) -> None:
        """Write an answer down, and learn from it."""

        def said(output: Output) -> dict[str, object]:
            return {"digest": output.digest, **({} if self.private else self._log.keep(output))}

        def side(output: Output) -> dict[str, object]:
            by = self._writers[question.prompt, output.digest]
            return {"by": by, **said(output)}

        vote = {
            **{"task": self.task, "split": self.split, "round": self.name, "prompt": question.prompt},
            "asked": said(self.prompts[question.prompt]),
            "left": side(question.left),
            "right": side(question.right),
            "choice": choice,
            "rater": rater,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
        }
        self._log.add(vote)
        self.count += 1
        self._tally.add(vote)
        self._note(vote)
        self._rate()

    def shares(self) -> dict[str, np.ndarray]:
        """{candidate: (D,)} the share of its comparisons that each has won, where all have been made; ties are half."""
        found = {one: np.zeros((len(self.made) - 1, len(self.prompts))) for one in self.made}
        filled = Counter[str]()
        for a, b in self._pairs:
            won = np.array([self._won(d, self.made[a][d], self.made[b][d]) for d in range(len(self.prompts))])
            for one, part in ((a, won), (b, 1 - won)):
                found[one][filled[one]] = part
                filled[one] += 1
        return {one: part.mean(axis=0) for one, part in found.items()}

    def _won(self, prompt: int, one: Output, other: Output) -> float:
        """What part of the votes about two outputs the first has; half, if they are the same."""
        if one.digest == other.digest:
            return 0.5
        votes = self.answered[Question(prompt, one, other).key]
        won = [WON[v["choice"]] if v["left"]["digest"] == one.digest else 1 - WON[v["choice"]] for v in votes]
        return float(np.mean(won))
