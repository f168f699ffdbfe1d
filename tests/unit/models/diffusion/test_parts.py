"""Tables of the parts of SDXL as published: names and shapes by diffusers and transformers on the meta device."""

import math

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from jevomerge.models.diffusion.parts import read_config, shapes, specs
from jevomerge.schema import Notes

UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "time_embedding_dim": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "sample_size": 1024,
}
TEXT = {
    "architectures": ["CLIPTextModelWithProjection"],
    "model_type": "clip_text_model",
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}


def theirs(part, values):
    with torch.device("meta"):
        if part == "text_encoder_2":
            return CLIPTextModelWithProjection(CLIPTextConfig(**values))
        return (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(values)


@pytest.mark.parametrize(
    ("part", "values", "parameters"),
    [("unet", UNET, 2_567_463_684), ("vae", VAE, 83_653_863), ("text_encoder_2", TEXT, 694_659_840)],
)
def test_tables_of_sdxl(part, values, parameters):
    notes = Notes()
    ours = shapes(read_config(part, values, "config.json", notes))
    assert ours == {name: tuple(p.shape) for name, p in theirs(part, values).state_dict().items()}
    assert sum(map(math.prod, ours.values())) == parameters
    assert not list(notes)


def test_what_stands_in_a_stack_and_in_a_component():
    table = specs(read_config("unet", UNET, "config.json"))
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
