"""The models of run.py on held-out problems that were drawn when most of them were made: twice as many.

    python experiments/japanese_math_gemma/fresh.py            # after run.py; fresh.json, goes on where it was stopped
    python experiments/japanese_math_gemma/fresh.py --table    # its tables

The 96 held-out problems of run.py had been seen, as scores, by whoever redesigned the sources; nobody had seen these.
"""

import json
import time
from typing import Any

import common
import numpy as np
import run
import stories
from arguments import known, make_parser, record
from table import DIFFERENCES, in_order
from tables import differences, for_every_seed, interval, solved

import jevomerge as jm
from jevomerge.checkpoint.files import write_atomically
from jevomerge.fitness.schema import Task
from jevomerge.tokenizers.load import load_tokenizer

COUNT = 192  # even ones of one step, odd ones of two
SEEN = common.SIZES["heldout"]
TUNED = tuple(f"fine-tuned {name}" for name in run.TUNED)
ROWS = ("japanese", "task arithmetic (weight 1)", *TUNED, *run.SEARCHED)  # of usual merges the best


def drawn() -> tuple[list[dict[str, Any]], list[bool]]:
    """The problems, and of each whether its kind and numbers are those of no problem of run.py."""
    every = stories.questions(SEEN + COUNT, "heldout")
    known = {(row["kind"], row["answer"]) for row in every[:SEEN]}
    return every[SEEN:], [(row["kind"], row["answer"]) not in known for row in every[SEEN:]]


def print_tables(cells: dict[str, dict[str, Any]]) -> None:
    new = np.array(drawn()[1])
    print(f"| model | seeds | solved | 95 % | of one step | of two | of {new.sum()} with other numbers |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for name, by_seed in in_order(cells).items():
        bits = solved(by_seed)
        mean, low, high = interval(bits)
        parts = [100 * bits[:, which].mean() for which in (slice(0, None, 2), slice(1, None, 2), new)]
        shown = " | ".join([f"{mean:.1f}", f"{low:.1f} to {high:.1f}", *(f"{part:.1f}" for part in parts)])
        print(f"| {name} | {len(by_seed)} | {shown} |")
    print("\n| difference | points | 95 % |\n|---|---:|---|")
    for one, other, seeds, (mean, low, high) in differences(for_every_seed(cells, ["japanese"]), DIFFERENCES):
        print(f"| {one} - {other} ({seeds} seeds) | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")


def main() -> None:
    args = make_parser(__doc__, __file__, output="fresh.json", work=True, table=True).parse_args()
    if not args.table:
        work = args.work.resolve()
        file = work / "fresh.jsonl"
        write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in drawn()[0]))
        task = Task.model_validate(common.task(work) | {"heldout": str(file)})
        tokenizer, model = load_tokenizer(work / "base"), jm.Checkpoint(work / "base").model
        judge = jm.make_judge(jm.make_ready([task], tokenizer, model), model)
        measured = known(common.HERE / "results.json", "cells")
        for name, seed in ((row, s) for row in ROWS for s in measured.get(row, ())):
            if known(args.output, name, seed) is None:
                params = jm.Checkpoint(run.folder_of(work, name, seed)).load()
                right = judge.model(params, "heldout").fitness[task.name]
                record(args.output, {"bits": "".join(str(int(v)) for v in right)}, name, seed)
                print(time.strftime("%H:%M:%S"), name, seed, f"{right.mean():.4f}", flush=True)
    print_tables(known(args.output))


if __name__ == "__main__":
    main()
