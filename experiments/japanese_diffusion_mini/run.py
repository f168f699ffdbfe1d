"""What evolution buys where Japanese prompts meet few steps; README.md says what came out of it.

    python experiments/japanese_diffusion_mini/run.py       # goes on where it was stopped
    python experiments/japanese_diffusion_mini/table.py     # its tables, plot.png and pictures.png, from results.json

Every row is a diffusers folder below --work, and what is scored is that folder.  Searches are runs of `jevomerge
evolve`.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import clothes
import jax
import jax.numpy as jnp
import judge
import numpy as np
import train
import tuning
from arguments import known, make_parser, record
from tables import interval, solved

import jevomerge as jm
from jevomerge.models.diffusion.pipeline import draw, noise_keys, sample
from jevomerge.models.diffusion.scheduler import plan as plan_steps
from jevomerge.observers.observer import SILENT
from jevomerge.search.archive import read_archive

HERE = Path(__file__).parent
SEEDS = {"search": range(1), "heldout": range(1, 6)}  # of the noise of each prompt's pictures
ROOM = "Japanese, four steps"  # of the results
PARTS = {"pictures": False, "outlines": True}  # {task: whether drawings are wanted}
Cell = dict[str, Any]


class Arm(NamedTuple):
    """A merge: its recipe, and which of its numbers are searched how."""

    method: str
    parameters: dict[str, Any] = {}  # noqa: RUF012
    models: Sequence[str] = ("ja", "fast", "style")
    genome: dict[str, Any] = {}  # noqa: RUF012
    search: dict[str, Any] = {}  # noqa: RUF012


WEIGHTS, RANGE = {"weight": 1}, [0, 1.5]
RANDOM = {"strategy": "random", "evaluations": 50, "population": 10}
CMA = {"strategy": "cma_es", "evaluations": tuning.EVALUATIONS}
FEW = {"weight": RANGE}
SAKANA, BLOCKS = ({"weight": {"range": RANGE, "by": by}} for by in ("sakana", "block"))

GRAFTS = {name: Arm("linear", WEIGHTS, (name,)) for name in ("base", "fast", "style")}
ALL = {
    "average": Arm("linear", WEIGHTS),
    "task vectors added (1, 1, 1)": Arm("task_arithmetic", WEIGHTS),
    "TIES (density 0.2)": Arm("ties", {"weight": 1, "density": 0.2}),
    "TIES (density 0.5)": Arm("ties", {"weight": 1, "density": 0.5}),
    "DARE-TIES (weight 0.5, density 0.5)": Arm("dare_ties", {"weight": 0.5, "density": 0.5}),
}
LEFT_OUT = {False: "style", True: "fast"}  # by somebody who knows which model is of the least use


def usual(without: str) -> dict[str, Arm]:
    """Merges whose numbers nobody searched, of all models and of all but one."""
    two = tuple(name for name in ("ja", "fast", "style") if name != without)
    return ALL | {
        f"average, no {without}": Arm("linear", WEIGHTS, two),
        f"SLERP, no {without}": Arm("slerp", {"t": 0.5}, two),
        f"task vectors added, no {without}": Arm("task_arithmetic", WEIGHTS, two),
        f"TIES (density 0.5), no {without}": Arm("ties", {"weight": 1, "density": 0.5}, two),
    }


USUAL = {drawn: usual(without) for drawn, without in LEFT_OUT.items()}
SEARCHED = {
    "evolved, blocks": Arm("task_arithmetic", genome=BLOCKS, search=CMA),
    "evolved, 3 genes": Arm("task_arithmetic", genome=FEW, search=CMA),
    "3 genes, random": Arm("task_arithmetic", genome=FEW, search=RANDOM),
    "blocks, random": Arm("task_arithmetic", genome=BLOCKS, search={**RANDOM, "evaluations": tuning.EVALUATIONS}),
    "evolved, 6 genes": Arm("task_arithmetic", genome=SAKANA, search=CMA),
}


@cache
def asked(split: str) -> tuple[tuple[str, ...], np.ndarray, jax.Array]:
    """The prompts of a split's pictures, their classes, and (1, B, SIZE, SIZE, 1) the noise of each: the task's own."""
    lines = (clothes.DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [(row, seed) for row in map(json.loads, lines) for seed in SEEDS[split]]
    texts = tuple(row["prompt"] for row, _ in rows)
    noise = draw(noise_keys(texts, [seed for _, seed in rows]), (clothes.SIZE, clothes.SIZE, 1))
    return texts, np.array([row["class"] for row, _ in rows]), noise


@partial(jax.jit, static_argnames="steps")
def drawn(params: Any, tokens: jax.Array, noise: jax.Array, steps: int) -> jax.Array:
    """(B, SIZE, SIZE, 1) uint8 pictures of prompts."""
    told = train.condition(params, tokens)
    pixels = sample(params, train.MODEL, told, noise, plan_steps(train.MODEL.scheduler, steps))
    return jnp.round(255 * pixels).astype(jnp.uint8)


def pictures(folder: Path, split: str, steps: int = train.STEPS) -> np.ndarray:
    """(B, SIZE, SIZE, 1) uint8: what a model draws of all prompts of a split."""
    texts, _, noise = asked(split)
    params, tokens = train.load(folder), clothes.encoded(list(texts))
    per = len(asked("search")[0])  # of one size, for one program
    parts = [slice(i, i + per) for i in range(0, len(texts), per)]
    return np.concatenate([np.asarray(drawn(params, tokens[p], noise[:, p], steps)) for p in parts])


def judged(pixels: np.ndarray, classes: np.ndarray, drawn: bool) -> Cell:
    """Of pictures held out; see `Bench.score`."""
    said, features = (np.asarray(x) for x in judge.log_probabilities(pixels, drawn))
    asked_for = said[np.arange(len(classes)), classes]
    return {
        "heldout": round(float(np.mean(asked_for)), 4),
        "frechet": round(judge.frechet(features, judge.real(drawn)), 2),
        "bits": "".join(str(int(right)) for right in np.argmax(said, axis=1) == classes),
        "nats": " ".join(f"{value:.2f}" for value in asked_for),
    }


def real(shown: bool, drawn: bool) -> Cell:
    """As many real pictures, or drawings of them, of each class, from the split that the classifier learnt from."""
    pixels, labels = clothes.pictures("train", shown)
    _, classes, _ = asked("heldout")
    chosen = np.concatenate([np.flatnonzero(labels == c)[: np.sum(classes == c)] for c in range(clothes.CLASSES)])
    return judged(pixels[chosen], labels[chosen], drawn)


class Bench:
    """Makes models of a task below a folder and scores them."""

    def __init__(self, work: Path, drawn: bool):
        self.work, self.drawn = work / "outlines" if drawn else work, drawn
        self.many = "style" if drawn else "ja"  # that draws what is wanted in many steps

    def score(self, folder: Path, steps: int = train.STEPS) -> Cell:
        """Of a model: both splits' fitness; which pictures held out are recognised, how far they are from real ones."""
        shown = {split: pictures(folder, split, steps) / np.float32(127.5) - 1 for split in SEEDS}
        found = {split: judged(shown[split], asked(split)[1], self.drawn) for split in SEEDS}
        return {"search": found["search"]["heldout"], **found["heldout"]}

    def recipe(self, arm: Arm, seed: int) -> dict[str, Any]:
        base = {"linear": {}, "slerp": {"base_model": str(train.MODELS / arm.models[0])}}
        return {
            "merge_method": arm.method,
            "models": [{"model": str(train.MODELS / name)} for name in arm.models],
            **base.get(arm.method, {"base_model": str(train.MODELS / "base")}),
            "parameters": arm.parameters,
            "take": {part: str(train.MODELS / "ja") for part in train.ENCODERS},  # as in EvoSDXL-JP
            "dtype": "float16",
            "semantics": "paper",
            "seed": seed,  # of DARE's masks
        }

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
                "search": arm.search, "tasks": [str(HERE / f"task{clothes.SUFFIX[self.drawn]}.yaml")],
            }  # fmt: skip
            jm.evolve(config, output=run, resume=(run / "config.yaml").exists(), observer=SILENT)
        return run / "best"

    def search_row(self, name: str, seed: int) -> Cell:
        """Its scores, what it took, and its weights by source."""
        best = self.searched(name, SEARCHED[name], seed)
        records = read_archive(best.parent / "evaluations.jsonl")
        spent = {"evaluations": len(records), "seconds": round(sum(r["seconds"] for r in records), 1)}
        return {**self.score(best), **spent, "genome": known(best.parent / "result.json", "best", "genome")}

    def folder(self, name: str, seed: int = 0) -> Path:
        """The model of a row."""
        if name in SEARCHED:
            return self.searched(name, SEARCHED[name], seed)
        if name in (given := GRAFTS | USUAL[self.drawn]):
            return self.merged(name, given[name], seed)
        return train.MODELS / name

    def choice(self, name: str) -> Cell:
        """How to train: chosen by the fitness of the search, with a seed of its own."""
        way, work = tuning.WAYS[self.drawn][name], self.work / "choices"
        work.mkdir(parents=True, exist_ok=True)
        return tuning.choose(way, self.folder(way.start), lambda folder: self.score(folder)["search"], work)

    def tuned(self, name: str, seed: int, rate: float) -> Cell:
        """A model that was trained instead, and what that took."""
        way, out = tuning.WAYS[self.drawn][name], self.work / f"seed {seed}" / name
        spent = {} if out.exists() else tuning.tune(way, self.folder(way.start), rate, seed, out)
        return {**self.score(out), **spent}


def plan(bench: Bench, output: Path, seeds: int) -> Iterator[tuple[tuple[str, ...], Callable[[], Cell]]]:
    """What is to be measured, in the order of importance: (where it goes in the results, how it is made)."""

    def row(name: str, seed: int = 0) -> Any:
        return (ROOM, name, str(seed)), lambda: bench.score(bench.folder(name, seed))

    for name in ("ja", *GRAFTS, *USUAL[bench.drawn]):
        for seed in range(seeds if name.startswith("DARE") else 1):
            yield row(name, seed)
    for shown in sorted({False, bench.drawn}):
        yield ("references", f"real pictures{', outlined' if shown else ''}", "0"), partial(real, shown, bench.drawn)

    def search(*names: str) -> Iterator[Any]:
        for name, seed in itertools.product(names, range(seeds)):
            yield (ROOM, name, str(seed)), partial(bench.search_row, name, seed)

    def tune(name: str) -> Iterator[Any]:
        yield ("choices", name, "0"), partial(bench.choice, name)
        for seed in range(seeds):
            key = (ROOM, name, str(seed))
            yield key, lambda seed=seed: bench.tuned(name, seed, known(output, "choices", name, "0")["rate"])

    first, second = tuning.WAYS[bench.drawn]
    *searches, blind, other = SEARCHED
    yield from search(*searches)
    yield from tune(first)
    yield from search(blind)
    yield from tune(second)
    yield from search(other)
    yield ("references", f"{bench.many}, 32 steps", "0"), lambda: bench.score(bench.folder(bench.many), 32)


def summary(rows: dict[str, dict[str, Cell]]) -> list[dict[str, Any]]:
    """A line of each row: what of the pictures held out is recognised, in per cent, and what it took."""
    per = len(asked("search")[0]) * train.STEPS
    found = []
    for name, cells in rows.items():
        mean, low, high = (round(value, 1) for value in interval(solved(cells)))
        spent = [[cell[key] for cell in cells.values() if key in cell] for key in ("evaluations", "seconds")]
        passes, minutes = (float(np.median(values)) if values else 0 for values in spent)
        line = {"name": name, "heldout": mean, "low": low, "high": high, "seeds": len(cells)}
        found.append({**line, "passes": round(passes * per), "minutes": round(minutes / 60, 1)})
    return found


def of_part(file: Path, part: str) -> Path:
    """A task's own file of this kind."""
    return file.with_stem(file.stem + clothes.SUFFIX[PARTS[part]])


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=3, parts=PARTS).parse_args()
    train.make(train.MODELS)
    for part in args.parts:
        bench, output = Bench(args.work.resolve(), PARTS[part]), of_part(args.output, part)
        for where, measure in plan(bench, output, args.seeds):
            if known(output, *where) is None:
                record(output, cell := measure(), *where)
                record(output, summary(known(output, ROOM) or {}), "rows")
                shown = {k: v for k, v in cell.items() if isinstance(v, (int, float))}
                print(time.strftime("%H:%M:%S"), part, *where, shown, flush=True)


if __name__ == "__main__":
    main()
