"""Training on Japanese prompts and real pictures, for the compute that evolution has."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import clothes
import train
from train import ROWS, STEPS, SUBSTEPS, Measure, Run

EVALUATIONS = 200  # whose compute is spent
PASSES = EVALUATIONS * len(clothes.asked()["search"]) * STEPS  # of a U-Net by one picture
RATES = (3e-4, 1e-3)
TRIAL = 99  # the seed with which rates are tried, which no row has


class Way(NamedTuple):
    """How to train, and from which model of `run.py`."""

    start: str
    measure: Measure
    passes: int  # of a step by one picture, its backward pass counting two


WAYS = {
    "ja, distilled": Way("ja", train.distilling, 2 * SUBSTEPS + 3),  # to four steps, by what it does in 16
    "average, fine-tuned": Way("average", train.denoising, 3),
}


def tune(way: Way, start: Path, rate: float, seed: int, out: Path) -> dict[str, Any]:
    """Train what evolution may change, the U-Net; writes the model, says what it took."""
    steps, began = PASSES // (ROWS * way.passes), time.perf_counter()
    run = Run("ja", steps, rate, False)
    made = train.fit(out.name, run, way.measure, train.load(start), train.batches("ja", steps, seed), seed)
    train.write(out, made, f"`{way.start}`, trained for {steps} steps.")
    spent = round(steps * ROWS * way.passes / PASSES * EVALUATIONS, 1)
    return {"evaluations": spent, "seconds": round(time.perf_counter() - began, 1)}


def choose(way: Way, start: Path, fitness: Callable[[Path], float], work: Path) -> dict[str, Any]:
    """The rate with which training ends at the highest fitness of the search."""
    trials = dict[str, float]()
    for rate in RATES:
        out = work / f"{way.start}, {rate:g}"
        if not out.exists():
            tune(way, start, rate, TRIAL, out)
        trials[f"{rate:g}"] = fitness(out)
    return {"trials": trials, "rate": float(max(trials, key=lambda rate: trials[rate]))}
