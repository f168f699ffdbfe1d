"""What whole models score: the sources, their plain average, the result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jevomerge.checkpoint.export import write_whole
from jevomerge.checkpoint.files import write_atomically
from jevomerge.fitness.judge import SPLITS, Judge
from jevomerge.fitness.outcome import Scores, Tokens, total
from jevomerge.models.layers import Params
from jevomerge.models.model import Language
from jevomerge.problems.problem import AVERAGE, Candidates, Problem
from jevomerge.recipe.to_folder import merge_to_folder


class Scored(NamedTuple):
    """What a model scores."""

    fitness: dict[str, float]  # by split
    tasks: dict[str, dict[str, float]]  # {split: {task: mean score}}
    heldout: Scores  # by held-out example
    also: dict[str, dict[str, float]]  # of the held-out texts, by task, what they score by other criteria
    search: Scores
    likelihood: dict[str, np.ndarray]  # of the search split's reference answers, by task, where asked for
    tokens: Tokens  # that all this took


class Baselines(NamedTuple):
    """What the models score that candidates are compared with."""

    average: Scored | None  # the plain average of the sources, if they are merged
    sources: dict[str, Scored]  # by name

    @property
    def named(self) -> dict[str, Scored]:
        """The sources, then their average."""
        return {**self.sources, **({} if self.average is None else {AVERAGE: self.average})}

    @property
    def all(self) -> list[Scored]:
        """The same without names."""
        return list(self.named.values())

    def map(self, f: Callable[[str, Scored], Scored]) -> Baselines:
        """The same with `f` of each and its name."""
        average = None if self.average is None else f(AVERAGE, self.average)
        return Baselines(average, {name: f(name, scored) for name, scored in self.sources.items()})

    def better_than(self, fitness: float) -> str | None:
        """The one with the highest fitness on the search split, if that is higher than this."""
        better = {name: s.fitness["search"] for name, s in self.named.items() if s.fitness["search"] > fitness}
        return max(better, key=better.__getitem__, default=None)


def score_baselines(
    problem: Problem,
    judge: Judge,
    candidates: Candidates,
    stage: Callable[[str], None],
    likelihood: bool = False,
) -> Baselines:
    """Score the baselines of a problem; `likelihood`: also that of the search split's reference answers."""
    average, sources = None, dict[str, Scored]()
    for name, model, load in problem.baselines(candidates):
        stage(f"scoring {name or 'the plain average'}")
        params = load(judge.mesh)

        def write(folder: Path, name: str | None = name, params: Params = params, model: Language = model) -> None:
            if problem.sources is not None and problem.sources.assembly is not None:
                merge = problem.merge_of(name or AVERAGE)
                return merge_to_folder(merge, merge.coefficients, folder)
            frame = None if problem.seer is None else problem.seer.frame
            write_whole(folder, params, model, problem.tokenizer(), frame)

        scored = score_model(judge, params, model, likelihood, write)
        if name is None:
            average = scored
        else:
            sources[name] = scored
    return Baselines(average, sources)


def score_model(
    judge: Judge,
    params: Params,
    subject: Language | None = None,
    likelihood: bool = False,
    write: Callable[[Path], None] | None = None,
) -> Scored:
    """Score one model on both splits; `likelihood` as for `score_baselines`, the rest as for `Judge.model`."""
    scores = {split: judge.model(params, split, subject, write) for split in SPLITS}
    likely: dict[str, np.ndarray] = {}
    tokens = [s.tokens for s in scores.values()]
    if likelihood:
        found = scores["search"]
        likely = {  # one forward pass may have given both
            t.name: (found.fitness if t.likelihood == "fitness" else found.tie_break)[t.name]
            for t in judge.tasks
            if t.likelihood is not None
        }
        if len(likely) < len(judge.tasks):
            likely, spent = judge.likelihoods(params, subject)
            tokens.append(spent)
    tasks = {split: {name: float(np.mean(v)) for name, v in s.fitness.items()} for split, s in scores.items()}
    also = judge.also(scores["heldout"].texts, "heldout")
    return Scored(
        {split: judge.fitness(s)[0] for split, s in scores.items()},
        tasks,
        scores["heldout"],
        also,
        scores["search"],
        likely,
        total(tokens),
    )


def with_scores(scored: Scored, judge: Judge, split: str, scores: Scores) -> Scored:
    """The same with other scores on a split."""
    fitness = {**scored.fitness, split: judge.fitness(scores)[0]}
    tasks = {**scored.tasks, split: {name: float(np.mean(values)) for name, values in scores.fitness.items()}}
    both = {"search": scored.search, "heldout": scored.heldout, split: scores}
    return scored._replace(fitness=fitness, tasks=tasks, search=both["search"], heldout=both["heldout"])


def read_baselines(row: Mapping[str, Any]) -> Baselines:
    """What `record_heldout` wrote of them: all but the scores of the search split's examples."""

    def read(model: Mapping[str, Any]) -> Scored:
        heldout = {task: np.array(scores, np.float64) for task, scores in model["scores"].items()}  # null is NaN
        return Scored(
            {split: model[split] for split in SPLITS},
            model["tasks"],
            Scores(heldout, {}, model["texts"], drawn=model.get("drawn", {}), broken=model.get("broken", {})),
            model.get("also", {}),
            Scores({}, {}, {}),
            {},
            Tokens(**model["tokens"]),
        )

    average = row["average"]
    return Baselines(None if average is None else read(average), {n: read(m) for n, m in row["sources"].items()})


NOTHING = {"prompt": "", "answer": ""}  # what is kept of an example that is private


def heldout_of(
    judge: Judge, baselines: Baselines, exported: Mapping[str, Scored], source: str | None = None
) -> dict[str, Any]:
    """What heldout.json holds: the held-out examples and, by example, what each model scores and wrote.

    Of private tasks it holds the scores.
    `exported`: what has been exported so far, by folder; what is not `best` is another point of a front. `source`: the
    baseline that `best` is, if it is one.
    """

    private = {task.name for task in judge.tasks if task.private}

    def record(scored: Scored) -> dict[str, Any]:
        scores = {task: [x if math.isfinite(x) else None for x in v] for task, v in scored.heldout.fitness.items()}
        extra = {"tasks": scored.tasks, **({"also": scored.also} if scored.also else {})}
        spent = {"tokens": scored.tokens._asdict()}
        texts = {task: written for task, written in scored.heldout.texts.items() if task not in private}
        return {**scored.fitness, **extra, "scores": scores, "texts": texts, **spent, **drawn_of(scored.heldout)}

    examples = {
        task: [{"prompt": e.prompt, "answer": e.answer} if task not in private else NOTHING for e in material.documents]
        for task, material in judge.material["heldout"].items()
    }
    named = {} if source is None else {"source": source}
    return {
        "examples": examples,
        "new_tokens": lengths_of(judge, baselines),
        "sources": {name: record(scored) for name, scored in baselines.sources.items()},
        "average": None if baselines.average is None else record(baselines.average),
        "best": record(exported["best"]) | named if exported else None,
        **({"front": {name: record(s) for name, s in exported.items() if name != "best"}} if len(exported) > 1 else {}),
    }


def lengths_of(judge: Judge, baselines: Baselines) -> dict[str, dict[str, float]]:
    """How many tokens the texts have that the sources wrote of the held-out examples, with their ends, by task."""
    found = {}
    for task in judge.tasks:
        tokenizer = getattr(task.rollout, "tokenizer", None)
        texts = [text for s in baselines.sources.values() for text in s.heldout.texts.get(task.name, ())]
        if tokenizer is not None and texts and not task.private:
            limit = getattr(task.rollout, "max_new_tokens", math.inf)
            lengths = [min(len(ids) + 1, limit) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
            found[task.name] = {"mean": round(float(np.mean(lengths)), 2), "longest": max(lengths)}
    return found


def drawn_of(scores: Scores) -> dict[str, Any]:
    """What a model drew, if it did, and how many of its pictures are broken, if any are."""
    found = {"drawn": dict(scores.drawn), "broken": dict(scores.broken)}
    return {name: of_tasks for name, of_tasks in found.items() if of_tasks}


def record_heldout(folder: Path, heldout: Mapping[str, Any]) -> None:
    """Write heldout.json."""
    write_atomically(folder / "heldout.json", json.dumps(heldout, ensure_ascii=False) + "\n")
