"""What racing saves.  `python experiments/bench_racing/run.py`; README.md says what came out.

On the quickstart (its models and task, searched by SNES) and on the landscapes with a planted path of
data_flow_strategies, where a candidate solves k of 100 items: which ones is drawn at random.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jevomerge.config import read_run
from jevomerge.console import Terminal
from jevomerge.evolve.archive import read_archive
from jevomerge.evolve.paths import make_path_strategy
from jevomerge.evolve.run import evolve
from jevomerge.fitness.racing import PIECES, upper_bound
from jevomerge.genome.path import PathSpace

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "data_flow_strategies"))
from landscape import Landscape  # noqa: E402

RULES = (None, "exact", "hoeffding")
OUT = HERE / "results.json"


def quickstart(rule: Any, seed: int) -> dict[str, Any]:
    """A run of the quickstart with SNES."""
    config = read_run(HERE.parents[1] / "configs" / "quickstart.yaml")
    search = config.search.model_copy(update={"strategy": "snes", "racing": rule, "population": 20})
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = evolve(config.model_copy(update={"search": search, "seed": seed}), run, Terminal())
        records = read_archive(run / "evaluations.jsonl")
    total = sum(len(r["scores"]["japanese_math"]) for r in records)
    scored = sum(r.get("stopped", len(r["scores"]["japanese_math"])) for r in records)
    return {
        "examples_scored": round(scored / total, 4),
        **{split: round(100 * result["best"][split], 2) for split in ("search", "heldout")},
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
                    bound = upper_bound(solved, inside, np.zeros(items), 1.0, rule).item()
                    if bound < cut:
                        score = bound
                        break
            scored, total = scored + int(seen), total + items
            fitness.append(score)
        best = max(best, *(f for f in fitness))
        state = strategy.tell(keys[1], state, population, fitness)
    return {"examples_scored": round(scored / total, 4), "best": round(best, 2)}


def main() -> None:
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name, search, seeds in (("planted", planted, range(3)), ("quickstart", quickstart, range(1))):
        for seed in seeds:
            for rule in RULES:
                runs = results.setdefault(name, {}).setdefault(str(rule), {})
                if str(seed) not in runs:
                    runs[str(seed)] = search(rule, seed)
                    print(name, rule, seed, runs[str(seed)], flush=True)
                    OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
