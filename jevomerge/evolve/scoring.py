"""What whole models score: the sources, their plain average, the result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint.specs import unflatten
from jevomerge.evolve.archive import write_atomically
from jevomerge.evolve.problem import JointProblem, Problem, WeightProblem
from jevomerge.fitness.candidates import Candidates, Merged, MergedAndRouted
from jevomerge.fitness.judge import SPLITS, Judge
from jevomerge.fitness.outcome import Scores, Tokens, total
from jevomerge.merge import Bank, Merge, build, get_method
from jevomerge.mesh import shardings
from jevomerge.models import DecoderConfig


class Scored(NamedTuple):
    """What a model scores."""

    fitness: dict[str, float]  # by split
    tasks: dict[str, dict[str, float]]  # {split: {task: mean score}}
    heldout: Scores  # by held-out example
    also: dict[str, dict[str, float]]  # of the held-out texts, by task, what they score by other criteria
    search: Scores
    likelihood: dict[str, np.ndarray]  # of the search split's reference answers, by task, where asked for
    tokens: Tokens  # that all this took


def score_baselines(
    problem: Problem,
    judge: Judge,
    candidates: Candidates,
    stage: Callable[[str], None],
    likelihood: Judge | None = None,
) -> tuple[Scored | None, dict[str, Scored]]:
    """Of whole models that are merged, what their plain average scores; and every source by name.

    `likelihood`, if given, judges that of the search split, too.
    """
    scores: dict[str, Scored] = {}
    average = None
    weights = problem.weights if isinstance(problem, JointProblem) else problem
    if isinstance(weights, WeightProblem) and weights.sources.plain:
        merged = candidates.merged if isinstance(candidates, MergedAndRouted) else candidates
        assert isinstance(merged, Merged)
        trees = dict(zip(weights.sources.names, map(unflatten, merged.bank.sources), strict=True))
        stage("scoring the plain average")
        average = score_model(judge, plain_average(weights, merged.bank, judge.mesh), weights.config, likelihood)
        for name, tree in trees.items():
            stage(f"scoring {name}")
            scores[name] = score_model(judge, tree, weights.config, likelihood)
    others = problem.others if isinstance(problem, JointProblem) else problem.checkpoints
    for checkpoint in () if isinstance(problem, WeightProblem) else others:
        if checkpoint.name not in scores:  # it may be merged too
            stage(f"scoring {checkpoint.name}")
            params = checkpoint.load(judge.mesh)
            scores[checkpoint.name] = score_model(judge, params, checkpoint.config, likelihood)
    return average, scores


def plain_average(problem: WeightProblem, bank: Bank, mesh: Mesh) -> dict[str, Any]:
    """The sources' average."""
    count = len(bank.sources)
    equal = {
        s.path: {
            "weight": jnp.ones((*([s.num_layers] if s.num_layers else []), count)),
            "normalize": jnp.ones([s.num_layers] if s.num_layers else []),
        }
        for s in problem.sources.specs
    }
    nothing = dict.fromkeys(bank.sources[0], ())
    merge = Merge(get_method("linear"), problem.merge.dtype)
    where = unflatten(shardings(mesh, problem.config, problem.sources.specs))
    make = jax.jit(build, static_argnums=0, out_shardings=where)
    return make(merge, Bank(bank.sources, None, nothing, bank.keys), equal)


def score_model(
    judge: Judge, params: dict[str, Any], config: DecoderConfig | None = None, likelihood: Judge | None = None
) -> Scored:
    """Score one model on both splits; `config` as for `Judge.model`, `likelihood` as for `score_baselines`."""
    scores = {split: judge.model(params, split, config) for split in SPLITS}
    likely: dict[str, np.ndarray] = {}
    tokens = [s.tokens for s in scores.values()]
    if likelihood is not None:
        known = {  # one forward pass may have given both
            t.name: scores["search"].primary[t.name] if t.score == "likelihood" else scores["search"].secondary[t.name]
            for t in judge.tasks
            if t.score != "generation"
        }
        if len(known) < len(judge.tasks):
            asked = likelihood.model(params, "search", config)
            known |= asked.primary
            tokens.append(asked.tokens)
        likely = known
    tasks = {split: {name: float(np.mean(v)) for name, v in s.primary.items()} for split, s in scores.items()}
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


def record_heldout(
    folder: Path,
    judge: Judge,
    sources: Mapping[str, Scored],
    average: Scored | None,
    exported: Mapping[str, Scored],
) -> None:
    """Write heldout.json: the held-out examples and, by example, what each model scores and wrote.

    `exported`: what has been exported so far, by folder; what is not `best` is another point of a front.
    """

    def record(scored: Scored) -> dict[str, Any]:
        scores = {task: [x if math.isfinite(x) else None for x in v] for task, v in scored.heldout.primary.items()}
        extra = {"tasks": scored.tasks, **({"also": scored.also} if scored.also else {})}
        return {**scored.fitness, **extra, "scores": scores, "texts": scored.heldout.texts}

    examples = {
        task: [{"prompt": e.prompt, "answer": e.answer} for e in material.records]
        for task, material in judge.material["heldout"].items()
    }
    heldout = {
        "examples": examples,
        "sources": {name: record(scored) for name, scored in sources.items()},
        "average": None if average is None else record(average),
        "best": record(exported["best"]) if exported else None,
        **({"front": {name: record(s) for name, s in exported.items() if name != "best"}} if len(exported) > 1 else {}),
    }
    write_atomically(folder / "heldout.json", json.dumps(heldout, ensure_ascii=False) + "\n")
