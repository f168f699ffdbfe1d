"""Can the model learn to choose?  LoRA on JCommonsenseQA with the loss over the five choices; writes choosing.json.

python experiments/smollm2_math_ja/choosing.py --data DATA --smollm2 FOLDER    # after train.py

The choices are not listed in the prompt.  Every question is read once, followed by its five choices (`trees.py`); the
loss is the cross-entropy over the choices' log-probabilities, plus `NLL` times that of the right one's text.  Judged is
by rows that neither training nor train.py's search and held-out splits use.  What was trained is kept in --work: what
is there is judged, not trained again.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import make_parser, record
from judging import estimate
from transformers import AutoTokenizer
from trees import Trees, halved, logprobs, low_rank_start, totals, tree

import jevomerge as jm

PROMPT = "質問: {question}\n答え:"
SHORT, LONGER = (64, 32), (80, 40)  # tokens of a question and its five choices, of the choices
VALIDATION, MORE = 320, 640  # short questions, to follow the training by; longer ones, for the end
ROWS, STEPS, EVERY = 16, 64, 32  # rows of a step; steps; steps from one validation to the next
RATE, DECAY, NLL = 1e-3, 200, 0.3  # DECAY: steps of the whole cosine
SINCE = "loss of the choice, of the text, accuracy: training, since the last"
QUESTIONS = 4  # to compare with the project's own forward pass


def rows_of(data: Path, tokenizer: Any) -> tuple[list[Trees], list[Trees]]:
    """Short and longer rows in a seeded order, without the questions of the search and held-out splits."""
    rows, found = common.jcommonsenseqa(data / "jcommonsenseqa" / "train-v1.3.json"), (list[Trees](), list[Trees]())
    used = {row["question"] for split in ("search", "heldout") for row in common.read_split(common.JCQA, split)}
    short, longer = list[dict[str, Any]](), list[dict[str, Any]]()
    order = np.random.default_rng(1).permutation(len(rows))
    for row in (rows[i] for i in order if rows[i]["question"] not in used):
        prompt = tokenizer(PROMPT.format(**row))["input_ids"]
        choices = tokenizer(row["choices"], add_special_tokens=False)["input_ids"]
        ended = [[*choice, tokenizer.eos_token_id] for choice in choices]
        slots = sum(map(len, ended))
        kind = 0 if len(prompt) + slots <= SHORT[0] and slots <= SHORT[1] else 1
        if kind == 0 or (len(prompt) + slots <= LONGER[0] and slots <= LONGER[1]):
            found[kind].append(tree(prompt, ended, row["label"], *(SHORT, LONGER)[kind]))
            (short, longer)[kind].append(row)
    trained = {row["question"] for row in short}  # some questions are there twice
    return found[0], [x for x, row in zip(found[1], longer, strict=True) if row["question"] not in trained][:MORE]


def batches(rows: list[Trees]) -> list[Trees]:
    """Of ROWS each."""
    return [Trees(*map(np.stack, zip(*rows[i : i + ROWS], strict=True))) for i in range(0, len(rows), ROWS)]


def loss(low_rank: Any, params: Any, batch: Trees, config: Any) -> tuple[jax.Array, Any]:
    """Cross-entropy over the five choices, and NLL times that of the right one's tokens; how many were right."""
    scores = totals(logprobs(low_rank, params, config, batch), batch, 5)
    own = jnp.arange(len(batch.label))
    choice = -jnp.mean(jax.nn.log_softmax(scores)[own, batch.label])
    text = -jnp.sum(scores[own, batch.label]) / jnp.sum(batch.answer == batch.label[:, None])
    return choice + NLL * text, (choice, text, 100 * jnp.mean(jnp.argmax(scores, axis=1) == batch.label))


def validate(score: Any, low_rank: Any, params: Any, validation: list[Trees]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, and mean log-probability per token of the right answers."""
    scores = np.concatenate([np.asarray(score(low_rank, params, batch)) for batch in validation])
    label, answer = (np.concatenate([getattr(b, name) for b in validation]) for name in ("label", "answer"))
    own = scores[np.arange(len(label)), label] / (answer == label[:, None]).sum(1)
    right = 100.0 * (scores.argmax(axis=1) == label)
    return {"accuracy": estimate(right), "log-probability per token": estimate(own), "questions": len(label)}


def compare(score: Any, low_rank: Any, params: Any, batch: Trees, base: jm.Checkpoint) -> dict[str, Any]:
    """Against the project's own forward pass in float32, one choice of the first questions at a time."""
    whole, ours, theirs = base.load(), np.asarray(score(low_rank, params, batch))[:QUESTIONS], np.zeros((QUESTIONS, 5))
    forward = jax.jit(partial(jm.apply, model=base.model))
    for i in range(QUESTIONS):
        for k in range(5):
            prompt, answer = (batch.tokens[i][batch.branch[i] == n] for n in (0, k + 1))
            text = np.zeros((1, batch.tokens.shape[1]), np.int32)
            text[0, : len(prompt) + len(answer)] = np.concatenate([prompt, answer])
            hidden, _ = forward(whole, tokens=text, valid=np.arange(text.shape[1])[None] < len(prompt) + len(answer))
            logits = jm.unembed(whole, base.model, hidden[0, len(prompt) - 1 : len(prompt) + len(answer) - 1])
            theirs[i, k] = float(jnp.sum(jax.nn.log_softmax(logits)[np.arange(len(answer)), answer]))
    difference = float(np.max(np.abs(ours - theirs)))
    return {"largest difference to float32, of a choice": round(difference, 3), "mean": round(float(theirs.mean()), 2)}


def train(found: list[Trees], base: jm.Checkpoint, saved: Path, output: Path) -> None:
    """Save the low-rank additions; how it went is recorded at every validation."""
    cut = batches(found[: VALIDATION + STEPS * ROWS])
    validation, training = cut[: VALIDATION // ROWS], cut[VALIDATION // ROWS :]
    params = base.load()
    low_rank = low_rank_start(jax.random.key(0), params)
    params = jax.jit(halved)(params)
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, 20, DECAY, RATE * 0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    score = scorer(base)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, params: Any, batch: Trees) -> tuple[Any, Any]:
        low_rank, moments = state
        gradient, about = jax.grad(partial(loss, config=base.model.config), has_aux=True)(low_rank, params, batch)
        updates, moments = optimizer.update(gradient, moments, low_rank)
        return (optax.apply_updates(low_rank, updates), moments), about

    state, history = (low_rank, optimizer.init(low_rank)), list[Any]()
    seen, start, spent = list[Any](), time.monotonic(), list[Any]()
    for i, batch in enumerate(training):
        clocks = time.monotonic(), time.process_time()
        state, about = step(state, params, batch)
        seen.append([float(x) for x in about])
        spent.append((time.monotonic() - clocks[0], time.process_time() - clocks[1]))
        if (i + 1) % EVERY == 0:
            last = np.mean(seen[-EVERY:], axis=0)
            history.append(
                {
                    "questions seen": (i + 1) * ROWS,
                    **validate(score, state[0], params, validation),
                    SINCE: [round(float(x), 3) for x in last],
                    "seconds so far": round(time.monotonic() - start),
                    "seconds, processor seconds of a step, median": [round(x, 2) for x in np.median(spent[1:], axis=0)],
                }
            )
            print(history[-1], flush=True)
            record(output, {"prompt": PROMPT, "rate": RATE, "rows": ROWS, "validation": history}, "training")
    saved.parent.mkdir(parents=True, exist_ok=True)
    np.savez(saved, *map(np.asarray, jax.tree.leaves(state[0])))


def scorer(base: jm.Checkpoint) -> Any:
    """Log-probabilities of the choices of a batch."""

    @jax.jit
    def score(low_rank: Any, params: Any, batch: Trees) -> jax.Array:
        return totals(logprobs(low_rank, params, base.model.config, batch), batch, 5)

    return score


def judge(short: list[Trees], longer: list[Trees], base: jm.Checkpoint, saved: Path, output: Path) -> None:
    """Base and fine-tune, by short questions that were not trained on and by longer ones."""
    params, score = base.load(), scorer(base)
    start = low_rank_start(jax.random.key(0), params)
    params = jax.jit(halved)(params)
    with np.load(saved) as file:
        trained = jax.tree.unflatten(jax.tree.structure(start), [jnp.asarray(file[name]) for name in file.files])
    unseen = short[:VALIDATION] + short[VALIDATION + STEPS * ROWS :]
    record(output, compare(score, start, params, batches(unseen)[0], base), "check")
    for name, low_rank in {"base": start, "trained": trained}.items():
        found = {
            f"{kind} questions": validate(score, low_rank, params, batches(rows))
            for kind, rows in {"short": unseen[: len(unseen) // ROWS * ROWS], "longer": longer}.items()
        }
        print(name, found, flush=True)
        record(output, found, name)


def main() -> None:
    parser = make_parser(__doc__, __file__, "choosing.json", work=True)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="folder that holds gsm8k and jcommonsenseqa"
    )
    parser.add_argument(
        "--smollm2", type=Path, required=True, metavar="FOLDER", help="folder of SmolLM2-135M-Instruct in float32"
    )
    args = parser.parse_args()
    base, saved = jm.Checkpoint(args.smollm2), args.work / "low_rank.npz"
    short, longer = rows_of(args.data, AutoTokenizer.from_pretrained(args.smollm2))
    if not saved.exists():
        train(short, base, saved, args.output)
    judge(short, longer, base, saved, args.output)


if __name__ == "__main__":
    main()
