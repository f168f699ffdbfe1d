"""Whether a device does what this machine's processor does, how fast, and in how much memory; README.md says more.

experiments/on_device/run.sh              # all parts, each in a process of its own
python experiments/on_device/run.py PART
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.config import replaced
from jevomerge.observers.observer import SILENT
from jevomerge.planning.measure import best_plan
from jevomerge.planning.standins import stand_in
from jevomerge.planning.timing import time_candidates
from jevomerge.search.setup import Setup, set_up

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
DEVICE = jax.devices()[0]
LARGE = DEVICE.platform != "cpu"
EVALUATIONS = 300 if LARGE else 30  # of the quickstart
ROWS = (1, 32, 256) if LARGE else (1, 4)  # texts at a time
PROMPT, NEW = (64, 128) if LARGE else (16, 8)  # tokens
BATCH = 128 if LARGE else 4  # texts of a candidate, where memory is measured
SIZES = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
SIZES = SIZES if LARGE else {k: v // 16 for k, v in SIZES.items()}
MODEL = SIZES | {
    "model_type": "llama", "vocab_size": 32000, "num_key_value_heads": max(1, SIZES["num_attention_heads"] // 4),
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = ("some/base", "some/one", "some/two")  # hollow: all weights are 0, no text ends


def hollow(work: Path, rows: int, memory: str = "device") -> Setup:
    """A search over three such models, each of whose candidates writes so many texts."""
    data = {"path": "some/rows", "split": "test"}
    task = {
        "name": "texts", "search": data | {"rows": [0, rows]}, "heldout": data | {"rows": [rows, rows + 1]},
        "prompt": "{q}", "answer": "{a}", "score": "generation", "extract": "last_number", "max_new_tokens": NEW,
    }  # fmt: skip
    recipe = {"merge_method": "task_arithmetic", "base_model": MODELS[0], "models": [{"model": m} for m in MODELS[1:]]}
    given = {
        "name": "on_device", "recipe": recipe | {"dtype": "bfloat16"}, "genome": {"weight": [0, 1]}, "tasks": [task],
        "search": {"evaluations": 8, "population": 4, "share": False}, "memory": memory,
        "compute_dtype": "bfloat16", "tokens_per_batch": rows * (PROMPT + NEW),
    }  # fmt: skip
    alike = [{"rows": rows + 1, "prompt": PROMPT, "answer": 1}]
    shape = {"config.json": MODEL, "tokens": MODEL["vocab_size"]}
    work.mkdir(parents=True)
    shapes = work / "on_device.shapes.json"
    shapes.write_text(json.dumps({"models": dict.fromkeys(MODELS, shape), "tasks": {"texts": alike}}))
    return set_up(stand_in(jm.read_config(given), shapes, work / "models"), [DEVICE])


def quickstart(work: Path) -> dict[str, Any]:
    """The README's first command."""
    config = jm.read_run(QUICKSTART)
    search = config.search.model_copy(update={"evaluations": EVALUATIONS})
    began = time.perf_counter()
    result = jm.evolve(replaced(config, search=search), output=work / "run", observer=SILENT)
    seconds, best = time.perf_counter() - began, result.values["best"]
    return {"evaluations": EVALUATIONS, "seconds": seconds, "search": best["search"], "heldout": best["heldout"]}


def scores(work: Path) -> dict[str, Any]:
    """The same candidates here and on the processor, with models in the memory of the host, and in eight bits."""
    config = jm.read_run(QUICKSTART)
    [task] = config.tasks
    both = [task, task.model_copy(update={"name": "likelihood", "score": "likelihood", "pattern": None})]
    config = replaced(config, tasks=both)

    def scored(devices: list[jax.Device], memory: str = "device") -> dict[str, np.ndarray]:
        setup = set_up(replaced(config, memory=memory), devices)
        genomes = np.random.default_rng(0).uniform(0.3, 0.7, (4, len(setup.problem.names)))
        found = [s for group in setup.judge.members(setup.load(), genomes) for s in group]
        return {name: np.array([s.fitness[name] for s in found], np.float64) for name in found[0].fitness}

    here = scored([DEVICE])
    others = {"processor": scored(jax.devices("cpu")[:1]), "host": scored([DEVICE], "host")}
    others["int8"] = scored([DEVICE], "int8")
    cell: dict[str, Any] = {"texts": here[task.name].size}
    for name, other in others.items():
        cell[f"{name}, texts judged otherwise"] = int((here[task.name] != other[task.name]).sum())
        cell[f"{name}, nats apart"] = float(np.abs(here["likelihood"] - other["likelihood"]).max())
    return cell


def tokens(work: Path) -> dict[str, Any]:
    """Tokens per second that one model writes, greedily."""
    cell = {}
    for rows in ROWS:
        setup = hollow(work / str(rows), rows)
        params = setup.problem.checkpoints[0].load(setup.mesh)
        seconds = []
        for _ in range(3):  # the first one compiles
            began = time.perf_counter()
            found = setup.judge.model(params, "search")
            seconds.append(time.perf_counter() - began)
        assert found.tokens.answer == rows * NEW
        cell[f"{rows} texts"] = rows * NEW / min(seconds[1:])
    return cell


def memory(work: Path, where: str) -> dict[str, Any]:
    """Planned and measured, and seconds for a candidate, with the models there."""
    setup = hollow(work / where, BATCH, where)
    planned = best_plan(setup, [DEVICE])
    timing = time_candidates(setup)
    stats = DEVICE.memory_stats() or {}  # a processor has none
    most = planned.sources + planned.prepared  # and what runs for candidates, which alone run here
    most += max((u.bytes for u in planned.uses if u.runs), default=0)
    cell = {"planned": most, "measured": stats.get("peak_bytes_in_use"), "planned on the host": planned.host}
    return cell | {"seconds for a candidate": timing.candidate, "before the second": timing.first}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {"quickstart": quickstart, "scores": scores, "tokens": tokens}
PARTS |= {where: partial(memory, where=where) for where in ("device", "host", "int8")}


def main() -> None:
    args = make_parser(__doc__, __file__, parts=PARTS, table=True).parse_args()
    kind = f"{DEVICE.platform}, {DEVICE.device_kind}"
    for part in () if args.table else args.parts:
        if known(args.output, kind, part) is None:
            with tempfile.TemporaryDirectory() as work:
                record(args.output, PARTS[part](Path(work)), kind, part)
    print("| device | part | | |\n|---|---|---|---:|")
    for device, parts in (known(args.output) or {}).items():
        for part, cell in parts.items():
            for what, value in cell.items():
                shown = f"{value:,.4g}" if isinstance(value, float) else value
                print(f"| {device} | {part} | {what} | {'not known' if value is None else shown} |")


if __name__ == "__main__":
    main()
