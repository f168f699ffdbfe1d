"""What evolution buys: parents, usual merges, random search, evolution and fine-tuning; README.md says what came out.

    nice python experiments/japanese_math_mini/run.py              # hours on two cores; goes on where it was stopped
    python experiments/japanese_math_mini/table.py                 # the tables of results.json, and plot.png

Every row is a model folder below --work, and what is scored is that folder.  Searches are runs of `jevomerge evolve`.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import abilities
import jax
import jax.numpy as jnp
import numpy as np
import train
import tuning
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.config import RunConfig
from jevomerge.fitness.judge import SPLITS
from jevomerge.observers.observer import SILENT
from jevomerge.search.archive import read_archive
from jevomerge.search.setup import problem_of
from jevomerge.tokenizers.load import load_tokenizer

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "tasks"
TASKS = ("japanese_math", "two_skills")
PARENTS = ("japanese", "mathematics", "addition")
DISTRACTORS = ("sorter", "mistaken", "noise")
Cell = dict[str, Any]


# --- merges -------------------------------------------------------------------------------------------------


def nested_slerp(sources: Sequence[jax.Array], base: Any, coefficients: Any, prepared: Any, keys: Any) -> jax.Array:
    """From the first model t1 of the way to the second, from there t2 of the way to the third."""
    slerp = jm.get_method("slerp")
    first, second, third = sources
    for t, pair in (("t1", [first, second]), ("t2", [None, third])):
        pair = [first if x is None else x for x in pair]
        first = slerp.merge(pair, None, {"t": coefficients[t]}, slerp.prepare(pair, None), keys)
    return first


NESTED = (jm.Parameter("t1", None), jm.Parameter("t2", None))
jm.register(jm.MergeMethod("nested_slerp", NESTED, nested_slerp, base="first", num_sources=(3, 3)))


class Arm(NamedTuple):
    """A merge: its recipe, and which of its numbers are searched how."""

    method: str
    parameters: dict[str, float] = {}  # noqa: RUF012
    genome: dict[str, Any] = {}  # noqa: RUF012
    search: dict[str, Any] = {}  # noqa: RUF012
    models: tuple[str, ...] = PARENTS


UNIT, FINE = [0, 1], {"range": [0, 1], "layers_per_group": 1, "by": "component"}
RANDOM = {"strategy": "random", "evaluations": 50, "population": 10}
CMA = {"strategy": "cma_es", "evaluations": tuning.EVALUATIONS}
EQUAL = RANDOM["evaluations"]  # of a search by CMA-ES, the evaluations that random search had
WEIGHTS, FINE_WEIGHTS, BOTH = {"weight": UNIT}, {"weight": FINE}, {"weight": UNIT, "density": UNIT}

USUAL = {
    "average": Arm("linear", {"weight": 1}),
    "SLERP": Arm("nested_slerp", {"t1": 1 / 2, "t2": 1 / 3}),
    "TIES (density 0.2)": Arm("ties", {"weight": 1, "density": 0.2}),
    "TIES (density 0.5)": Arm("ties", {"weight": 1, "density": 0.5}),
    "DARE-TIES (weight 1/3, density 0.5)": Arm("dare_ties", {"weight": 1 / 3, "density": 0.5}),
    "task arithmetic (weight 0.4)": Arm("task_arithmetic", {"weight": 0.4}),
    "task arithmetic (weight 1)": Arm("task_arithmetic", {"weight": 1}),
}
SEARCHED = {
    "task arithmetic, random": Arm("task_arithmetic", {}, WEIGHTS, RANDOM),
    "evolved, 3 genes": Arm("task_arithmetic", {}, WEIGHTS, CMA),
    "evolved, 42 genes": Arm("task_arithmetic", {}, FINE_WEIGHTS, CMA),
}
SIGNED = {
    # TIES divides by its weights, so that only its lambda says how much there is of all.
    "TIES, random": Arm("ties", {}, {**BOTH, "lambda": [0, 2]}, RANDOM),
    "DARE-TIES, random": Arm("dare_ties", {}, BOTH, RANDOM),
}
CONVEX = {
    "SLERP, random": Arm("nested_slerp", {}, {"t1": UNIT, "t2": UNIT}, RANDOM),
    "weighted average, random": Arm("linear", {}, WEIGHTS, RANDOM),
}
EVOLVED = ("evolved, 3 genes", "evolved, 42 genes")
FIRST = "{}, first 50"  # the best among the first evaluations of an evolved arm
BLIND = {"42 genes, random": Arm("task_arithmetic", {}, FINE_WEIGHTS, {**RANDOM, "evaluations": 300})}
PAPER = {"evolved, DARE-TIES": Arm("dare_ties", {}, BOTH, CMA)}
CROWDED = {
    "3 + 3 genes": Arm("task_arithmetic", {}, WEIGHTS, CMA, PARENTS + DISTRACTORS),
    "42 + 42 genes": Arm("task_arithmetic", {}, FINE_WEIGHTS, CMA, PARENTS + DISTRACTORS),
    "3 + 1 genes": Arm("task_arithmetic", {}, WEIGHTS, CMA, PARENTS + DISTRACTORS[:1]),
}


class Bench:
    """Makes models below a folder and scores them."""

    def __init__(self, work: Path, output: Path, seeds: int):
        self.work, self.output, self.seeds = work, output, range(seeds)
        self.tokenizer = load_tokenizer(train.MODELS / "base")
        self.tasks = {name: jm.read_tasks(CONFIGS / f"mini_{name}.yaml")[0] for name in TASKS}
        ready = {name: jm.make_ready([task], self.tokenizer, train.DECODER) for name, task in self.tasks.items()}
        self.judges = {name: jm.make_judge(tasks, train.DECODER) for name, tasks in ready.items()}

    def folder(self, model: str) -> Path:
        """Where a source is; the distractor `noise` is made on the spot."""
        path = self.work / model if model == "noise" else train.MODELS / model
        if not path.exists():
            train.write(path, noise(), self.tokenizer, "`base` plus random numbers.")
        return path

    def recipe(self, arm: Arm, seed: int) -> dict[str, Any]:
        order = ("mathematics", "addition", "japanese") if arm.method == "nested_slerp" else arm.models
        base = {"linear": {}, "nested_slerp": {"base_model": str(self.folder(order[0]))}}
        return {
            "merge_method": arm.method,
            "models": [{"model": str(self.folder(m))} for m in order],
            **base.get(arm.method, {"base_model": str(self.folder("base"))}),
            "parameters": arm.parameters,
            "dtype": "bfloat16",
            "semantics": "paper",
            "seed": seed,  # of DARE's masks
        }

    def score(self, task: str, folder: Path) -> Cell:
        """Both splits' scores of a model, in per cent, and which held-out problems it solves, as a string of bits."""
        params = jm.Checkpoint(folder).load()
        right = {s: self.judges[task].model(params, s).fitness[task] for s in SPLITS}
        shown = {split: round(100 * float(values.mean()), 2) for split, values in right.items()}
        return {**shown, "bits": bits_of(right["heldout"])}

    def usual(self, task: str, name: str, seed: int) -> Cell:
        """A merge whose numbers are given."""
        path = self.work / "usual" / f"{name.replace('/', ' over ')} {seed}"
        if not path.exists():
            jm.merge_folder(self.recipe(USUAL[name], seed), path)
        return self.score(task, path)

    def config(self, task: str, arm: Arm, seed: int) -> RunConfig:
        values = {"recipe": self.recipe(arm, seed), "genome": arm.genome, "search": arm.search}
        return jm.read_run({"name": "run", "seed": seed, "tasks": [self.tasks[task].model_dump()], **values})

    def searched(self, task: str, name: str, arm: Arm, seed: int) -> Cell:
        """A merge whose numbers are searched, its coefficients by source, and what it took."""
        config, run = self.config(task, arm, seed), self.work / task / f"{name} {seed}"
        if not (run / "result.json").exists():
            jm.evolve(config, output=run, resume=(run / "config.yaml").exists(), observer=SILENT)
        records = read_archive(run / "evaluations.jsonl")
        genome = known(run / "result.json", "best", "genome")
        return {**self.score(task, run / "best"), **cost(records), "weights": weights_of(genome)}

    def beginning(self, task: str, name: str, arm: Arm, seed: int) -> Cell:
        """The best among the first evaluations of a search that was made."""
        run = self.work / task / f"{name} {seed}"
        records = read_archive(run / "evaluations.jsonl")[:EQUAL]
        best = max(records, key=lambda r: r["fitness"])
        return {**self.variant(task, run / "first", arm, seed, np.asarray(best["genome"])), **cost(records)}

    def without(self, task: str, name: str, arm: Arm, seed: int) -> Cell:
        """The outcome of a search with the weights of the distractors set to 0."""
        run = self.work / task / f"{name} {seed}"
        best = known(run / "result.json", "best", "genome")
        genome = np.array([0 if key.split("/")[1] in DISTRACTORS else value for key, value in best.items()])
        return self.variant(task, run / "without", arm, seed, genome)

    def variant(self, task: str, path: Path, arm: Arm, seed: int, genome: np.ndarray) -> Cell:
        """A genome of an arm whose ranges are [0, 1]."""
        if not path.exists():
            problem_of(self.config(task, arm, seed)).export(genome, path)
        return self.score(task, path)


def bits_of(right: np.ndarray) -> str:
    return "".join(str(int(v)) for v in right)


def cost(records: list[Any]) -> Cell:
    return {"evaluations": len(records), "seconds": round(sum(r["seconds"] for r in records), 1)}


def weights_of(genome: dict[str, float]) -> dict[str, float]:
    """{source parameter: mean over the groups}."""
    found: dict[str, list[float]] = {}
    for key, value in genome.items():
        found.setdefault(" ".join(key.split("/")[1:]), []).append(value)
    return {key: round(float(np.mean(values)), 3) for key, values in found.items()}


def noise() -> Any:
    """The base plus random numbers, in every tensor as long as the specialists' task vectors on average."""
    base, *parents = (train.load(train.MODELS / m) for m in ("base", *PARENTS))
    rng = np.random.default_rng(0)

    def moved(x: jax.Array, *others: jax.Array) -> jax.Array:
        step = rng.normal(size=x.shape)
        length = np.mean([np.linalg.norm(np.asarray(y - x)) for y in others])
        return x + jnp.asarray(step * length / np.linalg.norm(step), x.dtype)

    return jax.tree.map(moved, base, *parents)


# --- everything ---------------------------------------------------------------------------------------------


def plan(bench: Bench) -> Iterator[tuple[tuple[str, ...], Callable[[], Cell]]]:
    """What is to be measured, in the order of importance: (where it goes in the results, how it is made)."""
    call = functools.partial
    for task in TASKS:
        for name in ("base", *PARENTS):
            yield (task, name, "0"), call(bench.score, task, train.MODELS / name)
        for name, arm in USUAL.items():
            for seed in bench.seeds if arm.method == "dare_ties" else bench.seeds[:1]:
                yield (task, name, str(seed)), call(bench.usual, task, name, seed)
    first, second = TASKS

    def crowded(name: str) -> Iterator[Any]:
        for seed in bench.seeds:
            yield (first, name, str(seed)), call(bench.searched, first, name, CROWDED[name], seed)
            key = (first, f"{name}, without them", str(seed))
            yield key, call(bench.without, first, name, CROWDED[name], seed)

    yield from searches(bench, first, SEARCHED)
    yield from searches(bench, first, SIGNED)
    for name in ("addition", "mathematics"):
        yield from tunings(bench, first, name)
    yield from tunings(bench, first, "mathematics", by_family=True)
    merges = ("task arithmetic, random", *EVOLVED)
    fits = ("addition", "mathematics", "mathematics, other sums")
    yield from able_rows(bench, first, (*merges, *(f"fine-tuned {name}" for name in fits)))
    yield from searches(bench, first, CONVEX | BLIND)
    yield from searches(bench, second, SEARCHED)
    yield from crowded("3 + 3 genes")
    for name in ("average", "addition", "base"):
        yield from tunings(bench, first, name, by_family=True)
    yield from crowded("42 + 42 genes")
    yield from searches(bench, first, PAPER)
    yield from crowded("3 + 1 genes")
    yield from searches(bench, second, SIGNED | CONVEX)
    for name in ("mathematics", "average"):
        yield from tunings(bench, second, name, by_family=True)


def start_of(bench: Bench, name: str) -> Path:
    return bench.work / "usual" / "average 0" if name == "average" else train.MODELS / name


def searches(bench: Bench, task: str, arms: dict[str, Arm]) -> Iterator[Any]:
    for seed, (name, arm) in itertools.product(bench.seeds, arms.items()):
        yield (task, name, str(seed)), functools.partial(bench.searched, task, name, arm, seed)
        if name in EVOLVED:
            key = (task, FIRST.format(name), str(seed))
            yield key, functools.partial(bench.beginning, task, name, arm, seed)


def tunings(bench: Bench, task: str, name: str, by_family: bool = False) -> Iterator[Any]:
    judge, start = bench.judges[task], start_of(bench, name)
    row = f"{name}, other sums" if by_family else name
    yield (task, f"rates, {row}", "0"), functools.partial(tuning.choose, judge, start, by_family)
    for seed in bench.seeds:

        def measure(seed: int = seed, out: Path = bench.work / task / f"fine-tuned {row} {seed}") -> Cell:
            spent = tuning.tuned(judge, start, known(bench.output, task, f"rates, {row}", "0"), seed, out)
            return {**bench.score(task, out), **spent}

        yield (task, f"fine-tuned {row}", str(seed)), measure


def able_rows(bench: Bench, task: str, names: Sequence[str]) -> Iterator[Any]:
    tasks = abilities.tasks(bench.work / "abilities")
    judge = jm.make_judge(jm.make_ready(tasks, bench.tokenizer, train.DECODER), train.DECODER, splits=["heldout"])

    def score(folder: Path) -> Cell:
        found = judge.model(jm.Checkpoint(folder).load(), "heldout").fitness
        return {name: bits_of(values) for name, values in found.items()}

    for name in ("base", *PARENTS, "average"):
        yield ("abilities", name, "0"), functools.partial(score, start_of(bench, name))
    for name in names:
        for seed in bench.seeds:
            run = bench.work / task / f"{name} {seed}"
            folder = run / "best" if (run / "best").exists() else run
            yield ("abilities", name, str(seed)), functools.partial(score, folder)


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=5).parse_args()
    for where, measure in plan(Bench(args.work.resolve(), args.output, args.seeds)):
        if known(args.output, *where) is None:
            record(args.output, cell := measure(), *where)
            shown = {k: v for k, v in cell.items() if isinstance(v, (int, float))}
            print(time.strftime("%H:%M:%S"), *where, shown, flush=True)


if __name__ == "__main__":
    main()
