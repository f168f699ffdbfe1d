"""Fine-tuning on the questions that evolution searches on, for the compute that evolution has."""

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import generate
import jax
import jax.numpy as jnp
import train
from stories import Fact

from jevomerge.fitness.judge import SPLITS, Judge

EVALUATIONS = 300  # whose compute is spent
RATES = (1e-4, 3e-4, 1e-3)
SIZE = 16  # rows of 64 tokens a step


def all_steps(judge: Judge) -> int:
    """Steps that cost what the evaluations do: tokens that go forward, of which a step's backward pass is two more."""
    [task] = judge.tasks
    evaluation = sum(len(e.prompt_tokens) + task.rollout.max_new_tokens for e in judge.examples["search"][task.name])
    return EVALUATIONS * evaluation // (3 * SIZE * train.LENGTH)


def shuffled(documents: list[generate.Document], seed: int) -> Iterator[generate.Document]:
    """Epoch after epoch."""
    rng = Random(seed)
    while True:
        yield from rng.sample(documents, len(documents))


def tune(judge: Judge, start: Path, rows: Sequence[int], rate: float, share: float, seed: int) -> Any:
    """Train as the specialists were, on questions `rows` of the search file; bfloat16 parameters, as if exported."""
    [task] = judge.tasks
    examples, tokenizer = judge.examples["search"][task.name], task.rollout.tokenizer
    documents = [(examples[i].prompt, examples[i].answer) for i in rows]
    run = train.Run(int(share * all_steps(judge)), rate, 0.0, f"{task.name}, {start.name}, {rate:g}")
    packed = train.pack(shuffled(documents, seed), run.steps * SIZE, run.prompt_weight, tokenizer)
    params = train.fit(run, train.load(start), *packed, SIZE)
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def parts(answers: Sequence[str], by_family: bool) -> tuple[list[int], list[int]]:
    """Questions to train on and to validate with, 3 : 1; of facts of other families, or just others."""
    if not by_family:
        order = Random(0).sample(range(len(answers)), len(answers))
        return order[: len(order) * 3 // 4], order[len(order) * 3 // 4 :]
    found = [re.search(r"(\d+)([-+*])(\d+)=", answer) for answer in answers]
    families = [Fact(m[2], int(m[1]), int(m[3])).family for m in found if m]
    names = sorted(set(families))
    kept = Random(0).sample(names, len(names) * 3 // 4)
    indices = range(len(answers))
    return [i for i in indices if families[i] in kept], [i for i in indices if families[i] not in kept]


def choose(judge: Judge, start: Path, by_family: bool) -> dict[str, Any]:
    """The rate and length, with which most questions are solved that were not trained on; ties go to the earlier trial.

    At random: each rate for an eighth of the time, then the best of them for the whole time.  By family: each rate for
    a thirty-second and for an eighth.  Held-out scores are written down, not looked at.
    """
    [task] = judge.tasks
    kept, rest = parts([e.answer for e in judge.examples["search"][task.name]], by_family)
    trials: list[dict[str, float]] = []
    began = time.perf_counter()

    def best() -> dict[str, float]:
        return max(trials, key=lambda t: t["validation"])

    def trial(rate: float, share: float) -> None:
        params = tune(judge, start, kept, rate, share, seed=0)
        right = {s: judge.model(params, s).fitness[task.name] for s in SPLITS}
        found = {"validation": right["search"][rest].mean(), "heldout": right["heldout"].mean()}
        trials.append({"rate": rate, "share": share, **{k: round(100 * float(v), 2) for k, v in found.items()}})

    for share, rate in itertools.product((1 / 32, 1 / 8) if by_family else (1 / 8,), RATES):
        trial(rate, share)
    if not by_family:
        trial(best()["rate"], 1)
    choice = [best()["rate"], best()["share"]]
    return {"trials": trials, "best": choice, "seconds": round(time.perf_counter() - began, 1)}


def tuned(judge: Judge, start: Path, choice: dict[str, Any], seed: int, out: Path) -> dict[str, Any]:
    """Write the model trained on the whole search file with the rate and length chosen; says what that cost."""
    rate, share = choice["best"]
    began = time.perf_counter()
    params = tune(judge, start, range(128), rate, share, seed)
    seconds = round(time.perf_counter() - began, 1)
    if not out.exists():
        train.write(out, params, judge.tasks[0].rollout.tokenizer, "Fine-tuned on the questions of a search file.")
    return {"evaluations": round(share * EVALUATIONS, 1), "seconds": seconds}
