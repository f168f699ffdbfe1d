"""What evolution buys where a model that sees is merged with one that never did; README.md says what came out.

    python experiments/japanese_vqa_mini/run.py       # goes on where it was stopped
    python experiments/japanese_vqa_mini/table.py     # the tables of results.json, and plot.png

A seed is a pair of models trained anew from the one base, and what is random in the searches over them.  Every row is
a model folder below --work, and what is scored is that folder.  Searches are runs of `jevomerge evolve`.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import generate
import numpy as np
import train
import tuning
import yaml
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.observers.observer import SILENT
from jevomerge.search.archive import read_archive

HERE = Path(__file__).parent
TASK = HERE.parents[1] / "configs" / "tasks" / "mini_japanese_vqa.yaml"
SPLITS = ("search", "heldout")
Cell = dict[str, Any]


class Arm(NamedTuple):
    """A merge: its recipe, and which of its numbers are searched how."""

    method: str
    parameters: dict[str, Any] = {}  # noqa: RUF012
    genome: dict[str, Any] = {}  # noqa: RUF012
    search: dict[str, Any] = {}  # noqa: RUF012
    weights: tuple[float, float] | None = None  # of the model that sees and of the Japanese one


UNIT = [0, 1]
WEIGHTS, BOTH = {"weight": UNIT}, {"weight": UNIT, "density": UNIT}
FINE = {"weight": {"range": UNIT, "layers_per_group": 1, "by": "component"}}
FINE_TO_2 = {"weight": {**FINE["weight"], "range": [0, 2]}}
RANDOM = {"strategy": "random", "evaluations": 50, "population": 10}
CMA = {"strategy": "cma_es", "evaluations": tuning.EVALUATIONS}

CONTROLS = {
    "base with eyes": Arm("task_arithmetic", weights=(0, 0)),
    "graft": Arm("task_arithmetic", weights=(0, 1)),
}
USUAL = {
    "average": Arm("linear", {"weight": 1}),
    "SLERP": Arm("slerp", {"t": 0.5}),
    "TIES (density 0.2)": Arm("ties", {"weight": 1, "density": 0.2}),
    "TIES (density 0.5)": Arm("ties", {"weight": 1, "density": 0.5}),
    "DARE-TIES (weight 0.5, density 0.5)": Arm("dare_ties", {"weight": 0.5, "density": 0.5}),
    "task arithmetic (weight 0.7)": Arm("task_arithmetic", {"weight": 0.7}),
    "task arithmetic (weight 1)": Arm("task_arithmetic", {"weight": 1}),
}
SEARCHED = {
    "evolved, 22 genes": Arm("task_arithmetic", {}, FINE, CMA),
    "evolved, 2 genes": Arm("task_arithmetic", {}, WEIGHTS, CMA),
    "evolved, DARE-TIES": Arm("dare_ties", {}, BOTH, CMA),
    "task arithmetic, random": Arm("task_arithmetic", {}, WEIGHTS, RANDOM),
    # TIES divides by its weights, so that only its lambda says how much there is of all.
    "TIES, random": Arm("ties", {}, {**BOTH, "lambda": [0, 2]}, RANDOM),
    "DARE-TIES, random": Arm("dare_ties", {}, BOTH, RANDOM),
    "weighted average, random": Arm("linear", {}, WEIGHTS, RANDOM),
    "SLERP, random": Arm("slerp", {}, {"t": UNIT}, RANDOM),
    "evolved, 2 genes up to 2": Arm("task_arithmetic", {}, {"weight": [0, 2]}, CMA),
    "evolved, 22 genes up to 2": Arm("task_arithmetic", {}, FINE_TO_2, CMA),
    "task arithmetic up to 2, random": Arm("task_arithmetic", {}, {"weight": [0, 2]}, RANDOM),
    "22 genes up to 2, random": Arm("task_arithmetic", {}, FINE_TO_2, {**RANDOM, "evaluations": tuning.EVALUATIONS}),
    "22 genes, random": Arm("task_arithmetic", {}, FINE, {**RANDOM, "evaluations": tuning.EVALUATIONS}),
}
FITS = ("llava", "graft")

IN_ENGLISH = "asked in Japanese, right in English"
VIEWS: dict[str, dict[str, Any]] = {  # what a model is shown and asked
    "Japanese": {},
    "blind": {"data": "blind"},
    "shuffled": {"data": "shuffled"},
    "told": {"image": None, "prompt": "{description}{question}"},
    "English": {"prompt": "<image>{english_question}", "answer": "{english_answer}"},
    "English, blind": {"prompt": "<image>{english_question}", "answer": "{english_answer}", "data": "blind"},
    IN_ENGLISH: {"answer": "{english_answer}"},
}
SEEN = {  # models in other views
    "llava": ("English", "English, blind", IN_ENGLISH),
    "base": ("told",),
    "japanese": ("told",),
    "graft": ("blind", "shuffled"),
    "evolved, DARE-TIES": ("blind", "shuffled", "English", IN_ENGLISH),
    "evolved, 22 genes up to 2": ("blind", "shuffled", "English", IN_ENGLISH),
}


class Bench:
    """Makes models below a folder and scores them."""

    def __init__(self, work: Path):
        self.work = work
        for name in ("blind", "shuffled"):
            generate.write_data(work / "data" / name, name)

    def models(self, seed: int) -> Path:
        """Where the models of a seed are; those that are not there are trained."""
        folder = train.MODELS if seed == 0 else self.work / f"models {seed}"
        folder.mkdir(parents=True, exist_ok=True)
        train.make(folder, seed)
        return folder

    def recipe(self, arm: Arm, seed: int) -> dict[str, Any]:
        models = [{"model": str(self.models(seed) / name)} for name in ("llava", "japanese")]
        for model, weight in zip(models, arm.weights or (), strict=False):
            model |= {"parameters": {"weight": weight}}
        base = {"linear": {}, "slerp": {"base_model": models[0]["model"]}}
        return {
            "merge_method": arm.method,
            "models": models,
            **base.get(arm.method, {"base_model": str(train.MODELS / "base")}),
            "parameters": arm.parameters,
            "dtype": "bfloat16",
            "semantics": "paper",
            "seed": seed,  # of DARE's masks
        }

    def task(self, view: str) -> Path:
        """The task's file, with what a view changes of it."""
        change = dict(VIEWS[view])
        task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
        data = self.work / "data" / change["data"] if "data" in change else generate.DATA
        task |= {split: str(data / f"{split}.parquet") for split in SPLITS} | change
        task = {key: value for key, value in task.items() if key != "data" and value is not None}
        path = self.work / "tasks" / f"{view}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
        return path

    def score(self, folder: Path, view: str = "Japanese") -> Cell:
        """Both splits' scores of a model, in per cent, and which held-out questions it answers, as a string of bits."""
        right = {s: next(iter(jm.evaluate(folder, self.task(view), s)["examples"].values())) for s in SPLITS}
        shown = {split: round(100 * float(np.mean(values)), 2) for split, values in right.items()}
        return {**shown, "bits": "".join(str(int(v)) for v in right["heldout"])}

    def merged(self, name: str, arm: Arm, seed: int) -> Path:
        """A merge whose numbers are given."""
        path = self.work / f"seed {seed}" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            jm.merge_folder(self.recipe(arm, seed), path)
        return path

    def searched(self, name: str, arm: Arm, seed: int) -> Path:
        """The outcome of a search."""
        run = self.work / f"seed {seed}" / name
        if not (run / "result.json").exists():
            config = {
                "name": "run", "seed": seed, "recipe": self.recipe(arm, seed), "genome": arm.genome,
                "search": arm.search, "tasks": [str(TASK)],
            }  # fmt: skip
            jm.evolve(config, output=run, resume=(run / "config.yaml").exists(), observer=SILENT)
        return run / "best"

    def search_row(self, name: str, arm: Arm, seed: int) -> Cell:
        """Its scores, what it took, and its weights by source."""
        best = self.searched(name, arm, seed)
        records = read_archive(best.parent / "evaluations.jsonl")
        spent = {"evaluations": len(records), "seconds": round(sum(r["seconds"] for r in records), 1)}
        return {**self.score(best), **spent, "genome": known(best.parent / "result.json", "best", "genome")}

    def folder(self, name: str, seed: int) -> Path:
        """The model of a row."""
        if name in SEARCHED:
            return self.searched(name, SEARCHED[name], seed)
        if name in CONTROLS | USUAL:
            return self.merged(name, (CONTROLS | USUAL)[name], seed)
        return (train.MODELS if name in ("base", "captions") else self.models(seed)) / name

    def tuned(self, name: str, seed: int, choice: Cell) -> Cell:
        """A model trained on the questions of the search, and what that took."""
        out = self.work / f"seed {seed}" / f"fine-tuned {name}"
        spent = tuning.tuned(self.folder(name, seed), choice, seed, out)
        return {**self.score(out), **spent}


def plan(bench: Bench, output: Path, seeds: int) -> Iterator[tuple[tuple[str, ...], Callable[[], Cell]]]:
    """What is to be measured, in the order of importance: (where it goes in the results, how it is made)."""

    def row(name: str, seed: int, view: str = "Japanese") -> Any:
        return (view, name, str(seed)), lambda: bench.score(bench.folder(name, seed), view)

    def search(name: str, seed: int) -> Any:
        return ("Japanese", name, str(seed)), lambda: bench.search_row(name, SEARCHED[name], seed)

    def tune(name: str, seed: int) -> Any:
        return ("Japanese", f"fine-tuned {name}", str(seed)), lambda: bench.tuned(
            name, seed, known(output, "choices", name, "0")
        )

    all_seeds = range(seeds)
    for seed, name in itertools.product(all_seeds, ("llava", *CONTROLS, *USUAL)):
        yield row(name, seed)
    for name, seed in itertools.product(SEARCHED, all_seeds):
        yield search(name, seed)
    for seed, (name, views) in itertools.product(all_seeds, SEEN.items()):
        yield from (row(name, seed, view) for view in views)
    for name in FITS:
        yield ("choices", name, "0"), lambda name=name: tuning.choose(bench.folder(name, 0), bench.task("Japanese"))
        for seed in all_seeds:
            yield tune(name, seed)


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=3).parse_args()
    for where, measure in plan(Bench(args.work.resolve()), args.output, args.seeds):
        if known(args.output, *where) is None:
            record(args.output, cell := measure(), *where)
            shown = {k: v for k, v in cell.items() if isinstance(v, (int, float))}
            print(time.strftime("%H:%M:%S"), *where, shown, flush=True)


if __name__ == "__main__":
    main()
