"""What a path through a model's blocks costs, and how exactly it folds into an ordinary model.

python experiments/bench_path/run.py --smollm2 FOLDER     # about four minutes; writes results.json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer

from jevomerge import models
from jevomerge.checkpoint import Checkpoint
from jevomerge.checkpoint.fold import Stack, fold
from jevomerge.checkpoint.specs import flatten, unflatten
from jevomerge.models import apply, unembed

HERE = Path(__file__).parent
MINIATURES = HERE.parent / "japanese_math_mini" / "models"
HOPS, SLOTS = (20, 40, 80, 160), 160
SCALES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, -0.5, 0.9, 1.1, 2.0, 10.0, 100.0)


def taking_turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of processor time of each: the machine may have other work."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            began = time.process_time()
            jax.block_until_ready(run())
            if turn:
                times[name].append(time.process_time() - began)
    return {name: statistics.median(t) for name, t in times.items()}


def cost(stack: Stack, shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Seconds and temporary memory of a forward pass by the number of hops, without and with spare slots."""
    config, params = stack.config, stack.load()
    blocks = config.num_hidden_layers
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, shape, dtype=np.int32)
    valid = np.ones(shape, bool)
    paths: dict[str, models.Path | None] = {
        str(n): models.Path.of([t % blocks for t in range(n)]) for n in (*HOPS, blocks)
    }
    paths[f"{HOPS[0]} in {SLOTS} slots"] = models.Path.of([t % blocks for t in range(HOPS[0])], slots=SLOTS)
    paths[f"plain, {blocks} layers"] = None
    work, temporaries = {}, {}
    for name, path in paths.items():
        run = jax.jit(lambda params, path: apply(params, config, tokens, valid, path=path)[0])
        compiled = run.lower(params, path).compile()
        temporaries[name] = compiled.memory_analysis().temp_size_in_bytes / 1e6
        work[name] = lambda compiled=compiled, path=path: compiled(params, path)
    seconds = taking_turns(work, rounds)
    return {name: {"seconds": seconds[name], "temporaries_mb": temporaries[name]} for name in paths}


def folding_error(stack: Stack, shape: tuple[int, int]) -> dict[str, Any]:
    """How far the model that a path folds into is from the path, in standard deviations of the logits.

    The largest error by the one scale that is not 1 (early, in the middle, late), all in float32.  Then with every
    scale drawn: root mean square, largest error and share of equal greedy tokens, for the folded weights in float32
    and bfloat16, and, to compare with, for the path itself computed in bfloat16.
    """
    leaves = flatten(stack.load())
    first = stack.blocks[0][0]
    depth = first.config.num_hidden_layers
    text = (HERE.parents[1] / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(first.folder, model_max_length=10**6)
    tokens = np.asarray(tokenizer(text)["input_ids"][: shape[0] * shape[1]], np.int32).reshape(shape)
    run = jax.jit(apply, static_argnums=1, static_argnames="dtype")

    def logits(params: Any, config: Any, path: models.Path | None = None, dtype: Any = jnp.float32) -> np.ndarray:
        hidden, _ = run(params, config, tokens, np.ones(shape, bool), path=path, dtype=dtype)
        return np.asarray(unembed(params, config, hidden))

    def folded(path: models.Path, dtype: Any = jnp.float32) -> np.ndarray:
        folding = fold(stack.config, path)

        def leaf(p: str, x: Any) -> Any:
            if not p.startswith("layers."):
                return folding.tensor(p, None, x)
            return np.stack([folding.tensor(p, t, x[block]) for t, block in enumerate(folding.blocks)])

        params = {p: jnp.asarray(leaf(p, x)).astype(dtype) for p, x in leaves.items()}
        return logits(unflatten(params), folding.config)

    params, single = unflatten(leaves), {}
    for scale in SCALES:
        single[str(scale)] = row = []
        for hop in (1, depth // 2, depth - 1):
            path = models.Path.of(range(depth), [scale if t == hop else 1.0 for t in range(depth)])
            expected = logits(params, stack.config, path)
            row.append(float(np.abs(folded(path) - expected).max() / expected.std()))
        print("  scale", scale, [f"{e:.1e}" for e in row], flush=True)
    rng, drawn = np.random.default_rng(0), []
    for low, high in [(1.0, 1.0), (0.9, 1.1), (0.9, 1.1), (0.5, 1.5), (0.5, 1.5), (0.5, 1.5)]:
        path = models.Path.of(range(depth), rng.uniform(low, high, depth).tolist())
        expected = logits(params, stack.config, path)
        others = {
            "folded": folded(path),
            "folded, bfloat16 weights": folded(path, jnp.bfloat16),
            "path in bfloat16": logits(params, stack.config, path, jnp.bfloat16),
        }
        row = {"scales": [low, high]}
        for name, found in others.items():
            difference, same = (found - expected) / expected.std(), found.argmax(-1) == expected.argmax(-1)
            sizes = np.sqrt(np.mean(difference**2)), np.abs(difference).max(), same.mean()
            row[name] = dict(zip(("rms", "max", "same_token"), map(float, sizes), strict=True))
        print(" ", row, flush=True)
        drawn.append(row)
    return {"one_scale": single, "all_scales": drawn}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M")
    smollm2 = parser.parse_args().smollm2
    stacks = {
        "miniature": Stack([Checkpoint(MINIATURES / n) for n in ("addition", "japanese", "mathematics")]),
        **({"SmolLM2-135M": Stack([Checkpoint(smollm2)])} if smollm2 else {}),
    }
    results: dict[str, Any] = {"jax": jax.__version__, "cores": os.cpu_count()}
    for name, stack in stacks.items():
        small = name == "miniature"
        shape, rounds = ((32, 64), 9) if small else ((2, 64), 3)
        print(name, flush=True)
        results[name] = {"tokens": shape, "cost": cost(stack, shape, rounds)}
        for key, row in results[name]["cost"].items():
            print(f"  {key}: {row['seconds']:.3f} s, {row['temporaries_mb']:.1f} MB", flush=True)
        results[name]["folding_error"] = folding_error(stack, (4, 64))
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
