"""Which weights for the checkpoints of one training run of Gemma 3 270M? Checkpoints, averages, searches, gradients.

    python experiments/japanese_math_gemma/trajectory.py --data DATA     # after train.py; goes on where it was stopped
    python experiments/japanese_math_gemma/trajectory.py --table         # the table of trajectory.json

`maths` of train.py is trained from `school` again, at a constant and at a decayed learning rate, with eight
checkpoints in float32. Everything is chosen by the likelihood of the worked answers to English search questions.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import train
from arguments import known, make_parser, record
from run import FAST, FEW, Cell
from tables import differences, interval, schedule, solved

import jevomerge as jm
from jevomerge.fitness.schema import Task
from jevomerge.observers.observer import SILENT
from jevomerge.search.archive import read_archive
from jevomerge.tokenizers.load import load_tokenizer

RATES = {"constant": 1.0, "decayed": 0.0}  # the share of the learning rate that is left at the end
STEPS, EVERY = 160, 20
POINTS = range(EVERY, STEPS + 1, EVERY)
RANGE = {"range": [0, 1]}
GENES = {"checkpoint": RANGE, "checkpoint and layer": RANGE | {"layers_per_group": 1}}
EVALUATIONS, STEP_ROWS = 40, 16
GRADIENT = {"steps": EVALUATIONS * FEW["examples_per_generation"] // (3 * STEP_ROWS), "examples_per_step": STEP_ROWS}
SEARCH = common.SIZES["search"]
DIFFERENCES = (
    ("constant: average of all", "constant: last checkpoint"),
    ("constant: average of all", "decayed: last checkpoint"),
    ("decayed: average of all", "decayed: last checkpoint"),
    ("constant: searched, a weight per checkpoint", "constant: average of all"),
    ("constant: gradient, a weight per checkpoint and layer", "constant: average of all"),
)


class Bench:
    """Makes the checkpoints and their merges below a folder, and scores them."""

    def __init__(self, work: Path, data: Path):
        self.work, self.data, self.base = work / "trajectory", data, jm.Checkpoint(work / "school")
        self.tokenizer = load_tokenizer(work / "school")
        self.work.mkdir(exist_ok=True)
        files = common.question_files(self.work, "en")
        asked = {"prompt": "{prompt}", "answer": "{answer}", **files}
        generation = {"score": "generation", "pattern": r"(\d+)\D*$", "max_new_tokens": 48}
        self.nats = Task.model_validate({"name": "nats", **asked})
        right = Task.model_validate({"name": "right", **asked, **generation})
        self.judge, self.both = (
            jm.make_judge(jm.make_ready(tasks, self.tokenizer, self.base.model), self.base.model)
            for tasks in ([self.nats], [self.nats, right])
        )

    def trained(self, rate: str) -> None:
        """Train, and write the checkpoints."""

        def keep(step: int, params: Any) -> None:
            if step in POINTS:
                train.write(self.work / rate / str(step), params, self.base, f"{step} steps", "float32")

        run = train.RUNS["maths"]._replace(steps=STEPS, end=RATES[rate], about=f"maths, {rate}")
        rows = train.pack(train.taught("maths", self.data, self.tokenizer), STEPS * train.ROWS, self.tokenizer)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self.base.load())
        train.fit(run, self.base.model, params, *rows, keep)

    def score(self, folder: Path) -> Cell:
        """Nats per token of the worked answers on both splits, and which held-out problems are solved, as bits."""
        params = jm.Checkpoint(folder).load()
        heldout = self.both.model(params, "heldout").fitness
        nats = {"search": self.searched_nats(params), "heldout": round(float(-heldout["nats"].mean()), 4)}
        return {**nats, "bits": "".join(str(int(v)) for v in heldout["right"])}

    def searched_nats(self, params: Any) -> float:
        return round(float(-self.judge.model(params, "search").fitness["nats"].mean()), 4)

    def recipe(self, rate: str, last: int) -> dict[str, Any]:
        models = [{"model": str(self.work / rate / str(step))} for step in POINTS[-last:]]
        return {"merge_method": "linear", "models": models, "parameters": {"weight": 1}, "dtype": "float32"}

    def averaged(self, rate: str, last: int) -> Path:
        """The folder of the average of so many."""
        folder = self.work / "averages" / f"{rate}, last {last}"
        if not folder.exists():
            jm.merge_folder(self.recipe(rate, last), folder)
        return folder

    def last(self, rate: str, count: int) -> Cell:
        return {**self.score(self.averaged(rate, count)), "passes": 0}

    def tail(self, rate: str) -> Cell:
        """The average of the last k, with the k that the search questions prefer."""
        folders = (self.averaged(rate, k) for k in range(1, len(POINTS) + 1))
        nats = [self.searched_nats(jm.Checkpoint(folder).load()) for folder in folders]
        best = int(np.argmin(nats)) + 1
        passes = len(POINTS) * SEARCH
        return {**self.score(self.averaged(rate, best)), "checkpoints": best, "passes": passes, "tails": nats}

    def run(self, rate: str, seed: int, genes: str, **settings: Any) -> Cell:
        """A run over the eight checkpoints, which begins at equal weights."""
        way = "gradient" if "refine" in settings else "searched"
        folder = self.work / "runs" / f"{rate}, {way}, {genes} {seed}"
        if not (folder / "result.json").exists():
            few = {"path": self.nats.heldout.path, "limit": 4}  # held-out questions are asked of the folder
            tasks = [self.nats.model_dump() | {"heldout": few}]
            recipe = self.recipe(rate, len(POINTS)) | {"parameters": {}}
            values = {"name": "run", "seed": seed, "tasks": tasks, "recipe": recipe, "genome": {"weight": GENES[genes]}}
            config = jm.read_run({**values, **FAST, **settings})
            jm.evolve(config, output=folder, resume=(folder / "config.yaml").exists(), observer=SILENT)
        records = read_archive(folder / "evaluations.jsonl")
        steps = settings.get("refine", {}).get("steps", 0) * sum("refined" in r for r in records)
        passes = sum(len(r["scores"]["nats"]) for r in records) + settings["search"].get("finalists", 0) * SEARCH
        cell = {**self.score(folder / "best"), "passes": passes + 3 * STEP_ROWS * steps}
        if (source := known(folder / "result.json", "best", "source")) is not None:
            return cell | {"source": source}  # no candidate was better, and it is what was exported
        return cell | {"weights": schedule(known(folder / "result.json", "best", "genome"))}


def plan(bench: Bench, rate: str, seeds: range) -> Iterator[tuple[str, int, Callable[[], Cell]]]:
    """(row, seed, how it is made); gradients are followed once."""
    yield "last checkpoint", 0, partial(bench.last, rate, 1)
    yield "average of the last k", 0, partial(bench.tail, rate)
    yield "average of all", 0, partial(bench.last, rate, len(POINTS))
    for genes in GENES:
        gradient = partial(bench.run, rate, 0, genes, search={"evaluations": 0}, refine=GRADIENT)
        yield f"gradient, a weight per {genes}", 0, gradient
    search = {"strategy": "cma_es", "evaluations": EVALUATIONS, **FEW}
    for seed in seeds:
        yield "searched, a weight per checkpoint", seed, partial(bench.run, rate, seed, "checkpoint", search=search)


def rows_of(cells: dict[str, dict[str, Cell]]) -> list[dict[str, Any]]:
    found = []
    for name, by_seed in cells.items():
        mean, low, high = (round(x, 1) for x in interval(solved(by_seed)))
        each = {k: np.array([c[k] for c in by_seed.values()]) for k in ("search", "heldout", "passes", "minutes")}
        nats = {f"nats, {split}": each[split].round(4).tolist() for split in ("search", "heldout")}
        spent = {k: float(np.median(each[k])) for k in ("passes", "minutes")}
        found.append({"name": name, "heldout": mean, "low": low, "high": high, "seeds": len(by_seed), **spent} | nats)
    return found


def table(results: dict[str, Any]) -> None:
    print("| learning rate: | seeds | solved, % | 95 % | nats (lowest to highest) | nats, search | passes | minutes |")
    print("|---|---:|---:|---|---|---:|---:|---:|")
    for row in results["rows"]:
        nats, search = (np.array(row[f"nats, {split}"]) for split in ("heldout", "search"))
        spread = f" ({nats.min():.4f} to {nats.max():.4f})" if len(nats) > 1 else ""
        print(
            f"| {row['name']} | {row['seeds']} | {row['heldout']:.1f} | {row['low']:.1f} to {row['high']:.1f} | "
            f"{nats.mean():.4f}{spread} | {search.mean():.4f} | {row['passes']:.0f} | {row['minutes']:.0f} |"
        )
    print("\n| difference, solved | points | 95 % |\n|---|---:|---|")
    for one, other, _, (mean, low, high) in differences(results["cells"], DIFFERENCES):
        print(f"| {one} - {other} | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")
    print("\n| weights | " + " | ".join(map(str, POINTS)) + " |\n|---|" + "---:|" * len(POINTS))
    for name, by_seed in results["cells"].items():
        if found := [c["weights"] for c in by_seed.values() if "weights" in c]:
            print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in np.mean(found, axis=0)) + " |")


def main() -> None:
    parser = make_parser(__doc__, __file__, output="trajectory.json", work=True, seeds=3, parts=RATES, table=True)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=common.FOLDERS["data"])
    args = parser.parse_args()
    if args.table:
        return table(known(args.output))
    if args.data is None:
        parser.error("--data is needed to train")
    bench = Bench(args.work.resolve(), args.data)
    for rate in args.parts:
        if not (bench.work / rate / str(STEPS)).exists():
            shutil.rmtree(bench.work / rate, ignore_errors=True)  # of a training that was stopped
            bench.trained(rate)
        for name, seed, made in plan(bench, rate, range(args.seeds)):
            row = f"{rate}: {name}"
            if known(args.output, "cells", row, str(seed)) is None:
                began = time.monotonic()
                cell = made()
                cell["minutes"] = round((time.monotonic() - began) / 60, 1)
                record(args.output, cell, "cells", row, str(seed))
                record(args.output, rows_of(known(args.output, "cells")), "rows")
                print(time.strftime("%H:%M:%S"), row, seed, {k: v for k, v in cell.items() if k != "bits"}, flush=True)
    return table(known(args.output))


if __name__ == "__main__":
    main()
