"""Held-out judging: likelihood of GSM8K's worked answers, and JCommonsenseQA as a choice among five."""

import time
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

import jevomerge as jm
from jevomerge.fitness.schema import DataSource
from jevomerge.models.layers import Params
from jevomerge.models.model import Language

ROWS = 8  # questions at a time
RESAMPLES = 4000


class Choices(NamedTuple):
    """Questions with five choices, as tokens: prompts padded on the left, choices on the right."""

    prompts: np.ndarray  # (Q, T)
    prompts_valid: np.ndarray
    choices: np.ndarray  # (Q, 5, C), each ends with the end-of-text token
    choices_valid: np.ndarray
    labels: np.ndarray  # (Q,)


def choices_of(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> Choices:
    """The tokens of JCommonsenseQA rows."""
    shape = (len(rows), common.LONGEST[common.JCQA])
    prompts, prompts_valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
    choices, choices_valid = (np.zeros((len(rows), 5, common.LONGEST_CHOICE), kind) for kind in (np.int32, bool))
    for i, row in enumerate(rows):
        for k, choice in enumerate(row["choices"]):
            prompt, answer = common.tokens_of(common.JCQA, row | {"answer": choice}, tokenizer)
            prompts[i, -len(prompt) :], prompts_valid[i, -len(prompt) :] = prompt, True
            choices[i, k, : len(answer)], choices_valid[i, k, : len(answer)] = answer, True
    width = int(prompts_valid.sum(1).max())
    return Choices(
        prompts[:, -width:], prompts_valid[:, -width:], choices, choices_valid, np.array([r["label"] for r in rows])
    )


@jax.jit(static_argnames="model")
def choice_logprobs(
    params: Params,
    prompts: jax.Array,
    prompts_valid: jax.Array,
    choices: jax.Array,
    choices_valid: jax.Array,
    *,
    model: Language,
) -> jax.Array:
    """(B, T) prompts and (B, 5, C) choices -> (B, 5, C) log-probabilities; a prompt is read once for its choices."""
    batch, count, width = choices.shape
    cache = model.cache(batch, prompts.shape[1] + width, jnp.float32)
    before, filled = jm.apply(params, model, prompts, prompts_valid, cache)
    repeated = filled.replace(
        memory=jax.tree.map(lambda x: jnp.repeat(x, count, axis=1), filled.memory),
        valid=jnp.repeat(filled.valid, count, axis=0),
    )
    tokens, valid = (x.reshape(batch * count, width) for x in (choices, choices_valid))
    inside, _ = jm.apply(params, model, tokens, valid, repeated)
    hidden = jnp.concatenate([jnp.repeat(before[:, -1:], count, axis=0), inside[:, :-1]], axis=1)

    def row(x: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = jm.unembed(params, model, x[0])
        return jnp.take_along_axis(logits, x[1][:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)

    return jax.lax.map(row, (hidden, tokens), batch_size=count).reshape(choices.shape)


class Heldout:
    """Both held-out sets, ready for any model with this tokenizer and architecture."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, model: Language):
        """Read and tokenize."""
        [task] = jm.read_tasks(common.HERE / "gsm8k.yaml")
        task = task.model_copy(update={"heldout": DataSource(path=task.heldout.path)})
        self.judge = jm.make_judge(
            jm.make_ready([task], tokenizer, model), model, splits=["heldout"], tokens_per_batch=2048
        )
        self.choices = choices_of(common.read_split(common.JCQA, "heldout"), tokenizer)
        self.model, self.tokenizer = model, tokenizer

    def five_ways(self, params: Params, c: Choices) -> np.ndarray:
        """(Q, 5, C) log-probabilities of the choices' tokens, 0 for padding."""
        batches = []
        for start in range(0, len(c.labels), ROWS):
            part = slice(start, start + ROWS)
            given = (c.prompts[part], c.prompts_valid[part], c.choices[part], c.choices_valid[part])
            batches.append(np.asarray(choice_logprobs(params, *given, model=self.model), np.float64))
        return np.where(c.choices_valid, np.concatenate(batches), 0.0)

    def __call__(self, params: Params) -> dict[str, Any]:
        """What a model scores, with 95 % intervals."""
        start = time.monotonic()
        gsm8k = self.judge.model(params, "heldout").fitness[common.GSM8K]
        logprobs = self.five_ways(params, self.choices)
        own = np.arange(len(self.choices.labels)), self.choices.labels
        lengths = self.choices.choices_valid.sum(-1)
        right = np.argmax(logprobs.sum(-1), axis=1) == self.choices.labels
        last = np.arange(logprobs.shape[-1]) == lengths[..., None] - 1  # lm-eval does not ask that the text ends
        as_lm_eval = np.argmax(np.where(last, 0.0, logprobs).sum(-1), axis=1) == self.choices.labels
        return {
            "gsm8k": estimate(gsm8k),
            "jcommonsenseqa": estimate((logprobs.sum(-1) / lengths)[own]),
            "accuracy": estimate(100 * right),
            "accuracy by lm-eval's rule": estimate(100 * as_lm_eval),
            "seconds": round(time.monotonic() - start, 1),
            "examples": {
                "gsm8k": [round(float(x), 4) for x in gsm8k],
                "jcommonsenseqa": [round(float(x), 4) for x in (logprobs.sum(-1) / lengths)[own]],
                "right": "".join(str(int(x)) for x in right),
                "right by lm-eval's rule": "".join(str(int(x)) for x in as_lm_eval),
            },
        }


def estimate(*tasks: np.ndarray) -> list[float]:
    """The mean over tasks of the mean over examples, and its 95 % interval, by bootstrap over the examples of each."""
    rng, means, value = np.random.default_rng(0), np.zeros(RESAMPLES), 0.0
    for values in tasks:
        draws = rng.integers(len(values), size=(RESAMPLES, len(values)))
        means += np.asarray(values, np.float64)[draws].mean(axis=1) / len(tasks)
        value += float(np.mean(values)) / len(tasks)
    return [round(float(x), 3) for x in (value, *np.quantile(means, [0.025, 0.975]))]
