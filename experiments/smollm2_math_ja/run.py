"""Judges the base, both fine-tunes, the usual merges and the evolved ones; writes results.json as it goes.

python experiments/smollm2_math_ja/train.py --data DATA --smollm2 FOLDER    # first
python experiments/smollm2_math_ja/run.py                                   # goes on where it was stopped
"""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
import yaml
from arguments import known, make_parser, record
from judging import Choices, Heldout, estimate

import jevomerge as jm
from jevomerge.config import RunConfig
from jevomerge.models.layers import Params
from jevomerge.recipe.schema import Recipe
from jevomerge.tokenizers.load import load_tokenizer

ARMS = {"evolved, whole model": "whole_model", "evolved, layer groups": "layer_groups"}
GRID = (0.5, 0.8, 1.1)
BEST_OF_GRID = "task arithmetic (best of grid)"
LM_EVAL_QUESTIONS = 32  # the first ones: it reads the prompt again for each choice
LM_EVAL = (*ARMS, "japanese", "base", "math")


def recipe(method: str, weights: tuple[float, float] | None = None, **parameters: Any) -> Recipe:
    """A merge of both fine-tunes, with mergekit's semantics."""
    models = [{"model": str(common.WORK / name)} for name in ("math", "japanese")]
    for model, weight in zip(models, weights or (), strict=False):
        model |= {"parameters": {"weight": weight}}
    about = {"merge_method": method, "models": models, "parameters": parameters, "dtype": "float32"}
    if method == "slerp":
        about["base_model"] = models[0]["model"]
    elif method != "linear":
        about["base_model"] = str(common.WORK / "base")
    return jm.read_recipe(about)


# What papers and mergekit's examples recommend.
USUAL = {
    "average": lambda: recipe("linear", (0.5, 0.5)),
    "SLERP (t 0.5)": lambda: recipe("slerp", t=0.5),
    "TIES (weight 0.5, density 0.5)": lambda: recipe("ties", (0.5, 0.5), density=0.5),
    "TIES (weight 1, density 0.2)": lambda: recipe("ties", (1, 1), density=0.2),
    "DARE-TIES (weight 0.5, density 0.5)": lambda: recipe("dare_ties", (0.5, 0.5), density=0.5),
    "task arithmetic (1 + 1)": lambda: recipe("task_arithmetic", (1, 1)),
}


def merged(recipe: Recipe) -> Params:
    """The merge of a recipe, in memory."""
    sources = jm.Sources(recipe)
    merge = jm.Merge(sources.method, sources.dtype)
    bank = jm.make_bank(merge, sources.specs, *sources.load(), sources.keys())
    return jax.jit(partial(jm.build, merge))(bank, sources.coefficients)


def search_config(arm: str) -> RunConfig:
    """The config of a search."""
    return jm.read_run(common.HERE / f"{arm}.yaml")


class Searched:
    """The search split, for what is not evolved but chosen by it."""

    def __init__(self, config: RunConfig):
        """Read the data."""
        model = jm.Checkpoint(common.WORK / "base")
        ready = jm.make_ready(config.tasks, load_tokenizer(model.folder), model.model)
        self.judge = jm.make_judge(ready, model.model, splits=["search"])

    def __call__(self, params: Params) -> float:
        """The fitness, as a search sees it."""
        return self.judge.fitness(self.judge.model(params, "search"))[0]


def models(searched: Searched, output: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(name, callable that makes its parameters, what more to record) of every model but the evolved ones."""
    for name in ("base", "math", "japanese"):
        yield name, jm.Checkpoint(common.WORK / name).load, {}
    for name, make in USUAL.items():
        yield name, lambda make=make: merged(make()), {}
    weights, about = best_of_grid(searched, output)
    yield BEST_OF_GRID, lambda: merged(recipe("task_arithmetic", weights)), about


def best_of_grid(searched: Searched, output: Path) -> tuple[tuple[float, float], dict[str, Any]]:
    """The weights that are best on the search split, and what finding them took."""
    for first in GRID:
        for second in GRID:
            name = f"{first} {second}"
            if known(output, "grid", name) is None:
                start = time.monotonic()
                score = searched(merged(recipe("task_arithmetic", (first, second))))
                seconds = round(time.monotonic() - start, 1)
                record(output, {"search": round(score, 4), "seconds": seconds}, "grid", name)
    grid = known(output, "grid")
    best = max(grid, key=lambda name: grid[name]["search"])
    first, second = map(float, best.split())
    about = {
        "genome": {"math": first, "japanese": second},
        "evaluations": len(grid),
        "search seconds": round(sum(x["seconds"] for x in grid.values()), 1),
    }
    return (first, second), about


def folder_of(arm: str, seed: int) -> Path:
    """Where a search is."""
    return common.WORK / (f"{arm}_seed_{seed}" if seed else arm)


def own_name(name: str, seed: int) -> str:
    """What results.json calls a search."""
    return f"{name}, seed {seed}" if seed else name


def evolved(arm: str, seed: int) -> dict[str, Any]:
    """Run a search, or what is left of it; what it found."""
    folder = folder_of(arm, seed)
    if not (folder / "result.json").exists():
        config = search_config(arm).model_copy(update={"seed": seed})
        jm.evolve(config, output=folder, resume=folder.exists())
    result = json.loads((folder / "result.json").read_text())
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    best = [json.loads(line)["fitness"] for line in lines]
    return {
        "genome": {name: round(value, 3) for name, value in result["best"]["genome"].items()},
        "evaluations": result["evaluations"],
        "best at": result["best"]["evaluation"],
        "best by evaluations": {str(n): round(max(best[:n]), 4) for n in range(6, len(best) + 1, 6)},
        "search seconds": result["seconds"],
    }


def check(heldout: Heldout, params: Params) -> dict[str, Any]:
    """The five-way likelihoods are those that the project's own judge finds, one prompt and answer at a time."""
    task = next(t for t in search_config("whole_model").tasks if t.name == common.JCQA)
    judge = jm.make_judge(jm.make_ready([task], heldout.tokenizer, heldout.model), heldout.model, splits=["heldout"])
    other = judge.model(params, "heldout").fitness[common.JCQA]
    first = Choices(*(x[: len(other)] for x in heldout.choices))
    ours = heldout.five_ways(params, first).sum(-1) / first.choices_valid.sum(-1)
    difference = float(np.max(np.abs(ours[np.arange(len(other)), first.labels] - other)))
    assert difference < 1e-3, difference
    return {"largest difference": difference, "examples": len(other)}


def differences(output: Path, seeds: Sequence[int]) -> None:
    """Each search against the usual merges and against the other of its seed, on the same examples."""
    found = known(output, "models") | (known(output, "seeds") or {})

    def values(name: str) -> dict[str, np.ndarray]:
        examples = found[name]["examples"]
        right = np.array([100.0 * int(x) for x in examples["right"]])
        return {"gsm8k": np.array(examples["gsm8k"]), common.JCQA: np.array(examples[common.JCQA]), "accuracy": right}

    for seed in seeds:
        arms = [own_name(name, seed) for name in ARMS]
        for arm, other in itertools.product(arms, ("average", "task arithmetic (1 + 1)", BEST_OF_GRID, *arms)):
            if arm != other and arm in found and other in found:
                ours, theirs = values(arm), values(other)
                differ = {k: ours[k] - theirs[k] for k in ours}
                both = estimate(differ["gsm8k"], differ[common.JCQA])
                estimates = {**{k: estimate(x) for k, x in differ.items()}, "mean of both tasks": both}
                record(output, estimates, "differences", f"{arm} - {other}")


def lm_eval_score(folder: Path, ours: str) -> dict[str, Any]:
    """lm-evaluation-harness's own score of a model folder, with its transformers backend.

    `ours`: which questions the model has right by the same rule, by this project's forward pass in float32.
    """
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    task = yaml.safe_load((common.HERE / "lm_eval_jcommonsenseqa.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["test"] = str(common.WORK / "data" / f"{common.JCQA}_heldout.jsonl")
    where = common.WORK / "lm_eval"
    where.mkdir(exist_ok=True)
    (where / "jcommonsenseqa.yaml").write_text(yaml.safe_dump(task, allow_unicode=True))
    start = time.monotonic()
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "bfloat16"},  # which takes a quarter of the time here
        tasks=[task["task"]],
        task_manager=TaskManager(include_path=str(where), include_defaults=False),
        batch_size=25,
        device="cpu",
        limit=LM_EVAL_QUESTIONS,
    )
    scores = found["results"][task["task"]]
    return {
        **{k: round(100 * scores[f"{k},none"], 1) for k in ("acc", "acc_norm")},
        "standard error": round(100 * scores["acc_stderr,none"], 1),
        "ours": round(100 * np.mean([int(x) for x in ours[:LM_EVAL_QUESTIONS]]), 1),
        "examples": found["n-samples"][task["task"]]["effective"],
        "seconds": round(time.monotonic() - start, 1),
    }


def table(results: dict[str, Any]) -> str:
    """The table of README.md."""
    lines = [
        "| model | GSM8K | JCommonsenseQA | accuracy, % | lm-eval acc, % | weights math / japanese | evaluations, s |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for name, found in sorted(results.get("models", {}).items(), key=lambda item: item[0] in ARMS):
        scores = [f"{x:.3f} [{low:.3f}, {high:.3f}]" for x, low, high in (found["gsm8k"], found[common.JCQA])]
        accuracy, low, high = found["accuracy"]
        harness = results.get("lm_eval", {}).get(name, {}).get("acc", "")
        genes = {k: v for k, v in found.get("genome", {}).items() if k.split("/")[0] not in ("embedding", "head")}
        both = [" ".join(f"{v:.2f}" for k, v in genes.items() if source in k) for source in ("math", "japanese")]
        genome = " / ".join(filter(None, both))
        cost = f"{found['evaluations']}, {found['search seconds']:.0f}" if "evaluations" in found else ""
        cells = [name, *scores, f"{accuracy:.1f} [{low:.1f}, {high:.1f}]", str(harness), genome, cost]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds_table(results: dict[str, Any], seeds: Sequence[int]) -> str:
    """The second table of README.md: mean [lowest, highest] over the seeds that were run."""
    grid = results["models"][BEST_OF_GRID]
    lines = [
        "| search | seeds | fitness | GSM8K | JCommonsenseQA | mean of both | over the best of the grid |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ARMS:
        found = results["models"] | results.get("seeds", {})
        runs = [found[own_name(name, seed)] for seed in seeds if own_name(name, seed) in found]
        tasks = np.array([[np.mean(run["examples"][task]) for task in (common.GSM8K, common.JCQA)] for run in runs])
        usual = np.mean([np.mean(grid["examples"][task]) for task in (common.GSM8K, common.JCQA)])
        fitness = np.array([list(run["best by evaluations"].values())[-1] for run in runs])
        columns = [fitness, *tasks.T, tasks.mean(axis=1), tasks.mean(axis=1) - usual]
        cells = [f"{x.mean():.3f} [{x.min():.3f}, {x.max():.3f}]" for x in columns]
        lines.append(f"| {' | '.join([name, str(len(runs)), *cells])} |")
    return "\n".join(lines)


def main() -> None:
    args = make_parser(__doc__, __file__, seeds=2).parse_args()
    seeds, base = range(args.seeds), jm.Checkpoint(common.WORK / "base")  # the first seed is that of the table
    heldout = Heldout(load_tokenizer(base.folder), base.model)
    searched = Searched(search_config("whole_model"))
    if known(args.output, "check") is None:
        record(args.output, check(heldout, base.load()), "check", "five ways against the judge")

    def judge(section: str, name: str, params: Params, about: dict[str, Any]) -> None:
        scores = heldout(params)
        print(name, {k: v for k, v in scores.items() if k != "examples"}, flush=True)
        record(args.output, {**about, **scores}, section, name)

    for seed in seeds:  # the searches first: what the time is for
        for name, arm in ARMS.items():
            section, own = "seeds" if seed else "models", own_name(name, seed)
            if known(args.output, section, own) is None:
                about = evolved(arm, seed)
                judge(section, own, jm.Checkpoint(folder_of(arm, seed) / "best").load(), about)
    for name, make, about in models(searched, args.output):
        if known(args.output, "models", name) is None:
            judge("models", name, make(), about)
    differences(args.output, seeds)
    for name in LM_EVAL:
        if known(args.output, "lm_eval", name) is None:
            folder = common.WORK / (f"{ARMS[name]}/best" if name in ARMS else name)
            right = known(args.output, "models", name, "examples", "right by lm-eval's rule")
            record(args.output, lm_eval_score(folder, right), "lm_eval", name)
    print(table(known(args.output)), seeds_table(known(args.output), seeds), sep="\n\n")


if __name__ == "__main__":
    main()
