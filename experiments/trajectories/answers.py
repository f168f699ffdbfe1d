"""How likely a checkpoint makes the Japanese problems' answers: the fitness of configs/trajectory.yaml.

To jevomerge a checkpoint is a tree of arrays. What it computes is known here alone, as with a training program of one's
own: the miniature's decoder, whose layers lie in leaves of their own, so that each can have its own genes.
"""

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jevomerge as jm
from jevomerge.tokenizers.load import load_tokenizer

MINIATURE = Path(__file__).resolve().parents[1] / "japanese_math_mini"
DECODER = jm.Checkpoint(MINIATURE / "models" / "base").model
TOKENIZER = load_tokenizer(MINIATURE / "models" / "base")
DEPTH = DECODER.config.num_hidden_layers
Tree = dict[str, Any]


def apart(params: Tree) -> Tree:
    """The decoder's parameters with each layer by itself: {"layers": {"0": ..., "1": ...}, ...}."""
    return params | {"layers": {str(i): jax.tree.map(itemgetter(i), params["layers"]) for i in range(DEPTH)}}


def together(tree: Tree) -> Tree:
    """The inverse."""
    layers = [tree["layers"][str(i)] for i in range(DEPTH)]
    return tree | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}


def texts(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, T) tokens of problems with their answers, padded behind, and 1 where they are of an answer."""
    lines = (MINIATURE / "data" / f"japanese_math_{split}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    prompts = TOKENIZER([row["prompt"] for row in rows])["input_ids"]
    answers = TOKENIZER([row["answer"] for row in rows], add_special_tokens=False)["input_ids"]
    answers = [[*answer, TOKENIZER.eos_token_id] for answer in answers]
    tokens = np.zeros((len(rows), max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))), np.int32)
    asked = np.zeros(tokens.shape, np.float32)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[i, :end], asked[i, len(prompt) : end] = prompt + answer, 1
    return tokens, asked


SEARCH = tuple(x[:64] for x in texts("search"))  # half of the questions, which is cheaper


def likelihood(params: Tree, tokens: jax.Array, asked: jax.Array) -> jax.Array:
    """(N,) mean log-probability per token of the answers, in nats."""
    params = together(params)
    hidden, _ = jm.apply(params, DECODER, tokens[:, :-1], jnp.ones(tokens[:, :-1].shape, bool))
    logits = jm.unembed(params, DECODER, hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return -jnp.sum(losses * asked[:, 1:], axis=1) / jnp.sum(asked[:, 1:], axis=1)


def search(model: Any, state: Tree) -> jax.Array:
    """(64,) of the problems to search on."""
    return likelihood(state["params"], *map(jnp.asarray, SEARCH))
