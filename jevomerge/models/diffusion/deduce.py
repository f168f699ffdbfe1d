"""What a part's config.json would say, for parts in single files, which have none: read off the shapes of its tensors.

What shapes do not show is what all published models of the kind have: how many channels an attention head has, how many
groups a norm, which activation a text encoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

GROUPS = 32  # of norms; of small models as many as divide their channels
HEAD = 64  # channels of an attention head but for Stable Diffusion 1's, of which there are 8
SD1_CONTEXT, SD1_HEADS = 768, 8
POOLED = 1280  # of SDXL's second text encoder
SIZES = 6  # numbers about a picture's size that SDXL's U-Net is told
SCALING = {True: 0.13025, False: 0.18215}  # of SDXL's latents, of others'


def deduced(part: str, parts: Mapping[str, Shapes]) -> dict[str, Any]:
    """The config.json of one of the `parts` of a pipeline, {part: {name: shape}}, by diffusers' names."""
    shapes = parts[part]
    if part == "unet":
        projection = parts.get("text_encoder_2", {}).get("text_projection.weight", (POOLED,))
        return _unet(shapes, projection[0])
    if part == "vae":
        return _vae(shapes, "unet" in parts and "add_embedding.linear_1.weight" in parts["unet"])
    return _text(shapes, second=part == "text_encoder_2")


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers stand at the group of a pattern at the start of names, the first being 0."""
    found = (re.match(pattern, name) for name in names)
    return 1 + max((int(m[1]) for m in found if m), default=-1)


def _unet(shapes: Shapes, pooled: int) -> dict[str, Any]:
    levels = range(max(1, _count(shapes, r"down_blocks\.(\d+)\.")))
    channels = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels]
    depths = [_count(shapes, rf"down_blocks\.{i}\.attentions\.0\.transformer_blocks\.(\d+)\.") for i in levels]
    back = [_count(shapes, rf"up_blocks\.{i}\.attentions\.0\.transformer_blocks\.(\d+)\.") for i in levels]
    middle = "mid_block.attentions.0.transformer_blocks"
    if not depths[-1]:  # a level without attention, but the middle, which is like it, has some
        depths[-1] = _count(shapes, rf"{middle}\.(\d+)\.")
    context = shapes[f"{middle}.0.attn2.to_k.weight"][1]
    told = shapes.get("add_embedding.linear_1.weight")
    attending = [f"down_blocks.{i}.attentions.0.proj_in.weight" in shapes for i in levels]
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "down_block_types": ["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attending],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in back],
        "block_out_channels": channels,
        "layers_per_block": [_count(shapes, rf"down_blocks\.{i}\.resnets\.(\d+)\.") for i in levels],
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "attention_head_dim": [SD1_HEADS if context == SD1_CONTEXT else max(c // HEAD, 1) for c in channels],
        "cross_attention_dim": context,
        "use_linear_projection": len(shapes["mid_block.attentions.0.proj_in.weight"]) == 2,
        "norm_num_groups": math.gcd(GROUPS, *channels),
        "addition_embed_type": None if told is None else "text_time",
        "addition_time_embed_dim": None if told is None else (told[1] - pooled) // SIZES,
        "projection_class_embeddings_input_dim": None if told is None else told[1],
    }


def _vae(shapes: Shapes, sdxl: bool) -> dict[str, Any]:
    levels = range(max(1, _count(shapes, r"encoder\.down_blocks\.(\d+)\.")))
    channels = [shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "norm_num_groups": math.gcd(GROUPS, *channels),
        "scaling_factor": SCALING[sdxl],
    }


def _text(shapes: Shapes, second: bool) -> dict[str, Any]:
    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    projection = shapes.get("text_projection.weight")
    return {
        "architectures": ["CLIPTextModel" if projection is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(width // HEAD, 1),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "hidden_act": "gelu" if second else "quick_gelu",
        "eos_token_id": vocabulary - 1,
        **({} if projection is None else {"projection_dim": projection[0]}),
    }
