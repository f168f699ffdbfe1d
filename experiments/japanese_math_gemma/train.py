"""Fine-tunes all parameters of the trimmed Gemma: sums first, then Japanese questions or English word problems.

python experiments/japanese_math_gemma/train.py --data DATA            # after trim.py; a model is made once
python experiments/japanese_math_gemma/train.py --data DATA japanese   # one of them
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
import stories
from arguments import make_parser
from transformers import PreTrainedTokenizerFast

import jevomerge as jm
from jevomerge.checkpoint.export import copy_tokenizer, export_folder, tensors_of, write_model
from jevomerge.tokenizers.load import load_tokenizer

ROWS, LENGTH = 4, 128  # of a step; documents are packed one after another
Keep = Callable[[int, Any], None]  # is given the steps that were made, and the parameters


class Run(NamedTuple):
    """How one model is trained: AdamW with a warm-up and a cosine, the loss on what is to be written."""

    steps: int
    rate: float
    about: str
    start: str = "base"
    end: float = 0.05  # the share of the rate that is left at the end


RUNS = {
    "school": Run(220, 1e-4, "the calculations of stories, bare"),  # all others begin here
    "japanese": Run(160, 1e-4, "plain stories in Japanese, translations, JCommonsenseQA (CC BY-SA 4.0)", "school"),
    "maths": Run(150, 1e-4, "stories of all kinds in English, GSM8K (MIT)", "school"),
}


def pack(
    documents: Iterator[stories.Document], count: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[np.ndarray, np.ndarray]:
    """(count, LENGTH + 1) tokens, and the weight of each in the loss."""
    tokens, weights, needed = list[int](), list[float](), count * (LENGTH + 1)
    while len(tokens) < needed:
        prompt, answer = next(documents)
        read, written = tokenizer(prompt)["input_ids"], tokenizer(answer, add_special_tokens=False)["input_ids"]
        tokens += [*read, *written, tokenizer.eos_token_id]
        weights += [0.0] * len(read) + [1.0] * (len(written) + 1)
    shape = (count, LENGTH + 1)
    return np.asarray(tokens[:needed], np.int32).reshape(shape), np.asarray(weights[:needed], np.float32).reshape(shape)


def fit(
    run: Run, model: Any, params: Any, tokens: np.ndarray, weights: np.ndarray, keep: Keep = lambda step, params: None
) -> Any:
    """Train on packed rows; prints the loss and calls `keep` as it goes. The float32 params given are used up."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, run.rate, run.steps // 10, run.steps, run.rate * run.end)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.0))

    def loss(params: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
        hidden, _ = jm.apply(params, model, tokens[:, :-1], jnp.ones(tokens[:, :-1].shape, bool))
        losses = optax.softmax_cross_entropy_with_integer_labels(jm.unembed(params, model, hidden), tokens[:, 1:])
        return jnp.sum(losses * weights[:, 1:]) / jnp.maximum(jnp.sum(weights[:, 1:]), 1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, tokens: jax.Array, weights: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, tokens, weights)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, began, losses = optimizer.init(params), time.monotonic(), list[float]()
    for i in range(run.steps):
        batch = slice(i * ROWS, (i + 1) * ROWS)
        params, state, value = step(params, state, tokens[batch], weights[batch])
        losses.append(float(value))
        keep(i + 1, params)
        if (i + 1) % 10 == 0:
            seconds = time.monotonic() - began
            print(f"{run.about} {i + 1}/{run.steps}: {np.mean(losses[-10:]):.3f}, {seconds:.0f} s", flush=True)
    return params


def write(folder: Path, params: Any, base: jm.Checkpoint, about: str, dtype: str = "bfloat16") -> None:
    """An ordinary Hugging Face folder."""
    with export_folder(folder) as new:
        copy_tokenizer(new, base)
        rounded = jax.tree.map(lambda x: x.astype(dtype), params)
        write_model(new, base.model.files, base.specs, dtype, tensors_of(rounded))
        (new / "README.md").write_text(f"---\nlicense: gemma\n---\n\n# {folder.name}\n\n{about}\n")


def taught(name: str, data: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[stories.Document]:
    """An endless stream of what a model is taught, none of it too long."""

    def short(document: stories.Document) -> bool:
        return len(tokenizer("".join(document))["input_ids"]) <= stories.LONGEST

    return stories.documents(name, data, short)


def main() -> None:
    parser = make_parser(__doc__, __file__, output=None, parts=RUNS, work=True)
    common.add_folders(parser, "data")
    args = parser.parse_args()
    base, tokenizer = jm.Checkpoint(args.work / "base"), load_tokenizer(args.work / "base")
    for name in args.parts:
        if not (args.work / name).exists():
            run = RUNS[name]
            start = jm.Checkpoint(args.work / run.start).load()
            params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
            rows = pack(taught(name, args.data, tokenizer), run.steps * ROWS, tokenizer)
            about = f"Gemma 3 270M, trimmed and fine-tuned by `experiments/japanese_math_gemma`: {run.about}."
            write(args.work / name, fit(run, base.model, params, *rows), base, about)


if __name__ == "__main__":
    main()
