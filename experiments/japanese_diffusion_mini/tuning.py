"""Training on Japanese prompts and real pictures, or drawings of them, for the compute that evolution has."""

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


COST: dict[Measure, int] = {train.denoising: 3, train.distilling: 2 * SUBSTEPS + 3}  # passes, a backward one being two


class Way(NamedTuple):
    """How to train, and from which model of `run.py`: by one measure after the other, each for as much compute."""

    start: str
    measures: tuple[Measure, ...]
    drawn: bool = False

    def steps(self, measure: Measure) -> int:
        """How many by one of its measures."""
        return PASSES // len(self.measures) // (ROWS * COST[measure])


WAYS = {  # by whether drawings are wanted; distilled: to four steps, by what it does in 16
    False: {
        "ja, distilled": Way("ja", (train.distilling,)),
        "average, fine-tuned": Way("average", (train.denoising,)),
    },
    True: {  # what is to be distilled has first to learn to draw them
        "ja, distilled": Way("ja", (train.denoising, train.distilling), drawn=True),
        "average, fine-tuned": Way("average", (train.denoising,), drawn=True),
    },
}


def tune(way: Way, start: Path, rate: float, seed: int, out: Path) -> dict[str, Any]:
    """Train what evolution may change, the U-Net; writes the model, says what it took."""
    began, params, steps = time.perf_counter(), train.load(start), {m: way.steps(m) for m in way.measures}
    for measure, count in steps.items():
        run, given = Run("ja", count, rate, False), train.batches("ja", count, seed, way.drawn)
        params = train.fit(out.name, run, measure, params, given, seed)
    train.write(out, params, f"`{way.start}`, trained for {sum(steps.values())} steps.")
    spent = sum(count * ROWS * COST[measure] for measure, count in steps.items()) / PASSES * EVALUATIONS
    return {"evaluations": round(spent, 1), "seconds": round(time.perf_counter() - began, 1)}


def choose(way: Way, start: Path, fitness: Callable[[Path], float], work: Path) -> dict[str, Any]:
    """The rate with which training ends at the highest fitness of the search."""
    trials = dict[str, float]()
    for rate in RATES:
        out = work / f"{way.start}, {rate:g}"
        if not out.exists():
            tune(way, start, rate, TRIAL, out)
        trials[f"{rate:g}"] = fitness(out)
    return {"trials": trials, "rate": float(max(trials, key=lambda rate: trials[rate]))}
