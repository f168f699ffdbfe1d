"""What racing saves; README.md says what came out.

    python experiments/bench_racing/run.py [PART ...]       # results.json, ten minutes; goes on where it was stopped

On the quickstart (its models and task, searched by SNES) and on the landscapes with a planted path of
data_flow_strategies, where a candidate solves k of 100 items: which ones is drawn at random.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from arguments import known, make_parser, record
from landscape import Landscape

import jevomerge as jm
from jevomerge.fitness.racing import PIECES, upper_bound
from jevomerge.genome.route import PathSpace
from jevomerge.search.archive import read_archive
from jevomerge.strategies.paths import make_path_strategy

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
RULES = (None, "exact", "hoeffding")


def quickstart(rule: Any, seed: int) -> dict[str, Any]:
    """A run of the quickstart with SNES."""
    config = jm.read_run(QUICKSTART)
    search = config.search.model_copy(update={"strategy": "snes", "racing": rule, "population": 20})
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = jm.evolve(config.model_copy(update={"search": search, "seed": seed}), output=run)
        records = read_archive(run / "evaluations.jsonl")
    total = sum(len(r["scores"]["japanese_math"]) for r in records)
    scored = sum(r.get("stopped", len(r["scores"]["japanese_math"])) for r in records)
    return {
        "examples_scored": round(scored / total, 4),
        **{split: round(100 * result.scores["best"][split], 2) for split in ("search", "heldout")},
    }


def planted(rule: Any, seed: int) -> dict[str, Any]:
    """A search for a planted path through M = 32 layers by `mixed`, 100 items in pieces, one candidate at a time."""
    space, size, items = PathSpace(("a", "b"), (16, 16), 2), 32, 100
    strategy, landscape, key = make_path_strategy("mixed", space, size), Landscape(space, seed), jax.random.key(seed)
    state, rng, best, scored, total = strategy.init(key), np.random.default_rng(seed), 0.0, 0, 0
    for generation in range(100):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        population, state = strategy.ask(keys[0], state)
        fitness: list[float] = []
        for share in landscape(population):
            solved = (rng.permutation(items) < round(share * items)).astype(float)[None]
            cut = sorted(fitness, reverse=True)[strategy.elite - 1] if len(fitness) >= strategy.elite else -1
            score = float(solved.mean())
            for seen in np.linspace(0, items, PIECES + 1).astype(int)[1:]:
                if rule is not None and seen < items:
                    inside = np.arange(items) < seen
                    bound = upper_bound(solved, inside, np.zeros(items), (0.0, 1.0), rule).item()
                    if bound < cut:
                        score = bound
                        break
            scored, total = scored + int(seen), total + items
            fitness.append(score)
        best = max(best, *(f for f in fitness))
        state = strategy.tell(keys[1], state, population, fitness)
    return {"examples_scored": round(scored / total, 4), "best": round(best, 2)}


PARTS = {"planted": (planted, 3), "quickstart": (quickstart, 1)}


def main() -> None:
    args = make_parser(__doc__, __file__, seeds="3 of planted, 1 of quickstart", parts=PARTS).parse_args()
    for part in args.parts:
        search, seeds = PARTS[part]
        for seed in range(args.seeds or seeds):
            for rule in RULES:
                keys = part, str(rule), str(seed)
                if known(args.output, *keys) is None:
                    record(args.output, search(rule, seed), *keys)
                    print(*keys, known(args.output, *keys), flush=True)


if __name__ == "__main__":
    main()
