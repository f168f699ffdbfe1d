"""Fine-tunes SmolLM2-135M-Instruct twice: on GSM8K's worked answers, and on JCommonsenseQA in Japanese.

python experiments/smollm2_math_ja/train.py --data DATA --smollm2 FOLDER    # both; goes on where it was stopped

DATA has gsm8k/{train,test}.jsonl and jcommonsenseqa/train-v1.3.json, FOLDER is SmolLM2-135M-Instruct in float32.
Writes runs/smollm2_math_ja/{math,japanese}.
"""

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import make_parser, record
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trees import SCALE, low_rank_start

import jevomerge as jm
from jevomerge.checkpoint.export import copy_tokenizer, export_folder, tensors_of, write_model
from jevomerge.models.model import Language


class Run(NamedTuple):
    """How one model is trained: AdamW on low-rank additions to all of the blocks' matrices, the loss on the answers."""

    task: str
    steps: int
    rows: int  # per step; no row is seen twice
    decay: int  # steps of the whole cosine
    rate: float
    about: str


RUNS = {
    "japanese": Run(common.JCQA, 50, 8, 80, 1e-3, "JCommonsenseQA (CC BY-SA 4.0)"),
    "math": Run(common.GSM8K, 25, 6, 35, 1e-3, "GSM8K (MIT)"),
}


def batches(run: Run, tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, rows, T) tokens, padded on the left; which of them are text; which of them the loss counts."""
    rows = common.read_split(run.task, "train")[: run.steps * run.rows]
    shape = (len(rows), common.LONGEST[run.task])
    tokens = np.full(shape, tokenizer.eos_token_id, np.int32)
    valid, counted = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, row in enumerate(rows):
        prompt, answer = common.tokens_of(run.task, row, tokenizer)
        tokens[i, -len(prompt) - len(answer) :] = prompt + answer
        valid[i, -len(prompt) - len(answer) :] = True
        counted[i, -len(answer) :] = True
    cut = (run.steps, run.rows, shape[1])
    return tokens.reshape(cut), valid.reshape(cut), counted.reshape(cut)


def added(block: str, layer: Any) -> Any:
    """A block's parameters, or those of a stack of blocks, with its low-rank additions."""
    del block
    frozen, low_rank = layer

    def add(weight: jax.Array, pair: Any) -> jax.Array:
        return weight + SCALE * pair["up"] @ pair["down"]

    matrices = {k: frozen[k] for k in low_rank}
    return frozen | jax.tree.map(add, matrices, low_rank)


def loss(
    low_rank: Any,
    params: Any,
    model: Language,
    tokens: jax.Array,
    valid: jax.Array,
    counted: jax.Array,
    slots: int,
) -> jax.Array:
    """Mean cross-entropy of the answers' tokens, which lie in the last `slots`."""
    both = params | {"layers": (params["layers"], low_rank)}
    hidden, _ = jm.apply(both, model, tokens[:, :-1], valid[:, :-1], layer=added)
    logits = jm.unembed(params, model, hidden[:, -slots:])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, -slots:])
    return jnp.sum(losses * counted[:, -slots:]) / jnp.sum(counted[:, -slots:])


def train(name: str, base: jm.Checkpoint, tokenizer: PreTrainedTokenizerFast, output: Path) -> Any:
    """The fine-tuned parameters; the state is saved now and then, and the losses are recorded."""
    run = RUNS[name]
    tokens, valid, counted = batches(run, tokenizer)
    slots = int(counted.sum(-1).max())
    rate = optax.warmup_cosine_decay_schedule(0.0, run.rate, 8, run.decay, run.rate * 0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    params = base.load()
    low_rank = low_rank_start(jax.random.key(0), params)
    state = (low_rank, optimizer.init(low_rank))
    losses, spent = list[float](), 0.0
    saved = common.WORK / f"{name}.npz"
    if saved.exists():
        with np.load(saved) as file:
            leaves = [jnp.asarray(file[str(i)]) for i in range(len(jax.tree.leaves(state)))]
            losses, spent = file["losses"].tolist(), float(file["seconds"])
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, params: Any, *batch: jax.Array) -> tuple[Any, jax.Array]:
        low_rank, moments = state
        value, gradient = jax.value_and_grad(loss)(low_rank, params, base.model, *batch, slots)
        updates, moments = optimizer.update(gradient, moments, low_rank)
        return (optax.apply_updates(low_rank, updates), moments), value

    start = time.monotonic()
    for i in range(len(losses), run.steps):
        state, value = step(state, params, tokens[i], valid[i], counted[i])
        losses.append(float(value))
        if (i + 1) % 5 == 0:
            seconds = spent + time.monotonic() - start
            print(f"{name} {i + 1}/{run.steps}: loss {np.mean(losses[-5:]):.3f}, {seconds:.0f} s", flush=True)
            leaves = {str(k): np.asarray(x) for k, x in enumerate(jax.tree.leaves(state))}
            new = saved.with_suffix(".new.npz")
            np.savez(new, **leaves, losses=losses, seconds=seconds)
            new.replace(saved)
    summary = {
        "steps": run.steps,
        "examples": run.steps * run.rows,
        "tokens": int(valid.sum()),
        "answer tokens": int(counted.sum()),
        "seconds": round(spent + time.monotonic() - start, 1),
        "loss of the first and last five steps": [round(float(np.mean(x)), 3) for x in (losses[:5], losses[-5:])],
    }
    record(output, summary, "training", name)
    return params | {"layers": jax.jit(partial(added, "layers"))((params["layers"], state[0]))}


def write(name: str, params: Any, base: jm.Checkpoint) -> None:
    """An ordinary Hugging Face folder in float32."""
    with export_folder(common.WORK / name) as folder:
        copy_tokenizer(folder, base)
        write_model(folder, base.model.files, base.specs, "float32", tensors_of(params))
        (folder / "README.md").write_text(
            f"---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n\n# {name}\n\nSmolLM2-135M-Instruct, "
            f"fine-tuned by `experiments/smollm2_math_ja/train.py` on {RUNS[name].about}.\n"
        )


def main() -> None:
    parser = make_parser(__doc__, __file__, parts=RUNS)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="folder that holds gsm8k and jcommonsenseqa"
    )
    parser.add_argument(
        "--smollm2", type=Path, required=True, metavar="FOLDER", help="folder of SmolLM2-135M-Instruct in float32"
    )
    args = parser.parse_args()
    common.split_data(args.data, args.smollm2)
    base = jm.Checkpoint(args.smollm2)
    tokenizer = AutoTokenizer.from_pretrained(args.smollm2)
    for name in args.parts:
        if not (common.WORK / name).exists():
            write(name, train(name, base, tokenizer, args.output), base)
        (common.WORK / f"{name}.npz").unlink(missing_ok=True)
    if not (common.WORK / "base").exists():  # the recipes name it so
        shutil.copytree(args.smollm2, common.WORK / "base")


if __name__ == "__main__":
    main()
