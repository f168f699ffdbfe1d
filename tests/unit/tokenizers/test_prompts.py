"""What text encoders read of prompts, against what diffusers gives them."""

import dataclasses
import json

import numpy as np
import pytest

from jevomerge.errors import InputError
from jevomerge.models.diffusion.pipeline import Pipeline
from jevomerge.tokenizers.prompts import TOKENIZERS, PromptReader
from tests.diffusion import EOS, files_of, make

PROMPTS = ["柴犬", "A cat  on a hill, 4K!", "", "naïve " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    make(folder).save_pretrained(folder / "saved")
    return folder / "saved"


def reader(folder, change=lambda model: model):
    return PromptReader(change(Pipeline.read(files_of(folder))), {name: folder / name for name in TOKENIZERS})


def theirs(folder, prompts):
    from diffusers import StableDiffusionXLPipeline

    seen, pipe = [], StableDiffusionXLPipeline.from_pretrained(folder)
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].numpy()))
    pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    return seen


def test_prompts_are_read_as_by_diffusers(folder):
    read = reader(folder)
    for found, expected in zip(read(PROMPTS), theirs(folder, PROMPTS), strict=True):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)
    assert [note for note in read.notes if "naïve" in note and "has 182 tokens and is cut" in note] == list(read.notes)
    assert len(list(read.notes)) == 2  # one for each encoder


def test_an_encoder_may_read_less_than_its_tokenizer_makes(folder):
    def short(model):
        return dataclasses.replace(
            model, text_encoders=tuple(dataclasses.replace(c, max_position_embeddings=9) for c in model.text_encoders)
        )

    tokens = reader(folder, short)(["abcdefghijk", "ab"])[0]
    assert tokens.shape == (2, 9)
    assert (tokens[:, -1] == EOS).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 300}, "its tokenizer has a token 513, its text encoder 300"),
        ({"eos_token_id": 7}, "tokenizer_2: its tokenizer ends no text with the token 7"),
    ],
)
def test_a_tokenizer_of_another_encoder_is_refused(folder, changes, message):
    def other(model):
        encoders = tuple(dataclasses.replace(c, **changes) for c in model.text_encoders)
        return dataclasses.replace(model, text_encoders=encoders)

    with pytest.raises(InputError, match=message):
        reader(folder, other)(["a cat"])


def test_what_is_missing_is_said(folder, tmp_path):
    model = Pipeline.read(files_of(folder))
    with pytest.raises(InputError, match="has no tokenizer_2: its prompts cannot be read"):
        PromptReader(model, {"tokenizer": folder / "tokenizer"})
    for name in TOKENIZERS:
        (tmp_path / name).mkdir()
        for path in (folder / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    config = tmp_path / "tokenizer_2" / "tokenizer_config.json"
    values = json.loads(config.read_text())
    del values["pad_token"]
    config.write_text(json.dumps(values | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(InputError, match="tokenizer_2: its tokenizer has no `pad_token`"):
        PromptReader(model, {name: tmp_path / name for name in TOKENIZERS})(["a"])
