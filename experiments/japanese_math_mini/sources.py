"""What the sources and the usual merges of them can do: the table in README.md, written to results.json.

python experiments/japanese_math_mini/sources.py
"""

import itertools
import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer

from jevomerge.checkpoint import Checkpoint
from jevomerge.fitness.rollout import Batch, generate
from jevomerge.merge import Merge, build, get_method, make_bank
from jevomerge.merge.bank import tensor_keys

HERE = Path(__file__).parent
NAMES = ("japanese", "mathematics", "addition")
NEW_TOKENS = 24
GRID = (0.25, 0.5, 0.75, 1.0)

JAPANESE, LATIN = re.compile("[ぁ-んァ-ヶ一-龠]"), re.compile("[A-Za-z]")


def solved(text: str, number: int, language: str) -> bool:
    """The last number is right, and the text is in the language that was asked for and in no other."""
    numbers = re.findall(r"\d+", text)
    japanese, latin = bool(JAPANESE.search(text)), bool(LATIN.search(text))
    in_language = japanese and not latin if language == "ja" else latin and not japanese
    return in_language and bool(numbers) and int(numbers[-1]) == number


class Task:
    """One file of questions, tokenized."""

    def __init__(self, name: str, tokenizer: Any):
        self.rows = [json.loads(line) for line in (HERE / "data" / f"{name}.jsonl").read_text().splitlines()]
        self.tokenizer = tokenizer
        prompts = tokenizer([row["prompt"] for row in self.rows], padding=True, return_tensors="np")
        self.batch = Batch(
            tokens=jnp.asarray(prompts["input_ids"], jnp.int32),
            valid=jnp.asarray(prompts["attention_mask"], bool),
            answer_length=jnp.zeros(len(self.rows), jnp.int32),
        )

    def answers(self, config: Any, params: Any) -> list[str]:
        write = jax.jit(generate, static_argnames=("config", "new_slots"))
        eos = jnp.asarray([self.tokenizer.eos_token_id], jnp.int32)
        tokens = write(params, config, self.batch, jnp.int32(NEW_TOKENS), eos, new_slots=NEW_TOKENS)
        return self.tokenizer.batch_decode(np.asarray(tokens), skip_special_tokens=True)

    def score(self, config: Any, params: Any) -> dict[str, float]:
        """Per cent solved of the whole file, and of each language in it."""
        answers = self.answers(config, params)
        right = [solved(a, row["number"], row["language"]) for a, row in zip(answers, self.rows, strict=True)]
        languages = np.asarray([row["language"] for row in self.rows])
        parts = {
            "all": languages != "",
            **{name: languages == name for name in sorted({row["language"] for row in self.rows})},
        }
        return {name: round(100 * float(np.mean(right, where=part)), 1) for name, part in parts.items()}


class Merger:
    """The usual merges of the sources, the same coefficients everywhere in the model."""

    def __init__(self, models: dict[str, Checkpoint]):
        self.specs = models["base"].specs
        self.params = {name: model.load() for name, model in models.items()}

    def __call__(self, method: str, sources: dict[str, Any], **values: Any) -> Any:
        merge = Merge(get_method(method, "paper"))
        base = self.params["base"] if merge.method.base == "required" else None
        keys = {s.path: tensor_keys(s, [tuple(sources)] * (s.num_layers or 1), seed=0) for s in self.specs}
        bank = make_bank(merge, self.specs, tuple(sources.values()), base, keys)
        values = {p.name: p.default for p in merge.method.parameters} | values
        coefficients = {}
        for spec in self.specs:
            layers = () if spec.num_layers is None else (spec.num_layers,)
            shapes = {p.name: (*layers, len(sources)) if p.per_model else layers for p in merge.method.parameters}
            coefficients[spec.path] = {
                name: jnp.broadcast_to(jnp.asarray(values[name], jnp.float32), shape) for name, shape in shapes.items()
            }
        return jax.jit(partial(build, merge))(bank, coefficients)


def usual_merges(merger: Merger) -> dict[str, Any]:
    """Sources, and merges at the settings their papers or mergekit's examples recommend."""
    models = {name: merger.params[name] for name in NAMES}
    third = [1 / len(NAMES)] * len(NAMES)
    first_two = {name: models[name] for name in NAMES[:2]}
    pair = merger("slerp", first_two, t=0.5)
    return {
        **merger.params,
        "average": merger("linear", models, weight=third),
        "SLERP": merger("slerp", {"pair": pair, NAMES[2]: models[NAMES[2]]}, t=1 / 3),
        "TIES (density 0.2)": merger("ties", models, weight=third, density=[0.2] * 3),
        "TIES (density 0.5)": merger("ties", models, weight=third, density=[0.5] * 3),
        "DARE-TIES (weight 1/3, density 0.5)": merger("dare_ties", models, weight=third, density=[0.5] * 3),
        "task arithmetic (weight 0.4)": merger("task_arithmetic", models, weight=[0.4] * 3),
        "task arithmetic (weight 1)": merger("task_arithmetic", models, weight=[1.0] * 3),
    }


def best_of_grid(merger: Merger, config: Any, task: Task) -> tuple[tuple[float, ...], Any]:
    """The weights of task arithmetic that solve most of `task`, and their model."""
    models = {name: merger.params[name] for name in NAMES}
    scores = {}
    for weights in itertools.product(GRID, repeat=len(NAMES)):
        scores[weights] = task.score(config, merger("task_arithmetic", models, weight=list(weights)))["all"]
    best = max(scores, key=lambda weights: scores[weights])
    return best, merger("task_arithmetic", models, weight=list(best))


def main() -> None:
    """Measure everything on the held-out files; only the grid looks at the search files."""
    models = {name: Checkpoint(HERE / "models" / name) for name in ("base", *NAMES)}
    config, merger = models["base"].config, Merger(models)
    tokenizer = AutoTokenizer.from_pretrained(HERE / "models" / "base")
    results: dict[str, Any] = {}
    for name in ("two_skills", "japanese_math"):
        search, heldout = (Task(f"{name}_{split}", tokenizer) for split in ("search", "heldout"))
        candidates = usual_merges(merger)
        weights, params = best_of_grid(merger, config, search)
        candidates[f"task arithmetic (best of {len(GRID) ** len(NAMES)} on search: {weights})"] = params
        results[name] = {candidate: heldout.score(config, params) for candidate, params in candidates.items()}
        start = time.monotonic()
        search.score(config, params)
        results[name]["seconds per candidate (search)"] = round(time.monotonic() - start, 2)
        for candidate, score in results[name].items():
            print(f"{name}  {candidate}: {score}")
    (HERE / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
