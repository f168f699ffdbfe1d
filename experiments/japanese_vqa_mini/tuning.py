"""Fine-tuning on the questions that evolution searches on, for the compute that evolution has."""

import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import generate
import numpy as np
import pyarrow.parquet as pq
import train
from PIL import Image

import jevomerge as jm
from jevomerge.models.vision.specs import TEXT

EVALUATIONS = 300  # whose compute is spent
RATES = (1e-4, 3e-4, 1e-3)
ROWS = 32  # of a step
LENGTH = 32  # tokens of a picture, a question and its answer
STEPS = EVALUATIONS * generate.COUNTS["search"] // (3 * ROWS)  # a step's backward pass costs two forward ones


def batches(rows: Sequence[int], steps: int, seed: int) -> Iterator[train.Batches]:
    """Questions `rows` of the search file, epoch after epoch."""
    table = pq.read_table(generate.DATA / "search.parquet").to_pylist()
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in table])
    packed = train.pack([generate.Document(None, None, [(r["question"], (r["answer"],))]) for r in table], LENGTH)
    rng, order = Random(seed), list[int]()
    for start in range(0, steps, train.AT_ONCE):
        count = min(train.AT_ONCE, steps - start) * ROWS
        while len(order) < count:
            order += rng.sample(list(rows), len(rows))
        chosen, order = order[:count], order[count:]
        yield train.Batches(*(x[chosen].reshape(-1, ROWS, *x.shape[1:]) for x in (*packed, pictures)))


def tune(start: Path, rows: Sequence[int], rate: float, share: float, seed: int, out: Path) -> None:
    """Train what evolution may change, the decoder; writes the model."""
    steps = max(1, round(share * STEPS))
    run = train.Run(steps, rate, ((TEXT, 1),), 0)
    params = train.load(start, sees=True)
    made = train.fit(
        f"{start.name}, {rate:g}", run, train.reading(train.SEEING.text), params, batches(rows, steps, seed)
    )
    train.write(out, made, f"`{start.name}`, fine-tuned on {len(rows)} questions of the search file.")


def choose(start: Path, task: Path) -> dict[str, Any]:
    """The rate and length with which most of a quarter of the questions are answered, after training on the others.

    Each rate for an eighth of the time, then the best of them for the whole time; ties go to the earlier trial.
    """
    count = generate.COUNTS["search"]
    order = Random(0).sample(range(count), count)
    kept, rest = order[: count * 3 // 4], order[count * 3 // 4 :]
    trials: list[dict[str, float]] = []
    began = time.perf_counter()

    def best() -> dict[str, float]:
        return max(trials, key=lambda t: t["validation"])

    def trial(rate: float, share: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tune(start, kept, rate, share, 0, out := Path(folder) / "tuned")
            [right] = jm.evaluate(out, task, "search")["examples"].values()
        trials.append(
            {"rate": rate, "share": share, "validation": round(100 * float(np.mean(np.array(right)[rest])), 2)}
        )

    for rate in RATES:
        trial(rate, 1 / 8)
    trial(best()["rate"], 1)
    seconds = round(time.perf_counter() - began, 1)
    return {"trials": trials, "best": [best()["rate"], best()["share"]], "seconds": seconds}


def tuned(start: Path, choice: dict[str, Any], seed: int, out: Path) -> dict[str, Any]:
    """Write the model trained on the whole search file with the rate and length chosen; says what that cost."""
    rate, share = choice["best"]
    began = time.perf_counter()
    if not out.exists():
        tune(start, range(generate.COUNTS["search"]), rate, share, seed, out)
    return {"evaluations": round(share * EVALUATIONS, 1), "seconds": round(time.perf_counter() - began, 1)}
