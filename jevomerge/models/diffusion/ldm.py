"""What the tensors of an image pipeline are called in a single file, as Civitai has it, and in diffusers' folders.

A single file keeps the names of the code that the model was trained with (latent diffusion, Rombach et al., 2022,
https://arxiv.org/abs/2112.10752; its second text encoder those of `models.clip.open_clip`), each part's below a prefix.
Names here are without prefixes; those of diffusers say a level and a block in it, those of the training code count the
blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class SingleFile(NamedTuple):
    """A kind of single file."""

    architecture: str  # as Stability AI's model specification has it
    prefixes: dict[str, str]  # of each part's names


UNET, VAE = "model.diffusion_model.", "first_stage_model."
SDXL = SingleFile(
    "stable-diffusion-xl-v1-base",
    {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",  # with OpenCLIP's names
    },
)
SD1 = SingleFile("stable-diffusion-v1", {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.transformer."})

OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """{diffusers' name: the training code's} of a U-Net.

    >>> unet_names(["down_blocks.0.resnets.1.norm2.bias", "up_blocks.0.upsamplers.0.conv.bias"]).values()
    dict_values(['input_blocks.2.0.out_layers.0.bias', 'output_blocks.2.1.conv.bias'])

    Raises:
        KeyError: with the first name that it has no word for.
    """
    names = list(names)
    depth = 1 + max((int(n.split(".")[3]) for n in names if re.match(r"down_blocks\.\d+\.resnets\.", n)), default=0)
    attending = {n.split(".")[1] for n in names if re.match(r"up_blocks\.\d+\.attentions\.", n)}
    return {name: _unet_name(name, depth, attending) for name in names}


def _unet_name(name: str, depth: int, attending: set[str]) -> str:
    """`depth`: residual blocks of a level on the way down; `attending`: the levels with attention on the way up."""
    module, _, leaf = name.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{leaf}"
    found = re.fullmatch(
        r"(down|mid|up)_block(?:s\.(\d+))?\.(resnet|attention|downsampler|upsampler)s\.(\d+)\.(.+)", name
    )
    if found is None:
        raise KeyError(name)
    way, level, kind, number, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "resnet":
        module, _, leaf = rest.rpartition(".")
        rest = f"{RESNET[module]}.{leaf}"
    if way == "mid":
        return f"middle_block.{1 if kind == 'attention' else 2 * number}.{rest}"
    first = level * (depth + 1)
    if kind == "downsampler":
        return f"input_blocks.{first + depth + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsampler":
        return f"output_blocks.{first + depth}.{2 if str(level) in attending else 1}.{rest}"
    place = f"input_blocks.{first + number + 1}" if way == "down" else f"output_blocks.{first + number}"
    return f"{place}.{int(kind == 'attention')}.{rest}"


def unet_names_back(names: Iterable[str]) -> dict[str, str]:
    """The inverse: {the training code's name: diffusers'}; what is no U-Net's is not in it."""
    names = list(names)
    halving = [int(n.split(".")[1]) for n in names if re.match(r"input_blocks\.\d+\.0\.op\.", n)]
    depth = min(halving, default=3) - 1
    found = {name: _unet_name_back(name, depth) for name in names}
    return {theirs: ours for theirs, ours in found.items() if ours is not None}


def _unet_name_back(name: str, depth: int) -> str | None:
    module, _, leaf = name.rpartition(".")
    if module in _back(OUTER):
        return f"{_back(OUTER)[module]}.{leaf}"
    if (found := re.fullmatch(r"(input|middle|output)_block(?:s\.(\d+)|)\.(\d)\.(.+)", name)) is None:
        return None
    way, block, place, rest = found[1], int(found[2] or 0), int(found[3]), found[4]
    module, _, leaf = rest.rpartition(".")
    resnet = _back(RESNET).get(module)
    rest = rest if resnet is None else f"{resnet}.{leaf}"
    if way == "middle":
        return f"mid_block.attentions.0.{rest}" if place == 1 else f"mid_block.resnets.{place // 2}.{rest}"
    level, number = divmod(block - (way == "input"), depth + 1)
    if module == "op":
        return f"down_blocks.{level}.downsamplers.0.conv.{leaf}"
    if module == "conv":
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    kind = "attentions" if resnet is None else "resnets"
    return f"{'down' if way == 'input' else 'up'}_blocks.{level}.{kind}.{number}.{rest}"


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """{diffusers' name: the training code's} of an autoencoder; its attention's matrices are 1x1 convolutions there.

    >>> vae_names(["decoder.up_blocks.3.resnets.0.conv1.bias"])
    {'decoder.up_blocks.3.resnets.0.conv1.bias': 'decoder.up.0.block.0.conv1.bias'}
    """
    names = list(names)
    levels = 1 + max((int(n.split(".")[2]) for n in names if n.startswith("decoder.up_blocks.")), default=3)
    return {name: _vae_name(name, levels) for name in names}


def _vae_name(name: str, levels: int) -> str:
    name = name.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", name):
        return f"{found[1]}.mid.attn_1.{VAE_ATTENTION[found[2]]}.{found[3]}"
    name = re.sub(r"\.down_blocks\.(\d)\.resnets\.", r".down.\1.block.", name)
    name = re.sub(r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample.", name)
    name = re.sub(r"\.up_blocks\.(\d)\.resnets\.", lambda m: f".up.{levels - 1 - int(m[1])}.block.", name)
    return re.sub(r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".up.{levels - 1 - int(m[1])}.upsample.", name)


def vae_names_back(names: Iterable[str]) -> dict[str, str]:
    """The inverse: {the training code's name: diffusers'}; what is no autoencoder's is not in it."""
    names = [name for name in names if re.match(r"(encoder|decoder|(post_)?quant_conv)\.", name)]
    levels = 1 + max((int(n.split(".")[2]) for n in names if n.startswith("decoder.up.")), default=3)
    return {name: _vae_name_back(name, levels) for name in names}


def _vae_name_back(name: str, levels: int) -> str:
    name = name.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")
    name = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
    if found := re.fullmatch(r"(\w+)\.mid\.attn_1\.(\w+)\.(\w+)", name):
        return f"{found[1]}.mid_block.attentions.0.{_back(VAE_ATTENTION).get(found[2], found[2])}.{found[3]}"
    name = re.sub(r"\.down\.(\d)\.block\.", r".down_blocks.\1.resnets.", name)
    name = re.sub(r"\.down\.(\d)\.downsample\.", r".down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"\.up\.(\d)\.block\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.resnets.", name)
    return re.sub(r"\.up\.(\d)\.upsample\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", name)


def _back(table: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in table.items()}
