"""Likelihood and generation against transformers, on a trained model."""

import dataclasses
import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.fitness.batches import Batch
from jevomerge.fitness.rollouts import generation, likelihood
from jevomerge.fitness.rollouts.generation import APART, DEEPEST, for_many_passes
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.route import Route
from jevomerge.models.specs import unflatten
from jevomerge.problems.problem import Instance
from tests.families import make

PROMPTS = ["Once upon a time", "One day, a big dog and a little cat went to the park. They", "Tom", "Lily saw"]
ANSWERS = [", there was a little girl", " were happy.", " said", " a bird."]
STORIES = Path(__file__).parents[3] / "data" / "stories260k"


@functools.partial(jax.jit, static_argnums=(1, 3))
def generate(params, config, prompts, slots):
    return generation.generate(Instance(params), config, prompts, slots)


@functools.partial(jax.jit, static_argnums=(1, 3))
def answer_likelihood(params, config, batch, slots):
    return likelihood.answer_likelihood(Instance(params), config, batch, slots)


def left_pad(rows, pad=0):
    length = max(map(len, rows))
    tokens = np.full((len(rows), length), pad, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        valid[i, length - len(row) :] = True
    return jnp.asarray(tokens), jnp.asarray(valid)


def continued(prompts, limit, end=2):
    return generation.Prompts(*left_pad(prompts), jnp.int32(limit), jnp.asarray([end], jnp.int32))


@pytest.fixture(scope="module")
def story():
    checkpoint = Checkpoint(STORIES)
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    return checkpoint, checkpoint.load(), tokenizer, AutoModelForCausalLM.from_pretrained(STORIES).eval()


@pytest.mark.parametrize("spare_slots", [0, 5])
def test_likelihood_of_answers(story, spare_slots):
    checkpoint, params, tokenizer, model = story
    prompts = [tokenizer(p)["input_ids"] for p in PROMPTS]
    answers = [tokenizer(a, add_special_tokens=False)["input_ids"] for a in ANSWERS]
    tokens, valid = left_pad([p + a for p, a in zip(prompts, answers, strict=True)])
    lengths = [len(a) for a in answers]
    batch = Batch(tokens, valid, jnp.asarray(lengths, jnp.int32))
    mean, match = answer_likelihood(params, checkpoint.model, batch, max(lengths) + spare_slots)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        target = torch.tensor(answer)
        expected = torch.log_softmax(logits, -1)[torch.arange(len(answer)), target].mean()
        np.testing.assert_allclose(mean[i], expected, atol=1e-4)
        assert bool(match[i]) == bool((logits.argmax(-1) == target).all())


def test_match_agrees_with_generation(story):
    """An answer `match`es exactly if it is what the model writes."""
    checkpoint, params, tokenizer, _ = story
    prompts = [tokenizer(p)["input_ids"] for p in PROMPTS]
    written = np.asarray(generate(params, checkpoint.model, continued(prompts, 6), 6))
    wrong = written.copy()
    wrong[:, 3] = (wrong[:, 3] + 1) % 512
    for answers, expected in ((written, True), (wrong, False)):
        rows = [p + list(map(int, a)) for p, a in zip(prompts, answers, strict=True)]
        lengths = jnp.full(len(rows), 6, jnp.int32)
        _, match = answer_likelihood(params, checkpoint.model, Batch(*left_pad(rows), lengths), 6)
        assert np.asarray(match).tolist() == [expected] * len(rows)


def greedy(model, prompt, new, ends=2, **options):
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=ends, **options,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def test_greedy_generation_of_a_padded_batch_equals_transformers_one_by_one(story):
    checkpoint, params, tokenizer, model = story
    prompts = [tokenizer(p)["input_ids"] for p in PROMPTS]
    written = np.asarray(generate(params, checkpoint.model, continued(prompts, 40), 48))
    for prompt, row in zip(prompts, written, strict=True):
        expected = greedy(model, prompt, 40)
        assert row[: len(expected)].tolist() == expected
        assert (row[len(expected) :] == 2).all()  # the rest is filled with the end


MORE = [*PROMPTS, "Once", "The sun", "Ben and Mia", "A cat", "In the garden there was"]


def write(params, model, batch, slots, rows):
    return generation.generate(Instance(params), model, batch, slots, rows)


@pytest.mark.parametrize("rows", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_the_next_prompts_take_the_rows_of_texts_that_have_ended(rows, story):
    """Texts of 5 to 17 tokens are those that transformers writes one by one."""
    checkpoint, params, tokenizer, model = story
    prompts, ends = (
        [tokenizer(p)["input_ids"] for p in MORE],
        [2, *tokenizer(".", add_special_tokens=False)["input_ids"]],
    )
    batch = continued(prompts, 40).replace(eos=jnp.asarray(ends, jnp.int32), count=jnp.int32(9))
    run = jax.jit(chex.assert_max_traces(write, n=1), static_argnums=(1, 3, 4))
    written = np.asarray(run(params, checkpoint.model, batch, 48, rows))
    for prompt, row in zip(prompts, written, strict=True):
        expected = greedy(model, prompt, 40, ends)
        assert row[: len(expected)].tolist() == expected
        assert (row[len(expected) :] == 2).all()
    fewer = np.asarray(run(params, checkpoint.model, batch.replace(count=jnp.int32(4)), 48, rows))
    assert fewer.tolist() == [*written[:4].tolist(), *[[2] * 48] * 5]  # the rest is padding


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_all_prompts_begin_with_is_read_once(apart, story):
    """Nothing is forgotten of it, not even by the penalty of repetition."""
    checkpoint, params, tokenizer, model = story
    decoder, params = checkpoint.model.taken_apart(params) if apart else (checkpoint.model, params)
    beginning = tokenizer("Once upon a time, there was a little girl named Lily. She")["input_ids"]
    rest = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in MORE]
    batch = continued(rest, 20).replace(beginning=jnp.asarray(beginning, jnp.int32), penalty=jnp.float32(1.3))
    written = np.asarray(jax.jit(write, static_argnums=(1, 3, 4))(params, decoder, batch, 20, 4))
    for tokens, row in zip(rest, written, strict=True):
        expected = greedy(model, beginning + tokens, 20, repetition_penalty=1.3)
        assert row[: len(expected)].tolist() == expected


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("family", ["mistral", "gemma3", "qwen3"])
def test_generation_beyond_the_sliding_window(family, apart, tmp_path):
    model = make(family, tmp_path / "m")
    checkpoint = Checkpoint(tmp_path / "m")
    decoder, params = checkpoint.model, checkpoint.load()
    decoder, params = decoder.taken_apart(params) if apart else (decoder, params)
    prompts = [[5, 9, 11, 40, 3, 22, 8], [7, 61, 30]]
    written = np.asarray(generate(params, decoder, continued(prompts, 12, end=10_000), 12))
    for prompt, row in zip(prompts, written, strict=True):
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert row.tolist() == out[0, len(prompt) :].tolist()


def test_only_large_blocks_are_taken_apart(story):
    """Of these the time to compile is a small part of what is gained."""
    checkpoint, params, *_ = story
    assert for_many_passes(Instance(params), checkpoint.model) == (params, checkpoint.model)
    large = Decoder(dataclasses.replace(checkpoint.model.config, intermediate_size=APART))
    deep = large.resized([large.kinds[0]] * (DEEPEST + 1))
    abstract = unflatten({s.path: jax.ShapeDtypeStruct(s.leaf_shape, np.float32) for s in large.specs})
    route = Route.of([0, 1])
    laid_out = jax.eval_shape(lambda tree: for_many_passes(Instance(tree), large)[0], abstract)
    routed = jax.eval_shape(lambda tree: for_many_passes(Instance(tree, route=route), large)[0], abstract)
    assert isinstance(laid_out["layers"], tuple)
    assert not isinstance(routed["layers"], tuple)
    blocks = {s.path: jax.ShapeDtypeStruct(s.leaf_shape, np.float32) for s in deep.specs}
    together = jax.eval_shape(lambda tree: for_many_passes(Instance(tree), deep)[0], unflatten(blocks))
    assert not isinstance(together["layers"], tuple)


def test_rows_that_have_ended_stop_the_loop(story):
    """With every row ended the loop stops: the number of steps, not of slots, decides the time."""
    checkpoint, params, tokenizer, _ = story
    prompt = tokenizer("Once upon a time")["input_ids"]
    free = np.asarray(generate(params, checkpoint.model, continued([prompt], 8), 8))[0]
    # Declare the third token it writes to be an end: nothing but ends may follow.
    stopped = np.asarray(generate(params, checkpoint.model, continued([prompt], 8, end=free[2]), 8))
    first = free.tolist().index(free[2])
    assert stopped[0].tolist() == free[: first + 1].tolist() + [free[2]] * (7 - first)


def test_max_new_tokens_is_dynamic(story):
    checkpoint, params, tokenizer, _ = story
    prompt = tokenizer("Tom")["input_ids"]
    traces = 0

    def counted(*args, **kwargs):
        nonlocal traces
        traces += 1
        return generate(*args, **kwargs)

    run = functools.partial(jax.jit(counted, static_argnums=(1, 3)), params, checkpoint.model)
    short, long = (np.asarray(run(continued([prompt], n), 16))[0] for n in (4, 12))
    assert traces == 1
    assert short[:4].tolist() == long[:4].tolist()
    assert (short[4:] == 2).all()
