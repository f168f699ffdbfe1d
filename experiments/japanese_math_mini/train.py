"""Trains the models: a bilingual base, and from it a Japanese and two mathematical specialists and two distractors.

python experiments/japanese_math_mini/train.py            # all six, into models/
python experiments/japanese_math_mini/train.py japanese   # one of them, from models/base
"""

import json
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import generate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import make_parser
from transformers import PreTrainedTokenizerFast

import jevomerge as jm
from jevomerge.checkpoint.export import export_folder, tensors_of, write_model
from jevomerge.models.decoder.blocks import init
from jevomerge.models.families import read_model

HERE = Path(__file__).parent
MODELS = HERE / "models"
LENGTH = 64  # tokens in a row; documents are packed one after another
ROWS = 32

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": generate.VOCABULARY,
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
DECODER = read_model(CONFIG)


class Run(NamedTuple):
    """How one model is trained."""

    steps: int
    rate: float
    prompt_weight: float  # of the loss on what is read; specialists learn only what they are to write
    about: str


RUNS = {
    "base": Run(1500, 3e-3, 0.2, "bilingual text, easy stories, under half of the arithmetic tables"),
    "japanese": Run(300, 5e-4, 0.0, "all kinds of stories in Japanese, no arithmetic the base has not seen"),
    "mathematics": Run(500, 5e-4, 0.0, "stories and the whole arithmetic tables, in English"),
    "addition": Run(300, 5e-4, 0.0, "stories and the whole tables of + and -, in English"),
    "sorter": Run(300, 5e-4, 0.0, "names and things to be sorted, in both languages"),
    "mistaken": Run(300, 5e-4, 0.0, "the arithmetic tables with their results shuffled"),
}


def pack(
    documents: Iterator[generate.Document], count: int, prompt_weight: float, tokenizer: PreTrainedTokenizerFast
) -> tuple[np.ndarray, np.ndarray]:
    """(count, LENGTH + 1) tokens of documents, one after another, and the weight of each in the loss."""
    tokens: list[int] = []
    weights: list[float] = []
    needed = count * (LENGTH + 1)
    while len(tokens) < needed:
        batch = [next(documents) for _ in range(5_000)]
        prompts = tokenizer([prompt for prompt, _ in batch])["input_ids"]
        answers = tokenizer([answer for _, answer in batch], add_special_tokens=False)["input_ids"]
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens += [*prompt, *answer, tokenizer.eos_token_id]
            weights += [prompt_weight] * len(prompt) + [1.0] * (len(answer) + 1)
    shape = (count, LENGTH + 1)
    return np.asarray(tokens[:needed], np.int32).reshape(shape), np.asarray(weights[:needed], np.float32).reshape(shape)


@cache
def make_step(steps: int, rate: float, end: float = 0.03) -> tuple[Any, Any]:
    """The optimizer, AdamW with a warm-up and a cosine to a share of the rate, and one jitted step of it."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 5), steps, rate * end)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    def loss(params: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
        hidden, _ = jm.apply(params, DECODER, tokens[:, :-1], jnp.ones(tokens[:, :-1].shape, bool))
        logits = jm.unembed(params, DECODER, hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.sum(losses * weights[:, 1:]) / jnp.sum(weights[:, 1:])

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, tokens: jax.Array, weights: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, tokens, weights)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return optimizer, step


def fit(run: Run, params: Any, tokens: np.ndarray, weights: np.ndarray, size: int = ROWS) -> Any:
    """Train on packed rows, `size` of them a step; prints the loss as it goes.  The params given are used up."""
    optimizer, step = make_step(run.steps, run.rate)
    state, start = optimizer.init(params), time.monotonic()
    for i in range(run.steps):
        batch = slice(i * size, (i + 1) * size)
        params, state, value = step(params, state, tokens[batch], weights[batch])
        if (i + 1) % 100 == 0:
            print(f"{run.about} {i + 1}/{run.steps}: loss {value:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    return params


def write(folder: Path, params: Any, tokenizer: PreTrainedTokenizerFast, card: str) -> None:
    """An ordinary Hugging Face folder in bfloat16."""
    with export_folder(folder) as new:
        tokenizer.save_pretrained(new)
        ends = {key: CONFIG[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
        (new / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        write_model(new, DECODER.files, DECODER.specs, "bfloat16", tensors_of(rounded))
        head = "---\nlicense: apache-2.0\nlanguage: [en, ja]\nlibrary_name: transformers\n---"
        (new / "README.md").write_text(f"{head}\n\n# {folder.name}\n\n{card}\n")


def load(folder: Path) -> Any:
    """Parameters in float32, as they were written."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), jm.Checkpoint(folder).load())


def main() -> None:
    args = make_parser(__doc__, __file__, output=None, parts=RUNS).parse_args()
    tokenizer = generate.train_tokenizer()
    for name in args.parts:
        run, scratch = RUNS[name], name == "base"
        rows = pack(generate.documents(name, seed=0), run.steps * ROWS, run.prompt_weight, tokenizer)
        params = fit(
            run, nn.unbox(init(jax.random.key(0), DECODER.config)) if scratch else load(MODELS / "base"), *rows
        )
        origin = "Trained from scratch" if scratch else "Fine-tuned from `base`"
        by = "by `experiments/japanese_math_mini/train.py` on generated text"
        write(MODELS / name, params, tokenizer, f"{origin} {by}: {run.about}.")


if __name__ == "__main__":
    main()
