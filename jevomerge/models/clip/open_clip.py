"""What CLIP's tensors are called by OpenCLIP, with which many were trained, and by transformers.

https://github.com/mlfoundations/open_clip; its names are those of OpenAI's own code.
"""

from __future__ import annotations

import re

LEAVES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OUTER = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("text_projection.weight", "visual_projection.weight")  # which it has the other way round
QKV = ("q_proj", "k_proj", "v_proj")  # which it keeps one above the other in one tensor
STACKS = {"text_model": "transformer", "vision_model": "visual.transformer"}


def open_clip_name(name: str) -> tuple[str, int | None]:
    """What OpenCLIP calls one of transformers' tensors, and which third of it this is; None: all of it.

    >>> open_clip_name("text_model.encoder.layers.3.self_attn.k_proj.bias")
    ('transformer.resblocks.3.attn.in_proj_bias', 1)

    Raises:
        KeyError: for a name that it has no word for.
    """
    if name in OUTER:
        return OUTER[name], None
    if (found := re.fullmatch(r"(\w+)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)) is None:
        raise KeyError(name)
    block, module = f"{STACKS[found[1]]}.resblocks.{found[2]}", found[3].removeprefix("self_attn.")
    if module in QKV:
        return f"{block}.attn.in_proj_{found[4]}", QKV.index(module)
    return f"{block}.{LEAVES[found[3]]}.{found[4]}", None


def open_clip_names_back(name: str) -> tuple[str, ...]:
    """The inverse: transformers' names for one of OpenCLIP's, three for the three in one; () for any other name."""
    if name in _back(OUTER):
        return (_back(OUTER)[name],)
    if (found := re.fullmatch(r"((?:visual\.)?transformer)\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name)) is None:
        return ()
    layer = f"{_back(STACKS)[found[1]]}.encoder.layers.{found[2]}"
    if found[3] == "attn.in_proj":
        return tuple(f"{layer}.self_attn.{module}.{found[4]}" for module in QKV)
    module = _back(LEAVES).get(found[3])
    return () if module is None else (f"{layer}.{module}.{found[4]}",)


def _back(table: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in table.items()}
