"""The paper again on Gemma 3 270M: parents, usual merges, searches, gradients and fine-tuning, on one task.

    python experiments/japanese_math_gemma/run.py        # after train.py; goes on where it was stopped
    python experiments/japanese_math_gemma/table.py      # the tables of results.json, and plot.png

Every row is a model folder below --work, and what is scored is that folder. A pass is one example read and answered
once; the gradient of one counts three; scores of sources are not counted.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np
import train
from arguments import known, make_parser, record
from tables import interval, solved

import jevomerge as jm
from jevomerge.config import RunConfig
from jevomerge.fitness.schema import Task
from jevomerge.observers.observer import SILENT
from jevomerge.search.archive import read_archive
from jevomerge.tokenizers.load import load_tokenizer

BASE, SOURCES = "school", ("japanese", "maths")  # what all sources were trained from, and these
SEARCH = common.SIZES["search"]
EVALUATIONS, FINE_EVALUATIONS, DRAWS = 40, 64, 50
STEPS, STEP_ROWS = 30, 16  # along the gradient
FEW = {"examples_per_generation": 24, "finalists": 3}  # of the questions that a search has
LIKELIHOOD = {"score": "likelihood", "pattern": None}  # of worked answers: what gradients are of
FAST = {"compute_dtype": "bfloat16"}  # of searches; what is reported is scored in float32
RANGE = [0, 1.5]  # of weights: searches begin in the middle
THIRDS, FINE = ({"range": RANGE, "layers_per_group": n} for n in (6, 1))
Cell = dict[str, Any]


class Arm(NamedTuple):
    """A merge: its method, which of its numbers are searched, and how."""

    method: str
    genome: dict[str, Any]
    search: dict[str, Any]
    refine: dict[str, Any] | None = None
    sources: tuple[str, ...] = SOURCES


def cma(evaluations: int) -> dict[str, Any]:
    return {"strategy": "cma_es", "evaluations": evaluations, **FEW}


USUAL: dict[str, tuple[str, dict[str, float]]] = {
    "average": ("linear", {"weight": 1}),
    "SLERP": ("slerp", {"t": 0.5}),
    "TIES (density 0.5)": ("ties", {"weight": 1, "density": 0.5}),
    "TIES (density 0.2)": ("ties", {"weight": 1, "density": 0.2}),
    "DARE-TIES (weight 0.5, density 0.5)": ("dare_ties", {"weight": 0.5, "density": 0.5}),
    "task arithmetic (weight 0.5)": ("task_arithmetic", {"weight": 0.5}),
    "task arithmetic (weight 1)": ("task_arithmetic", {"weight": 1}),
}
GRADIENT = {"steps": STEPS, "examples_per_step": STEP_ROWS}
BETWEEN = {"steps": 5, "examples_per_step": STEP_ROWS, "every": 2}
RANDOM = {"strategy": "random", "evaluations": DRAWS, "population": DRAWS, **FEW}  # all are asked the same questions
SEARCHED = {
    "evolved, 2 genes": Arm("task_arithmetic", {"weight": RANGE}, cma(EVALUATIONS)),
    "evolved, by thirds": Arm("task_arithmetic", {"weight": THIRDS}, cma(FINE_EVALUATIONS)),
    "japanese alone, 1 gene": Arm("task_arithmetic", {"weight": RANGE}, cma(EVALUATIONS), None, SOURCES[:1]),
    "japanese alone, by thirds": Arm("task_arithmetic", {"weight": THIRDS}, cma(FINE_EVALUATIONS), None, SOURCES[:1]),
    "task arithmetic, random": Arm("task_arithmetic", {"weight": RANGE}, RANDOM),
    "DARE-TIES, random": Arm("dare_ties", {"weight": RANGE, "density": [0, 1]}, RANDOM),
    "gradient, by layer": Arm("task_arithmetic", {"weight": FINE}, {"evaluations": 0}, GRADIENT),
    "evolution and gradient, by thirds": Arm("task_arithmetic", {"weight": THIRDS}, cma(EVALUATIONS), BETWEEN),
}
TUNED = ("japanese",)
FIRST = ("evolved, 2 genes", "evolved, by thirds", "gradient, by layer", "japanese alone, by thirds")  # these say most
PASSES = 60 * FEW["examples_per_generation"] + FEW["finalists"] * SEARCH  # of a search by thirds: whole generations


class Bench:
    """Makes models below a folder and scores them."""

    def __init__(self, work: Path):
        self.work, self.base = work, jm.Checkpoint(work / "base")
        self.tokenizer = load_tokenizer(work / "base")
        self.task = Task.model_validate(common.task(work))
        self.judge = jm.make_judge(jm.make_ready([self.task], self.tokenizer, self.base.model), self.base.model)

    def recipe(
        self, method: str, parameters: dict[str, float], seed: int, sources: tuple[str, ...] = SOURCES
    ) -> dict[str, Any]:
        base = {"linear": {}, "slerp": {"base_model": str(self.work / SOURCES[0])}}
        return {
            "merge_method": method,
            "models": [{"model": str(self.work / m)} for m in sources],
            **base.get(method, {"base_model": str(self.work / BASE)}),
            "parameters": parameters,
            "dtype": "bfloat16",
            "semantics": "paper",
            "seed": seed,  # of DARE's masks
        }

    def score(self, folder: Path) -> Cell:
        """Both splits, in per cent, and which held-out problems are solved, as a string of bits."""
        model, cell = jm.Checkpoint(folder), dict[str, Any]()
        params = model.load()
        for split in common.SIZES:
            right = self.judge.model(params, split, model.model).fitness[self.task.name]
            cell[split] = round(100 * float(right.mean()), 2)
        return {**cell, "bits": "".join(str(int(v)) for v in right)}

    def usual(self, name: str, seed: int) -> Cell:
        """A merge whose numbers are given."""
        path = self.work / "usual" / f"{name} {seed}"
        if not path.exists():
            jm.merge_folder(self.recipe(*USUAL[name], seed), path)
        return self.score(path)

    def config(self, arm: Arm, seed: int) -> RunConfig:
        values = {"recipe": self.recipe(arm.method, {}, seed, arm.sources), "genome": arm.genome, "search": arm.search}
        values |= {"refine": arm.refine} if arm.refine else {}
        few = {"path": self.task.heldout.path, "limit": 4}  # held-out questions are asked below, of every row
        task = self.task.model_dump() | (LIKELIHOOD if arm.refine else {}) | {"heldout": few}
        return jm.read_run({"name": "run", "seed": seed, "tasks": [task], **FAST, **values})

    def searched(self, name: str, seed: int) -> Cell:
        """A merge whose numbers are searched, and what it took."""
        arm, run = SEARCHED[name], self.work / "runs" / f"{name} {seed}"
        if not (run / "result.json").exists():
            jm.evolve(self.config(arm, seed), output=run, resume=(run / "config.yaml").exists(), observer=SILENT)
        records = read_archive(run / "evaluations.jsonl")
        steps = sum("refined" in r for r in records) * (arm.refine or {}).get("steps", 0)
        asked = sum(len(r["scores"][self.task.name]) for r in records) + arm.search.get("finalists", 0) * SEARCH
        spent = {"passes": asked + 3 * STEP_ROWS * steps, "evaluations": len(records)}
        minutes = known(run / "result.json", "seconds") / 60
        cell = {**self.score(run / "best"), **spent, "minutes": round(minutes, 1)}
        if (source := known(run / "result.json", "best", "source")) is not None:
            return cell | {"source": source}  # no candidate was better, and it is what was exported
        return cell | {"weights": weights_of(known(run / "result.json", "best", "genome"))}

    def tuned(self, start: str, seed: int) -> Cell:
        """Fine-tuned on the questions of the search with their worked answers, for the passes of a search by thirds."""
        out, [task] = self.work / "tuned" / f"{start} {seed}", self.judge.tasks
        examples = self.judge.examples["search"][task.name]
        documents = [(e.prompt, e.answer) for e in examples]
        tokens = sum(len(e.prompt_tokens) + len(e.answer_tokens) for e in examples)
        steps = PASSES * tokens // len(examples) // (3 * train.ROWS * train.LENGTH)
        began = time.perf_counter()
        if not out.exists():
            rng = np.random.default_rng(seed)
            endless = (documents[i] for _ in itertools.count() for i in rng.permutation(len(documents)))
            run = train.Run(steps, train.RUNS["japanese"].rate, f"{start} on questions of the search")
            rows = train.pack(endless, steps * train.ROWS, self.tokenizer)
            params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), jm.Checkpoint(self.work / start).load())
            train.write(out, train.fit(run, self.base.model, params, *rows), self.base, run.about)
        minutes = round((time.perf_counter() - began) / 60, 1)
        return {**self.score(out), "passes": PASSES, "minutes": minutes}


def folder_of(work: Path, name: str, seed: str) -> Path:
    """Where the model of a row is."""
    if name in SEARCHED:
        return work / "runs" / f"{name} {seed}" / "best"
    if name.startswith("fine-tuned"):
        return work / "tuned" / f"{name.removeprefix('fine-tuned ')} {seed}"
    return work / "usual" / f"{name} {seed}" if name in USUAL else work / name


def weights_of(genome: dict[str, float]) -> dict[str, float]:
    """{source parameter: mean over the groups}."""
    found: dict[str, list[float]] = {}
    for key, value in genome.items():
        found.setdefault(" ".join(key.split("/")[1:]), []).append(value)
    return {key: round(float(np.mean(values)), 3) for key, values in found.items()}


def plan(bench: Bench, seeds: range) -> Iterator[tuple[str, str, Callable[[], Cell]]]:
    """(row, seed, how it is measured), in the order of importance."""
    for name in ("base", BASE, *SOURCES):
        yield name, "0", partial(bench.score, bench.work / name)
    for name in USUAL:
        yield name, "0", partial(bench.usual, name, 0)
    others = [name for name in SEARCHED if name not in FIRST]
    for names, seed in (*((FIRST, s) for s in seeds), *((others, s) for s in seeds)):
        for name in TUNED if names is others else ():
            yield f"fine-tuned {name}", str(seed), partial(bench.tuned, name, seed)
        for name in names:
            yield name, str(seed), partial(bench.searched, name, seed)


def rows(cells: dict[str, dict[str, Cell]]) -> list[dict[str, Any]]:
    """What README.md prints."""
    found = []
    for name, by_seed in cells.items():
        mean, low, high = (round(x, 1) for x in interval(solved(by_seed)))
        spent = {k: float(np.median([c.get(k, 0) for c in by_seed.values()])) for k in ("passes", "minutes")}
        found.append({"name": name, "heldout": mean, "low": low, "high": high, "seeds": len(by_seed), **spent})
    return found


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=3).parse_args()
    bench = Bench(args.work.resolve())
    for name, seed, measure in plan(bench, range(args.seeds)):
        if known(args.output, "cells", name, seed) is None:
            record(args.output, cell := measure(), "cells", name, seed)
            record(args.output, rows(known(args.output, "cells")), "rows")
            shown = {k: v for k, v in cell.items() if isinstance(v, (int, float))}
            print(time.strftime("%H:%M:%S"), name, seed, shown, flush=True)


if __name__ == "__main__":
    main()
