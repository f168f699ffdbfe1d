"""The tokens that end a text, against transformers' `generate`."""

import json
import shutil

import jax
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.devices.mesh import make_mesh
from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example
from jevomerge.fitness.members import ask
from jevomerge.fitness.rollouts.generation import Generation
from jevomerge.tokenizers.load import ends_of_text, load_tokenizer, model_ends

PROMPTS = ["Once upon a time", "One day, a little", "Lily and Tom", "The big dog"]
NEW = 40
DOT, COMMA = 426, 432  # what stories are full of


def write(folder, name, **values):
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (old | values).items() if v is not ...}))


@pytest.fixture
def folder(stories260k, tmp_path):
    shutil.copytree(stories260k, tmp_path / "m")
    return tmp_path / "m"


def theirs(folder, tokenizer):
    """Greedy texts by transformers, which takes what ends them from the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts, ids = [], []
    for prompt in PROMPTS:
        tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
        new = model.generate(tokens, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0, tokens.shape[1] :]
        texts.append(tokenizer.decode(new, skip_special_tokens=True))
        ids.append(new.tolist())
    return texts, ids


def ours(folder, tokenizer):
    checkpoint = Checkpoint(folder)
    examples = [Example(p, "", tokenizer(p)["input_ids"], []) for p in PROMPTS]
    size = {"tokens_per_batch": 16384, "mesh": make_mesh(devices=jax.local_devices()[:1])}
    return ask(Generation(tokenizer, NEW), examples, checkpoint.load(), checkpoint.model, **size)[0]


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({"eos_token_id": [2, DOT]}, None, [2, DOT]),
        ({"eos_token_id": DOT}, None, [DOT]),
        ({"eos_token_id": ...}, None, [2]),  # the class's default
        ({"eos_token_id": 2}, {"eos_token_id": [COMMA, DOT]}, [COMMA, DOT]),
        ({"eos_token_id": [2, DOT]}, {"eos_token_id": 2}, [2]),  # generation_config.json alone counts
        ({"eos_token_id": [2, DOT]}, {"do_sample": False}, []),
    ],
)
def test_texts_end_where_generate_ends_them(folder, config, generation, ends):
    write(folder, "config.json", **config)
    if generation is not None:
        write(folder, "generation_config.json", **generation)
    tokenizer = load_tokenizer(folder)
    assert model_ends(folder) == ends
    texts, ids = theirs(folder, tokenizer)
    assert ours(folder, tokenizer) == texts
    early = [len(new) < NEW for new in ids]
    assert all(early) if {DOT, COMMA} & set(ends) else not any(early)


def test_the_tokenizers_own_end_counts_too(folder):
    write(folder, "config.json", eos_token_id=[DOT])
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(COMMA)
    assert ends_of_text(tokenizer) == [COMMA, DOT]
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt, text in zip(PROMPTS, ours(folder, tokenizer), strict=True):
        tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
        new = model.generate(tokens, max_new_tokens=NEW, do_sample=False, eos_token_id=[COMMA, DOT], pad_token_id=0)
        assert text == tokenizer.decode(new[0, tokens.shape[1] :], skip_special_tokens=True)


def test_a_model_may_say_what_its_tokenizer_does_not(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = None
    assert ends_of_text(tokenizer) == [2]
    tokenizer.model_ends = []
    with pytest.raises(InputError, match="no end-of-text token"):
        ends_of_text(tokenizer)


def test_a_padding_token_outside_the_models_vocabulary(folder):
    tokenizer = load_tokenizer(folder)
    expected = ours(folder, tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 512
    assert ours(folder, tokenizer) == expected


def test_a_larger_models_texts_end_as_its_language_part_says(folder):
    """In its `text_config`, or as the class of that."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    for inside, ends in (({"eos_token_id": [5, 6]}, [5, 6]), ({}, [2]), ({"model_type": "qwen2"}, [])):
        (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": inside}))
        assert model_ends(folder) == ends
        expected = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder)).eos_token_id
        assert ends == (expected if isinstance(expected, list) else [] if expected is None else [expected])


@pytest.mark.parametrize("value", ["2", [2, "3"], 2.0, {}, -1, True])
def test_ends_that_are_no_ids(folder, value):
    write(folder, "generation_config.json", eos_token_id=value)
    with pytest.raises(InputError, match=r"generation_config\.json: `eos_token_id: .* must be a token's id or a list"):
        load_tokenizer(folder)
