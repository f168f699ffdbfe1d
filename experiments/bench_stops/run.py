"""What it brings that a stop string ends decoding, and what it costs where none is written."""

import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.fitness.rollouts.generation import Prompts, count_written, generate
from jevomerge.problems.problem import Instance
from jevomerge.tokenizers.load import load_tokenizer
from jevomerge.tokenizers.stops import stop_table

STORIES = Path(__file__).parents[2] / "tests" / "data" / "stories260k"
PROMPTS = [
    "Once upon a time",
    "One day, a big dog",
    "Tom and his mom",
    "Lily saw",
    "The cat",
    "There was a boy",
    "Mom",
    "In a",
]
STOPS = {"a sentence": (". ", "! ", "? ", ".\n"), "never": ("Instruction:", "Instruction", "Response:", "Response")}


def measure(folder: Path, new: int, rounds: int) -> dict:
    """Seconds of a batch without and with each list of stop strings, in turns."""
    checkpoint, tokenizer = jm.Checkpoint(folder), load_tokenizer(folder)
    params, model = checkpoint.load(), checkpoint.model
    rows = [tokenizer(p)["input_ids"] for p in PROMPTS]
    length = max(map(len, rows))
    tokens = np.array([[0] * (length - len(r)) + r for r in rows], np.int32)
    valid = np.array([[False] * (length - len(r)) + [True] * len(r) for r in rows])
    eos = jnp.asarray([tokenizer.eos_token_id], jnp.int32)
    prompts = Prompts(jnp.asarray(tokens), jnp.asarray(valid), jnp.int32(new), eos)
    run = jax.jit(lambda params, table: generate(Instance(params), model, prompts.replace(stops=table), new))
    tables, building = {"without": None}, {}
    for name, stops in STOPS.items():
        began = time.perf_counter()
        tables[name] = stop_table(tokenizer, stops, model.vocab_size)
        building[name] = round(time.perf_counter() - began, 3)
    times, written = {name: [] for name in tables}, {}
    for i in range(rounds + 1):  # the first compiles
        for name, table in tables.items():
            began = time.perf_counter(), time.process_time()
            written[name] = np.asarray(run(params, table))
            took = time.perf_counter() - began[0], time.process_time() - began[1]
            times[name] += [took] if i else []
    texts = {n: tokenizer.batch_decode(w, skip_special_tokens=True) for n, w in written.items()}
    found = {}
    for name, stops in STOPS.items():
        cut = [[min(t.split(s, 1)[0] for s in stops) for t in texts[n]] for n in ("without", name)]
        assert cut[0] == cut[1]
        ratios = np.sort(np.divide(times["without"], times[name]), axis=0).T
        count = count_written(written[name], np.asarray(eos), tables[name])
        found[name] = {
            "stops": stops,
            "tokens_of_a_text": count.tolist(),
            "seconds": {n: round(statistics.median(t[0] for t in times[n]), 4) for n in ("without", name)},
            "times_as_fast": {  # median, lowest, highest
                clock: [round(float(x), 2) for x in (np.median(r), r[0], r[-1])]
                for clock, r in zip(("wall", "processor"), ratios, strict=True)
            },
            "table": {"shape": tables[name].shape, "bytes": tables[name].nbytes, "seconds_to_build": building[name]},
        }
    return {"vocabulary": model.vocab_size, "rows": len(rows), "new_tokens": new, "rounds": rounds, **found}


def main() -> None:
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="another folder to measure, such as SmolLM2-135M's"
    )
    args = parser.parse_args()
    for folder, new, rounds in [(STORIES, 128, 5), *([(args.model, 48, 3)] if args.model else [])]:
        if known(args.output, folder.name) is None:
            record(args.output, measure(folder, new, rounds), folder.name)
    print(json.dumps(known(args.output), indent=1))


if __name__ == "__main__":
    main()
