"""The problems that everybody solves here, and how a time is taken."""

import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
MINIATURE = HERE.parent / "japanese_math_mini"
METHODS = ("linear", "dare_ties")


class Problem(NamedTuple):
    """Four models of one shape, and a task: to score the reference answers of the examples in `data`."""

    name: str
    base: Path
    sources: list[Path]
    data: Path
    timed: int  # candidates of the generation that are timed
    population: int = 16


def miniature() -> Problem:
    """The trained models of experiments/japanese_math_mini, on that experiment's whole search split."""
    models = MINIATURE / "models"
    sources = sorted(f.parent for f in models.glob("*/config.json") if f.parent.name != "base")[:3]
    return Problem("miniature", models / "base", sources, MINIATURE / "data" / "two_skills_search.jsonl", timed=16)


def smollm2(folder: Path, work: Path) -> Problem:
    """SmolLM2-135M and three copies of it with a little noise: speed does not depend on the numbers."""
    from safetensors.numpy import load_file, save_file

    sources = [work / f"smollm2-noise{i}" for i in range(3)]
    for seed, out in enumerate(sources):
        if out.exists():
            continue
        rng = np.random.default_rng(seed)
        partial = out.with_suffix(".partial")
        shutil.copytree(folder, partial)
        weights = {
            k: v + np.float32(0.01 * v.std()) * rng.standard_normal(v.shape, np.float32)
            for k, v in load_file(folder / "model.safetensors").items()
        }
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        partial.rename(out)
    # The longest examples in the language that SmolLM2 knows: they fit one batch shape.
    rows = (MINIATURE / "data" / "two_skills_search.jsonl").read_text().splitlines(keepends=True)
    english = [row for row in rows if json.loads(row)["language"] == "en"]
    data = work / "english.jsonl"
    data.write_text("".join(sorted(english, key=len)[-25:]))
    return Problem("smollm2-135m", folder, sources, data, timed=6)


def recipe(problem: Problem, method: str, weight: list[float] | None = None, density: list[float] | None = None) -> Any:
    """A mergekit recipe; without numbers, the one whose numbers jevomerge searches."""
    models: list[dict[str, Any]] = [{"model": str(s)} for s in problem.sources]
    if weight is not None:
        for i, model in enumerate(models):
            model["parameters"] = {"weight": weight[i]} | ({"density": density[i]} if density else {})
    dare = {"base_model": str(problem.base)} if method == "dare_ties" else {}
    parameters = {"parameters": {"normalize": method == "linear"}}
    return {"merge_method": method, "models": models, "dtype": "float32", **dare, **parameters}


def genomes(method: str, population: int) -> np.ndarray:
    """(P, n) in the unit box: three weights, and for dare_ties three densities; as jevomerge orders its genes."""
    return np.random.default_rng(0).uniform(0.2, 0.9, (population, 3 if method == "linear" else 6))


class Seconds(NamedTuple):
    """What a piece of work took: on the clock, and of this process's processor time."""

    wall: float
    cpu: float


def clock(work: Callable[[], Any]) -> Seconds:
    """Time one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def interleave(contenders: dict[str, Callable[[], Any]], rounds: int, warm: int = 1) -> dict[str, dict[str, float]]:
    """Median seconds of each, taken in turns: on a shared machine only what runs side by side can be compared."""
    for _ in range(warm):
        for work in contenders.values():
            work()
    times: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            times[name].append(clock(work))
    return {
        name: {
            "seconds": round(statistics.median(t.wall for t in taken), 5),
            "cpu_seconds": round(statistics.median(t.cpu for t in taken), 5),
            "rounds": rounds,
        }
        for name, taken in times.items()
    }


def ratios(times: dict[str, dict[str, float]], over: str, under: str) -> dict[str, float]:
    """How many times longer `over` takes than `under`, by the clock and by processor time."""
    return {key: round(times[over][key] / times[under][key], 3) for key in ("seconds", "cpu_seconds")}
