"""The strategies of run.py on a real landscape: paths through the quickstart's `addition` and `japanese`.

    nice python experiments/data_flow_strategies/miniature.py      # half an hour on two cores; continues where it was

Writes miniature.json: the search score of the best path so far after each generation, by strategy, start and seed.
"""

from pathlib import Path

import jax
import numpy as np
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.fitness.schema import Task
from jevomerge.genome.schema import PathSearch
from jevomerge.problems.path import PathProblem
from jevomerge.strategies.paths import make_path_strategy
from jevomerge.tokenizers.load import load_tokenizer

MINI = Path(__file__).parents[1] / "japanese_math_mini"
STRATEGIES = ("mixed", "path_program", "snes", "sep_cma_es", "random")
POPULATION, GENERATIONS, SIGMA, TARGET = 24, 20, 1 / 6, 0.19
FILES = {split: {"path": str(MINI / "data" / f"japanese_math_{split}.jsonl")} for split in ("search", "heldout")}
TASK = {"name": "japanese_math", "prompt": "{prompt}", "answer": "{answer}", "score": "match", **FILES}
MODELS = tuple(str(MINI / "models" / name) for name in ("addition", "japanese"))


def search(problem: PathProblem, judge: jm.Judge, name: str, seed: int) -> list[float]:
    """The best accuracy so far after each generation; likelihood breaks ties, as it does in a run."""
    strategy = make_path_strategy(name, problem.space, POPULATION, problem.mean, SIGMA)
    candidates, key = problem.load(judge.mesh), jax.random.key(seed)
    state, best = strategy.init(key), list[float]()
    for generation in range(GENERATIONS):
        keys = jax.random.split(jax.random.fold_in(key, generation), 2)
        population, state = strategy.ask(keys[0], state)
        scores = np.array([judge.fitness(s) for group in judge.members(candidates, population) for s in group])
        state = strategy.tell(keys[1], state, population, scores[:, 0], scores[:, 1])
        best.append(round(max([*best[-1:], float(scores[:, 0].max())]), 4))
    return best


def row(name: str, others_on: float, runs: list[list[float]]) -> str:
    """A line of the table: final scores, and evaluations to the target where it was reached."""
    final = [run[-1] for run in runs]
    reached = [
        POPULATION * (1 + next(i for i, x in enumerate(run) if x >= TARGET)) for run in runs if run[-1] >= TARGET
    ]
    cells = [f"{others_on:g}", name, f"{np.median(final):.3f}", f"{min(final):.3f} to {max(final):.3f}"]
    return f"| {' | '.join(cells)} | {len(reached)} of {len(runs)} | {np.median(reached) if reached else '':} |"


def main() -> None:
    args = make_parser(__doc__, __file__, "miniature.json", seeds=5).parse_args()
    judge = None
    for others_on in (0.1, 0.5):
        problem = PathProblem(PathSearch(models=MODELS, repeats=2, others_on=others_on), SIGMA)
        for name in STRATEGIES:
            for seed in range(args.seeds):
                keys = f"{others_on:g} {name}", str(seed)
                if known(args.output, *keys) is None:
                    tasks = jm.make_ready([Task.model_validate(TASK)], load_tokenizer(Path(MODELS[0])), problem.model)
                    judge = judge or jm.make_judge(tasks, problem.model)
                    record(args.output, search(problem, judge, name, seed), *keys)
                    print(others_on, name, seed, known(args.output, *keys)[-1], flush=True)
    for key, runs in known(args.output).items():
        others_on, name = key.split()
        print(row(name, float(others_on), list(runs.values())))


if __name__ == "__main__":
    main()
