"""Which weights for the checkpoints of one training run? README.md says what came out.

    nice python experiments/trajectories/run.py           # results.json; goes on where it was stopped
    python experiments/trajectories/run.py --table        # the table of results.json
    python experiments/trajectories/run.py train          # only the checkpoints, into --work

A run learns both skills of the miniature's specialists at once, from its base: half the documents are the Japanese
specialist's, half the mathematician's.  Everything is chosen by the likelihood of the answers to the search questions.
"""

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import answers
import generate
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import train
from answers import MINIATURE, apart, likelihood, texts, together
from arguments import known, make_parser, record
from tables import interval, schedule, solved

import jevomerge as jm
from jevomerge.observers.observer import SILENT

TASK = Path(__file__).parents[2] / "configs" / "tasks" / "mini_japanese_math.yaml"
RATES = {"constant": 1.0, "decayed": 0.0}  # the share of the learning rate that is left at the end
STEPS, EVERY, RATE = 240, 30, 1e-3
POINTS = range(EVERY, STEPS + 1, EVERY)
LAYERS = {"range": [0, 1], "by": [f"layers.{i}." for i in range(answers.DEPTH)]}
GENES: dict[str, Any] = {"per checkpoint": {"range": [0, 1]}, "per checkpoint and layer": LAYERS}
EVALUATIONS, POPULATION = 100, 10  # of a search, for whose passes a gradient has a third as many steps
QUESTIONS = len(answers.SEARCH[0])
Tree = dict[str, Any]
Cell = dict[str, Any]


# --- training -----------------------------------------------------------------------------------------------


def documents() -> Iterator[generate.Document]:
    """Of both specialists in turn."""
    streams = [generate.documents(corpus, seed=1) for corpus in ("japanese", "mathematics")]
    for stream in itertools.cycle(streams):
        yield next(stream)


def trained(folder: Path, end: float) -> None:
    """Train, and write a checkpoint as a training program does, every so many steps."""
    rows = train.pack(documents(), STEPS * train.ROWS, 0.0, answers.TOKENIZER)
    optimizer, step = train.make_step(STEPS, RATE, end)
    params = train.load(MINIATURE / "models" / "base")
    state = optimizer.init(params)
    with ocp.PyTreeCheckpointer() as orbax:
        for i in range(STEPS):
            batch = slice(i * train.ROWS, (i + 1) * train.ROWS)
            params, state, loss = step(params, state, *(x[batch] for x in rows))
            if i + 1 in POINTS:
                tree = {"params": apart(jax.tree.map(np.asarray, params)), "step": np.int32(i + 1)}
                orbax.save((folder / str(i + 1) / "items").absolute(), tree, force=True)
                print(f"{folder.name} {i + 1}/{STEPS}: loss {loss:.4f}", flush=True)


def restored(folder: Path) -> Tree:
    """The parameters of a checkpoint."""
    with ocp.PyTreeCheckpointer() as orbax:
        return jax.tree.map(np.asarray, orbax.restore(folder.absolute())["params"])


# --- measuring ----------------------------------------------------------------------------------------------


class Bench:
    """Makes the checkpoints and their merges below a folder, and scores them."""

    def __init__(self, work: Path):
        self.work = work
        ready = jm.make_ready(jm.read_tasks(TASK), answers.TOKENIZER, answers.DECODER)
        self.judge = jm.make_judge(ready, answers.DECODER)
        self.likelihood = jax.jit(likelihood)
        self.texts = {"search": answers.SEARCH, "heldout": texts("heldout")}

    @functools.cache  # noqa: B019
    def checkpoints(self, rate: str) -> list[Tree]:
        """All eight, trained first if they are not there."""
        folder = self.work / rate
        if not (folder / str(STEPS) / "items").exists():
            trained(folder, RATES[rate])
        return [restored(folder / str(i) / "items") for i in POINTS]

    def answered(self, params: Tree, split: str) -> float:
        """The mean log-likelihood of a split's answers."""
        return float(jnp.mean(self.likelihood(params, *self.texts[split])))

    def scored(self, params: Tree) -> Cell:
        """Of parameters: on both splits the likelihood, and which held-out problems are solved, as a string of bits."""
        [right] = self.judge.model(together(params), "heldout").fitness.values()
        nats = {split: round(self.answered(params, split), 5) for split in self.texts}
        return {**nats, "bits": "".join(str(int(v)) for v in right)}

    def last(self, rate: str, seed: int) -> Cell:
        """The last checkpoint."""
        return {**self.scored(self.checkpoints(rate)[-1]), "passes": 0}

    def uniform(self, rate: str, seed: int) -> Cell:
        """The average of all."""
        return {**self.scored(average(self.checkpoints(rate))), "passes": 0}

    def tail(self, rate: str, seed: int) -> Cell:
        """The average of the last k, with the k that the search questions prefer."""
        trees = self.checkpoints(rate)
        tails = [average(trees[-k:]) for k in range(1, len(trees) + 1)]
        best = max(range(len(tails)), key=lambda i: self.answered(tails[i], "search"))
        return {**self.scored(tails[best]), "checkpoints": best + 1, "passes": len(tails) * QUESTIONS}

    def run(self, rate: str, seed: int, name: str, genes: str, **settings: Any) -> Cell:
        """A run over the checkpoints, which are in memory: Orbax reads leaf by leaf at 60 ms each."""
        trees = {str(i): {"params": tree} for i, tree in zip(POINTS, self.checkpoints(rate), strict=True)}
        folder = self.work / "runs" / f"{rate}, {name} {seed}"
        found = jm.evolve(
            models=trees,
            model=jm.own_model(answers.search, next(iter(trees.values()))),
            recipe={"merge_method": "linear", "dtype": "float32"},
            genome={"weight": GENES[genes]},
            fitness=answers.search,
            seed=seed,
            output=folder,
            resume=folder.exists(),
            observer=SILENT,
            **settings,
        )
        assert isinstance(found, jm.Result)
        return {**self.scored(found.params["params"]), "weights": schedule(found.genome)}

    def searched(self, rate: str, seed: int, genes: str) -> Cell:
        """The best that CMA-ES finds."""
        search = {"evaluations": EVALUATIONS, "population": POPULATION}
        cell = self.run(rate, seed, f"searched {genes}", genes, search=search)
        return cell | {"passes": EVALUATIONS * QUESTIONS}

    def followed(self, rate: str, seed: int, genes: str) -> Cell:
        """What the gradient makes of the uniform average, for as many passes: a step takes three."""
        steps = EVALUATIONS // 3
        refine = {"objective": "fitness", "steps": steps}
        cell = self.run(rate, seed, f"gradient {genes}", genes, search={"evaluations": 0}, refine=refine)
        return cell | {"passes": (3 * steps + 2) * QUESTIONS}  # the start and the end are scored


def average(trees: list[Tree]) -> Tree:
    """The mean, in float32."""
    return jax.tree.map(lambda *x: np.mean(x, axis=0, dtype=np.float32), *trees)


# --- everything ---------------------------------------------------------------------------------------------


def plan(bench: Bench, seeds: int) -> Iterator[tuple[str, str, int, Callable[[str, int], Cell]]]:
    """(learning rate, row, seed, how it is made); what no seed changes is made once."""
    for rate in RATES:
        for name in ("last", "uniform", "tail"):
            yield rate, ROWS[name], 0, getattr(bench, name)
        for genes in GENES:
            yield rate, f"gradient, a weight {genes}", 0, functools.partial(bench.followed, genes=genes)
    for seed, genes, rate in itertools.product(range(seeds), GENES, RATES):
        yield rate, f"searched, a weight {genes}", seed, functools.partial(bench.searched, genes=genes)


ROWS = {"last": "last checkpoint", "uniform": "average of all", "tail": "average of the last k"}


def rows_of(cells: dict[str, dict[str, dict[str, Cell]]]) -> Iterator[dict[str, Any]]:
    """A row for each learning rate and way: what is solved of the held-out problems, with its interval."""
    for rate, ways in cells.items():
        for way, seeds in ways.items():
            mean, low, high = (round(x, 1) for x in interval(solved(seeds)))
            found = list(seeds.values())
            each = {k: round(float(np.mean([c[k] for c in found])), 4) for k in ("minutes", "passes")}
            nats = {split: [round(-c[split], 4) for c in found] for split in ("search", "heldout")}
            shown = {"name": f"{rate}: {way}", "heldout": mean, "low": low, "high": high, "seeds": len(found)}
            yield {**shown, "passes": int(each["passes"]), "minutes": round(each["minutes"], 2), "nats": nats}


def table(results: dict[str, Any]) -> None:
    print("| learning rate: | seeds | solved, % | 95 % | nats | lowest to highest | nats, search | passes | minutes |")
    print("|---|---:|---:|---|---:|---|---:|---:|---:|")
    for row in results["rows"]:
        nats = {split: np.array(row["nats"][split]) for split in ("search", "heldout")}
        spread = f"{nats['heldout'].min():.4f} to {nats['heldout'].max():.4f}" if row["seeds"] > 1 else ""
        print(
            f"| {row['name']} | {row['seeds']} | {row['heldout']:.1f} | {row['low']:.1f} to {row['high']:.1f} | "
            f"{nats['heldout'].mean():.4f} | {spread} | {nats['search'].mean():.4f} | {row['passes']} | "
            f"{row['minutes']:.1f} |"
        )


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=3, parts=("train", *RATES), table=True).parse_args()
    if args.table:
        return table(known(args.output))
    bench = Bench(args.work.resolve())
    for rate in RATES:
        began = time.process_time()
        if not (args.work / rate / str(STEPS) / "items").exists():
            shutil.rmtree(args.work / rate, ignore_errors=True)
            bench.checkpoints(rate)
            record(args.output, round((time.process_time() - began) / 60, 2), "training, minutes", rate)
    for rate, way, seed, made in plan(bench, args.seeds):
        if rate in args.parts and known(args.output, "cells", rate, way, str(seed)) is None:
            began = time.process_time()
            cell = made(rate, seed)
            cell["minutes"] = round((time.process_time() - began) / 60, 3)
            record(args.output, cell, "cells", rate, way, str(seed))
            record(args.output, list(rows_of(known(args.output, "cells"))), "rows")
            print(
                time.strftime("%H:%M:%S"), rate, way, seed, {k: v for k, v in cell.items() if k != "bits"}, flush=True
            )
    return table(known(args.output))


if __name__ == "__main__":
    main()
