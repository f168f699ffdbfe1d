"""Tasks that people judge, in a search: who is compared with whom, and what that is worth.

One round of votes for each generation, whose members meet the best so far, so that all ratings are on one scale; one
before, among the sources and their average, which is where the scale has its middle; and after the search one in which
the outcome meets them on the held-out prompts, every pair on every prompt. Ratings are of all votes together, and so
are better known later: what evaluations.jsonl has is what was known when the search went on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jevomerge.errors import InputError
from jevomerge.fitness.human.page import Page
from jevomerge.fitness.human.round import Round
from jevomerge.fitness.human.tally import Tally
from jevomerge.fitness.human.task import ByPeople
from jevomerge.fitness.human.votes import Votes
from jevomerge.fitness.judge import Judge
from jevomerge.fitness.outcome import Scores
from jevomerge.fitness.people import PeopleScore
from jevomerge.fitness.tasks import AnyTask
from jevomerge.observers.observer import Observer
from jevomerge.search.archive import Record
from jevomerge.search.baselines import Baselines, Scored, with_scores
from jevomerge.strategies.schema import Search

SOURCES = "sources"  # the first round
Ask = Callable[[Round], None]  # has the questions of a round answered


def member_name(record: Record) -> str:
    """What votes.jsonl calls a candidate."""
    generation, member = record.get("copy_of") or (record["generation"], record["member"])
    return f"generation {generation}, member {member}"


def judged_by_people(judge: Judge) -> list[ByPeople]:
    """The tasks that they judge."""
    return [task for task in judge.tasks if isinstance(task, ByPeople)]


def refuse_people(tasks: Sequence[AnyTask], search: Search) -> None:
    """Raise InputError where there is none who could be asked, or nothing to compare."""
    if not (judged := [task.name for task in tasks if isinstance(task.score, PeopleScore)]):
        return
    if search.examples_per_generation is not None:
        raise InputError(
            f"search.examples_per_generation: people judge {judged[0]}, and are asked about what tells most; leave it "
            "out, and give its `search` a `limit`"
        )
    if jax.process_count() > 1:
        raise InputError(f"people judge {judged[0]} in a page of the one process that runs; start it as one")


class People:
    """The people who judge tasks of a run, by their votes so far."""

    def __init__(self, judge: Judge, votes: Votes, ask: Ask):
        """`votes`: of the run."""
        self.judge, self.votes, self._ask = judge, votes, ask
        self.tasks = judged_by_people(judge)
        self._sources: Mapping[str, Scores] = {}

    def sources(self, baselines: Baselines) -> Baselines:
        """The baselines, compared on the search split; from now on candidates may meet them."""
        self._sources = {name: scored.search for name, scored in baselines.named.items()}
        return self._rated(baselines, self._compare(SOURCES, self._sources))

    def rated(self, baselines: Baselines) -> Baselines:
        """The baselines by all votes so far."""
        return self._rated(baselines, self._known())

    def _rated(self, baselines: Baselines, found: Mapping[str, Mapping[str, float]]) -> Baselines:
        """With scores by task and name."""
        return baselines.map(
            lambda name, scored: with_scores(scored, self.judge, "search", _filled(scored.search, name, found))
        )

    def _known(self) -> dict[str, dict[str, float]]:
        """{task: {candidate: score}} by all votes so far."""
        known = {task.name: Tally(self.votes.of(task.name, "search")).standing for task in self.tasks}
        return {task: found.scores for task, found in known.items() if found is not None}

    def best_before(self, generation: int) -> set[str]:
        """Whom the members of a generation meet: in each task the best by the votes before its round."""
        name, best = round_name(generation), set[str]()
        for task in self.tasks:
            votes = self.votes.of(task.name, "search")
            known = Tally(list(itertools.takewhile(lambda vote: vote["round"] != name, votes))).standing
            if known is not None:
                best.add(known.best)
            elif self._sources:  # they make the same, so there was nothing to compare
                best.add(next(iter(self._sources)))
        return best

    def generation(self, generation: int, members: Mapping[str, Scores], rivals: Mapping[str, Scores]) -> list[Scores]:
        """The scores of members by name, who are compared with each other, with `rivals` and the best source.

        `rivals`: the candidates among `best_before`.
        """
        sources = {name: self._sources[name] for name in self.best_before(generation) if name in self._sources}
        found = self._compare(round_name(generation), {**sources, **rivals, **members})
        return [_filled(scores, name, found) for name, scores in members.items()]

    def latest(self, records: Sequence[Record]) -> list[Record]:
        """Records of candidates with what all votes so far say of them."""
        found = self._known()

        def updated(record: Record) -> Record:
            name = member_name(record)
            scores = record["scores"] | {t: [round(s[name], 6)] for t, s in found.items() if name in s}
            values = {task: np.array(own, np.float64) for task, own in scores.items()}
            fitness, _ = self.judge.fitness(Scores(values, values, {}))
            return {**record, "scores": scores, "fitness": fitness if math.isfinite(fitness) else None}

        return [updated(record) for record in records]

    def exported(
        self, name: str, scored: Scored, search: Mapping[str, Any], baselines: Baselines
    ) -> tuple[Scored, Baselines]:
        """An exported model, and the baselines, by what each has won against the others on the held-out prompts.

        `search`: by task the scores of the candidate that it is; its outputs there are not looked at again.
        """
        models = {**baselines.named, name: scored}
        made = {model: own.heldout for model, own in models.items()}
        shares = {t.name: self._round(t, f"held out, {name}", "heldout", made).shares() for t in self.tasks}

        def judged(name: str, scored: Scored) -> Scored:
            fitness = scored.heldout.fitness | {task: share[name] for task, share in shares.items()}
            return with_scores(scored, self.judge, "heldout", scored.heldout._replace(fitness=fitness))

        own = {task.name: np.array(search[task.name], np.float64) for task in self.tasks}
        scored = with_scores(scored, self.judge, "search", scored.search._replace(fitness=scored.search.fitness | own))
        return judged(name, scored), baselines.map(judged)

    def _compare(self, name: str, players: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
        """{task: {player: score}} after a round on the search split, as long as the tasks say."""
        asked = {task.name: (task, task.judged.people) for task in self.tasks}
        rounds = {t: self._round(task, name, "search", players, p.votes, p.enough) for t, (task, p) in asked.items()}
        return {task: round.standing.scores for task, round in rounds.items()}

    def _round(
        self,
        task: ByPeople,
        name: str,
        split: str,
        players: Mapping[str, Scores],
        limit: int | None = None,
        enough: float | None = None,
    ) -> Round:
        """A round that is over: its questions are asked but for those with an answer already."""
        prompts = [task.prompt(document) for document in self.judge.material[split][task.name].documents]
        made = {player: [task.output(own) for own in scores.made[task.name]] for player, scores in players.items()}
        asked = task.judged.people.question
        round = Round(
            name, task.name, split, prompts, made, self.votes,
            limit=limit, enough=enough, asked=asked, private=task.private,
        )  # fmt: skip
        if not round.over:
            self._ask(round)
        return round


def round_name(generation: int) -> str:
    """What votes.jsonl calls the round of a generation."""
    return f"generation {generation}"


def _filled(scores: Scores, name: str, found: Mapping[str, Mapping[str, float]]) -> Scores:
    """Scores with what people make of a model, a number for all of a task's documents."""
    return scores._replace(fitness=scores.fitness | {t: np.array([s[name]]) for t, s in found.items() if name in s})


@contextmanager
def asking(judge: Judge, observer: Observer) -> Iterator[Ask | None]:
    """What has people asked, all of them about all tasks that people judge, on one page; None: there are none.

    Raises:
        InputError: if the page's port is not free.
    """
    if not (asked := [task.judged.people for task in judged_by_people(judge)]):
        yield None
        return
    raters = dict.fromkeys(name for people in asked for name in people.names)
    with Page([*raters], max(people.port for people in asked)) as page:
        for rater, link in page.links.items():
            observer.note(f"{rater} judges at {link}")

        def ask(round: Round) -> None:
            observer.stage(f"people judge {round.name} ({round.task}, {round.count} votes so far)")
            page.ask(round)

        yield ask
