"""Beam search and the penalty of repetition against transformers' `generate`, on a trained model and random ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.fitness.batches import Layout
from jevomerge.fitness.rollouts.beams import BeamSearch, beam_search, writing
from jevomerge.fitness.rollouts.generation import Generation, Prompts, generate
from jevomerge.fitness.schema import Task
from jevomerge.models.route import Route
from jevomerge.problems.problem import Instance
from jevomerge.schema import Origin, validate
from jevomerge.tokenizers.load import load_tokenizer
from tests.families import make
from tests.unit.fitness.rollouts.test_generation import PROMPTS, STORIES, left_pad

ROOM = 24
MORE = ["She was very, very sad. Her mom", "Ben and Sue like to play with", "The sun"]
EVERYWHERE = [(2, 1.0, 1), (5, 1.5, 2)]  # beams, penalty, how many tokens end a text
ELSEWHERE = [(k, p, n) for k in (2, 3, 4, 5) for p in (1.0, 1.5, 0.7) for n in (1, 2, 3) if (k, p, n) not in EVERYWHERE]


@functools.partial(jax.jit, static_argnums=(1, 3))
def decode(params, model, batch, beams, route=None):
    instance = Instance(params, route=route)
    return generate(instance, model, batch, ROOM) if beams == 1 else beam_search(instance, model, batch, ROOM, beams)


def check(reference, params, model, prompts, beams, penalty, ends, news=(1, ROOM)):
    """The batch, as transformers decodes it, with the same padding on the left."""
    tokens, valid = left_pad(prompts)
    given = {
        "input_ids": torch.tensor(np.asarray(tokens), dtype=torch.long),
        "attention_mask": torch.tensor(np.asarray(valid), dtype=torch.long),
    }
    strength = None if penalty == 1.0 else jnp.float32(penalty)
    lengths = set()
    for new in news:
        found = decode(params, model, Prompts(tokens, valid, jnp.int32(new), jnp.asarray(ends), None, strength), beams)
        expected = reference.generate(
            **given, max_new_tokens=new, do_sample=False, num_beams=beams, repetition_penalty=penalty,
            pad_token_id=0, eos_token_id=ends,
        )[:, tokens.shape[1] :].tolist()  # fmt: skip
        for row, text in zip(found.tolist(), expected, strict=True):
            length = next((i for i, token in enumerate(text, 1) if token in ends), len(text))
            assert row == text[:length] + [ends[0]] * (ROOM - length)
            lengths.add(length)
    return lengths


@pytest.fixture(scope="module")
def story():
    checkpoint = Checkpoint(STORIES)
    return checkpoint.model, checkpoint.load(), AutoModelForCausalLM.from_pretrained(STORIES).eval()


def check_story(story, beams, penalty, count):
    model, params, reference = story
    tokenizer = load_tokenizer(STORIES)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS + MORE]
    ends = [2, *(tokenizer.convert_tokens_to_ids(token) for token in (".", ","))][:count]
    return check(reference, params, model, prompts, beams, penalty, ends)


def test_greedy_with_a_penalty(story):
    plain, penalised = (check_story(story, 1, penalty, 2) for penalty in (1.0, 1.5))
    assert len(plain | penalised) > 3  # texts do end


@pytest.mark.parametrize(("beams", "penalty", "count"), EVERYWHERE)
def test_beams_of_a_trained_model(story, beams, penalty, count):
    assert (len(check_story(story, beams, penalty, count)) > 2) == (count > 1)


@pytest.mark.slow
@pytest.mark.parametrize(("beams", "penalty", "count"), ELSEWHERE)
def test_beams_of_a_trained_model_in_every_way(story, beams, penalty, count):
    check_story(story, beams, penalty, count)


@pytest.mark.parametrize(
    ("family", "beams", "penalty"),
    [
        ("mistral", 4, 1.3),  # beyond its sliding window
        *(pytest.param(f, k, p, marks=pytest.mark.slow) for f in ("gemma3", "qwen3") for k, p in ((2, 1.0), (5, 1.5))),
    ],
)
def test_beams_of_a_random_model(family, beams, penalty, tmp_path):
    reference = make(family, tmp_path / "m")
    checkpoint = Checkpoint(tmp_path / "m")
    prompts = [[5, 9, 11, 40, 3, 22, 8], [7, 61, 30], [2]]
    check(reference, checkpoint.load(), checkpoint.model, prompts, beams, penalty, [1, 17, 33, 50])


def test_beams_along_a_path(story):
    """Every hop has keys of its own, which go where their beam goes."""
    model, params, _ = story
    depth = len(model.kinds)
    batch = Prompts(*left_pad([[1, 403], [1, 20, 30, 5]]), jnp.int32(9), jnp.asarray([2, 3]), None, jnp.float32(1.5))
    straight = Route.of(range(depth))
    np.testing.assert_array_equal(decode(params, model, batch, 5, straight), decode(params, model, batch, 5))


# --- the rollout --------------------------------------------------------------------------------------------


def task(**more):
    data = {"name": "t", "search": "s.jsonl", "heldout": "h.jsonl", "prompt": "{q}", "answer": "{a}"}
    return {**data, "score": "generation", "extract": "exact", **more}


def test_a_task_says_how_it_is_decoded():
    tokenizer = load_tokenizer(STORIES)
    given = {"decode": {"beams": 5, "repetition_penalty": 1.5}, "max_new_tokens": 7, "stop": ["."]}
    rollouts = [writing(Task.model_validate(task(**more)), tokenizer) for more in ({}, given)]
    assert [type(r) for r in rollouts] == [Generation, BeamSearch]
    greedy, beams = rollouts
    assert (greedy.penalty, beams.penalty, beams.beams, beams.max_new_tokens) == (1.0, 1.5, 5, 7)
    assert beams.label("t", Layout(2, 8, 7)) == "generate t by 5 beams, 2 x 8 tokens + 7"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "likelihood", "extract": None, "decode": {"beams": 2}}, "score: likelihood generates none"),
        ({"decode": {"beams": 0}}, "decode.beams"),
        ({"decode": {"repetition_penalty": 0.0}}, "decode.repetition_penalty"),
        ({"decode": {"num_beams": 5}}, "num_beams"),
    ],
)
def test_what_cannot_be_decoded_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        validate(Task, task(**change), Origin(None))
