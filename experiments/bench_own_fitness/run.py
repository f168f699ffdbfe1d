"""What a fitness of one's own costs: our likelihood written by hand against the built-in one; README.md says more."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.config import read_run
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.schema import Task
from jevomerge.search.setup import problem_of

HERE = Path(__file__).parent
QUICKSTART = HERE.parents[1] / "configs" / "quickstart.yaml"
ANSWER = 24  # tokens: no answer of the quickstart's is longer
CANDIDATES = 12  # of each way in a round
BUILT_IN = "built in"


def likelihood(model: Any, params: Any, batch: Any) -> jax.Array:
    """(B,) mean log-probabilities of the answers, whose positions alone meet the vocabulary: as ours."""
    hidden, _ = jm.apply(params, model, batch.tokens[:, :-1], batch.valid[:, :-1])
    targets = batch.tokens[:, -ANSWER:]
    logits = jm.unembed(params, model, hidden[:, -ANSWER:])
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
    counted = jnp.arange(ANSWER)[None] >= ANSWER - batch.answer_length[:, None]
    return jnp.sum(jnp.where(counted, chosen, 0.0), axis=1) / jnp.maximum(batch.answer_length, 1)


def plainly(model: Any, params: Any, batch: Any) -> jax.Array:
    """The same in fewer lines: every position meets the vocabulary."""
    hidden, _ = jm.apply(params, model, batch.tokens[:, :-1], batch.valid[:, :-1])
    logs = jax.nn.log_softmax(jm.unembed(params, model, hidden))
    chosen = jnp.take_along_axis(logs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    length = batch.tokens.shape[1]
    counted = jnp.arange(1, length)[None] >= length - batch.answer_length[:, None]
    return jnp.sum(jnp.where(counted, chosen, 0.0), axis=1) / jnp.maximum(batch.answer_length, 1)


def scorers() -> tuple[dict[str, Callable[[np.ndarray], np.ndarray]], int]:
    """From genomes to fitnesses by each way, and how many genes there are."""
    config = read_run(QUICKSTART)
    problem = problem_of(config)
    candidates, tokenizer = problem.load(), problem.tokenizer()
    [task] = config.tasks
    data = {key: getattr(task, key) for key in ("search", "heldout", "prompt", "answer")}
    scores = {
        BUILT_IN: "likelihood",
        "by hand": {"function": likelihood, "of": "params"},
        "by hand, plainly": {"function": plainly, "of": "params"},
    }
    found = {}
    for name, score in scores.items():
        given = Task.model_validate({"name": "t", "score": score, **data})
        judge = make_judge(make_ready([given], tokenizer, problem.model), problem.model)

        def fitness(genomes: np.ndarray, judge: Any = judge) -> np.ndarray:
            return np.array([judge.fitness(s)[0] for group in judge.members(candidates, genomes) for s in group])

        found[name] = fitness
    return found, len(problem.names)


def measured(ways: dict[str, Callable[[np.ndarray], np.ndarray]], genes: int, seed: int) -> dict[str, Any]:
    """Seconds of the clock and of the processor that the same candidates take each way, in turns."""
    genomes = np.clip(np.random.default_rng(seed).normal(0.5, 1 / 6, (CANDIDATES, genes)), 0, 1)
    seconds, difference = {name: np.zeros(2) for name in ways}, 0.0
    for number, genome in enumerate(genomes):
        values = {}
        for name in ways if number % 2 else reversed(ways):
            began = time.perf_counter(), time.process_time()
            values[name] = ways[name](genome[None]).item()
            seconds[name] += (time.perf_counter() - began[0], time.process_time() - began[1])
        difference = max(difference, *(abs(v - values[BUILT_IN]) for v in values.values()))
    rounded = {name: np.round(taken, 4).tolist() for name, taken in seconds.items()}
    return {"seconds": rounded, "largest difference": difference, "load": round(os.getloadavg()[0], 1)}


def table(rounds: dict[str, Any]) -> None:
    """How fast each way is, as medians, lowest to highest."""
    times = {
        name: np.array([r["seconds"][name] for r in rounds.values()]) for name in next(iter(rounds.values()))["seconds"]
    }
    print(
        "| likelihood | candidates per second | as fast as built in, processor time | wall time |\n|---|---:|---:|---:|"
    )
    for name, own in times.items():
        ratios = times[BUILT_IN] / own
        cells = [f"{np.median(r):.2f} ({r.min():.2f} to {r.max():.2f})" for r in (ratios[:, 1], ratios[:, 0])]
        print(f"| {name} | {CANDIDATES / np.median(own[:, 0]):.2f} | {' | '.join(cells)} |")
    difference, load = (
        f([r[key] for r in rounds.values()]) for f, key in ((max, "largest difference"), (np.median, "load"))
    )
    print(f"\n{len(rounds)} rounds; the fitnesses differ by {difference:.1e} at most; median load {load:.1f}")


def main() -> None:
    args = make_parser(__doc__, __file__, seeds=31, table=True).parse_args()
    missing = [seed for seed in range(args.seeds) if known(args.output, str(seed)) is None]
    if missing and not args.table:
        ways, genes = scorers()
        measured(ways, genes, args.seeds)  # compiles
        for seed in missing:
            record(args.output, measured(ways, genes, seed), str(seed))
    table(known(args.output))


if __name__ == "__main__":
    main()
