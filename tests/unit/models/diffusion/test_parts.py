"""Tables of the parts of SDXL as published: names and shapes by diffusers and transformers on the meta device."""

import math

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from jevomerge.models.diffusion.parts import read_config, shapes, specs
from jevomerge.models.diffusion.pipeline import Pipeline
from jevomerge.schema import Notes
from tests.diffusion import PUBLISHED


def theirs(part, values):
    with torch.device("meta"):
        if part == "text_encoder_2":
            return CLIPTextModelWithProjection(CLIPTextConfig(**values))
        return (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(values)


@pytest.mark.parametrize(
    ("part", "parameters"), [("unet", 2_567_463_684), ("vae", 83_653_863), ("text_encoder_2", 694_659_840)]
)
def test_tables_of_sdxl(part, parameters):
    notes, values = Notes(), PUBLISHED[f"{part}/config.json"]
    ours = shapes(read_config(part, values, "config.json", notes))
    assert ours == {name: tuple(p.shape) for name, p in theirs(part, values).state_dict().items()}
    assert sum(map(math.prod, ours.values())) == parameters
    assert not list(notes)


def test_what_stands_in_a_stack_and_in_a_component():
    table = specs(read_config("unet", PUBLISHED["unet/config.json"], "config.json"))
    stacks = {spec.block: spec.leading for spec in table if spec.block}
    assert len(stacks) == 11
    assert stacks["up_blocks.0.attentions.2.transformer_blocks"] == (10,)
    count = {c: sum(s.count for s in table if s.component == c) for c in {s.component for s in table}}
    assert count == {
        "self_attention": 350,  # 70 blocks, 4 matrices and a bias; with the next Sakana's group `attn`, of 700
        "cross_attention": 350,
        "mlp": 280,
        "norms": 512,
        "embeddings": 42,
        "conv": 146,
    }


def test_sdxl_as_published():
    model = Pipeline.read(PUBLISHED)
    assert (model.pooled_from, model.zeros_for_empty) == (2, True)
    assert model.latents(1024, 768) == (128, 96, 4)
    assert len(model.specs) < 1000  # leaves: blocks of a transformer are one
    assert sum(s.count for s in model.specs) == 1680 + 248 + 196 + 517
    assert {s.template.split(".")[0] for s in model.specs} == {"unet", "vae", "text_encoder", "text_encoder_2"}
