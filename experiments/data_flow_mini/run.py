"""Weights, data flow and both, against the parents and against stacks made by hand; README.md says what came out.

    nice python experiments/data_flow_mini/run.py              # hours on two cores; goes on where it was stopped
    python experiments/data_flow_mini/run.py --table           # the tables of results.json

Every arm is a run of `jevomerge evolve`, below --work.  What is scored is always the exported folder.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.config import RunConfig, StagedConfig
from jevomerge.fitness.judge import SPLITS
from jevomerge.genome.route import Hop, encode, hops_of
from jevomerge.genome.schema import PathSearch
from jevomerge.problems.path import PathProblem
from jevomerge.tokenizers.load import load_tokenizer

HERE = Path(__file__).parent
MODELS = HERE.parent / "japanese_math_mini" / "models"
PARENTS = ("japanese", "mathematics", "addition")


def configs(seed: int) -> dict[str, RunConfig | StagedConfig]:
    """The arms of the comparison; those of weights alone see as many candidates as both stages together."""
    both, alone = jm.read_config(HERE / "both.yaml"), jm.read_run(HERE / "alone.yaml")
    assert isinstance(both, StagedConfig)
    assert alone.path is not None
    weights = both.run_of(both.stages[0], {})
    total = sum(s.search.evaluations for s in both.stages)
    swapped = alone.path.model_copy(update={"models": alone.path.models[::-1]})
    arms = {
        "both": both,
        "alone": alone,
        "weights": weights.model_copy(update={"search": weights.search.model_copy(update={"evaluations": total})}),
        "alone, japanese first": alone.model_copy(update={"path": swapped}),
    }
    return {name: config.model_copy(update={"seed": seed}) for name, config in arms.items()}


class Bench:
    """Scores folders and hand-made paths on the task of the arms."""

    def __init__(self) -> None:
        tasks = jm.read_run(HERE / "alone.yaml").tasks
        ready = jm.make_ready(tasks, load_tokenizer(MODELS / "base"), jm.Checkpoint(MODELS / "base").model)
        self.judge = jm.make_judge(ready, jm.Checkpoint(MODELS / "base").model)

    def folder(self, path: Path) -> dict[str, Any]:
        """Both splits' scores of a model, in per cent, and which held-out problems it solves, as a string of bits."""
        model = jm.Checkpoint(path)
        params = model.load()
        scores = {s: next(iter(self.judge.model(params, s, model.model).fitness.values())) for s in SPLITS}
        shown = {split: round(100 * float(values.mean()), 2) for split, values in scores.items()}
        return {**shown, "bits": "".join(str(int(v)) for v in scores["heldout"])}

    def best_of(self, models: list[Path], candidates: Iterable[list[Hop]]) -> dict[str, Any]:
        """The unscaled path, of those given, that solves most of the search split."""
        path = PathSearch(models=tuple(map(str, models)), repeats=3, scaling="none", dtype="float32")
        problem = PathProblem(path)
        hops = list(candidates)
        genomes = np.stack([encode(problem.space, h) for h in hops])
        scores = [self.judge.fitness(s)[0] for [s] in self.judge.members(problem.load(), genomes)]
        best = int(np.argmax(scores))
        with tempfile.TemporaryDirectory() as folder:
            problem.export(genomes[best], Path(folder) / "m")
            found = self.folder(Path(folder) / "m")
        spread = np.round(100 * np.quantile(scores, [0, 0.5, 1]), 2).tolist()
        return {**found, "path": written(hops[best]), "candidates": len(hops), "search min, median, max": spread}

    def by_hand(self, models: list[Path]) -> dict[str, Any]:
        """The best of what one does without a search of paths: drop a layer, repeat a layer, stack the models."""
        (a, depth), (b, other) = ((m.name, len(m.model.kinds)) for m in map(jm.Checkpoint, models))
        whole = hops_of([(a, 0, depth)])
        # A token starts in A's first layer and leaves by its last: these two are neither dropped nor taken from B.
        stacks = [
            hops_of([(a, 0, i), (b, j, k), (a, m, depth)])
            for i in range(1, depth + 1)
            for j in range(other)
            for k in range(j + 1, other + 1)
            for m in range(1, depth)
        ]
        return {
            "one layer dropped": self.best_of(models, [whole[:i] + whole[i + 1 :] for i in range(1, depth - 1)]),
            "one layer repeated": self.best_of(models, [whole[: i + 1] + whole[i:] for i in range(depth)]),
            "stacked": self.best_of(models, stacks),
        }

    def unscaled(self, run: Path) -> dict[str, Any]:
        """The path of a finished run with all scales 1."""
        config = jm.read_run(run / "config.yaml")
        assert config.path is not None
        problem = PathProblem(config.path, config.search.sigma)
        lines = (run / "best" / "path.txt").read_text().splitlines()
        layers = (line.split()[0].split(":") for line in lines)
        genome = encode(problem.space, [Hop(model, int(layer)) for model, layer in layers])
        with tempfile.TemporaryDirectory() as folder:
            problem.export(genome, Path(folder) / "m")
            return self.folder(Path(folder) / "m")


def written(hops: Iterable[Hop]) -> str:
    return " ".join(f"{h.model}:{h.layer}" for h in hops)


def path_of(run: Path) -> str:
    """ "addition:0*0.98 addition:1*0.99 ...", the hops of a finished run and their scales."""
    lines = (line.split() for line in (run / "best" / "path.txt").read_text().splitlines())
    return " ".join(f"{layer}*{float(scale):.2f}" for layer, scale in lines)


def evolved(config: RunConfig | StagedConfig, run: Path) -> None:
    """Run an arm, unless that was done; go on if it was begun."""
    if not (run / "result.json").exists():
        jm.evolve(config, output=run, resume=(run / "config.yaml").exists())


def results_of(bench: Bench, run: Path) -> dict[str, Any]:
    found = bench.folder(run / "best") | {k: known(run / "result.json", k) for k in ("evaluations", "seconds")}
    if (run / "best" / "path.txt").exists():
        found |= {"path": path_of(run), "scales of 1": bench.unscaled(run)}
    return found


def main() -> None:
    args = make_parser(__doc__, __file__, work=True, seeds=4, table=True).parse_args()
    if not args.table:
        measure(args.output, args.work, args.seeds)
    print_tables(known(args.output))


def measure(output: Path, work: Path, seeds: int) -> None:
    bench = Bench()
    if known(output, "parents") is None:
        record(output, {name: bench.folder(MODELS / name) for name in PARENTS}, "parents")
    if known(output, "by hand", "addition") is None:
        record(output, bench.by_hand([MODELS / "addition", MODELS / "japanese"]), "by hand", "addition")
    for seed in range(seeds):
        for name, config in configs(seed).items():
            run, where = work / f"{name} {seed}", ("seeds", str(seed))
            if known(output, *where, name) is not None:
                continue
            evolved(config, run)
            if name == "both":
                record(output, results_of(bench, run / "weights"), *where, "first stage")
                by_hand = bench.by_hand([run / "weights" / "best", MODELS / "japanese"])
                record(output, by_hand, *where, "by hand")
            record(output, results_of(bench, run / "flow" if name == "both" else run), *where, name)


# --- tables -------------------------------------------------------------------------------------------------


def interval(bits: list[list[str]], others: list[list[str]] | None = None, draws: int = 10000) -> str:
    """Mean of the seeds in per cent and a 95 % bootstrap interval over seeds and problems; of a difference, paired."""
    solved = np.array([[int(b) for b in "".join(row)] for row in bits], float)
    if others is not None:
        solved = solved - np.array([[int(b) for b in "".join(row)] for row in others], float)
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(solved), size=(draws, len(solved)))
    problems = rng.multinomial(solved.shape[1], np.full(solved.shape[1], 1 / solved.shape[1]), size=draws)
    means = np.einsum("dp,dp->d", solved[seeds].mean(axis=1), problems) / solved.shape[1]
    low, high = np.quantile(100 * means, [0.025, 0.975])
    return f"{100 * solved.mean():.1f} | {low:.1f} to {high:.1f}"


def print_tables(results: dict[str, Any]) -> None:
    """Markdown of everything the README quotes."""
    seeds = [s for s in results["seeds"].values() if len(s) == len(configs(0)) + 2]
    print(f"{len(seeds)} seeds\n\n| model | search | held-out | 95 % |\n|---|---:|---:|---|")

    def row(label: str, cells: list[dict[str, Any]], others: list[dict[str, Any]] | None = None) -> None:
        bits = [[c["bits"]] for c in cells]
        shown = interval(bits, None if others is None else [[c["bits"]] for c in others])
        searched = np.mean([c["search"] for c in cells])
        if others is not None:
            searched -= np.mean([c["search"] for c in others])
        print(f"| {label} | {searched:.1f} | {shown} |")

    for name, cell in results["parents"].items():
        row(name, [cell])
    for name, cell in results["by hand"]["addition"].items():
        row(f"addition, {name}, best of {cell['candidates']}", [cell])
    for name in ("alone", "alone, japanese first"):
        row(name, [s[name] for s in seeds])
        row(f"{name}, scales of 1", [s[name]["scales of 1"] for s in seeds])
    row("weights, first stage", [s["first stage"] for s in seeds])
    for name in ("one layer dropped", "one layer repeated", "stacked"):
        row(f"first stage, {name}", [s["by hand"][name] for s in seeds])
    row("weights, as many evaluations as both", [s["weights"] for s in seeds])
    row("both", [s["both"] for s in seeds])
    row("both, scales of 1", [s["both"]["scales of 1"] for s in seeds])
    print("\n| difference | search | held-out | 95 % |\n|---|---:|---:|---|")
    first, both = [s["first stage"] for s in seeds], [s["both"] for s in seeds]
    row("both - first stage", both, first)
    row("both - weights, equal evaluations", both, [s["weights"] for s in seeds])
    row("both, scales of 1 - both", [s["both"]["scales of 1"] for s in seeds], both)
    alone = [s["alone"] for s in seeds]
    row("alone - addition", alone, [results["parents"]["addition"]] * len(seeds))
    row("alone - best stack by hand", alone, [results["by hand"]["addition"]["stacked"]] * len(seeds))
    row("alone, scales of 1 - alone", [s["alone"]["scales of 1"] for s in seeds], alone)
    print("\npaths")
    for seed, s in results["seeds"].items():
        for name in ("alone", "alone, japanese first", "both"):
            if name in s:
                print(f"- seed {seed}, {name}: {s[name]['path']}")


if __name__ == "__main__":
    main()
