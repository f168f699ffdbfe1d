"""The words that users of U-Nets have for where a tensor stands and what it is: IN04, M00, OUT11; attn, conv."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from jevomerge.models.diffusion.ldm import unet_names

WAYS = {"input": "IN{:02d}", "middle": "M00", "output": "OUT{:02d}"}
BASE, VAE = "BASE", "VAE"  # BASE: the text encoders, and what of a U-Net is in none of its blocks
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")  # in the names of what Sakana's merges call `attn`; all else is `conv`


def mbw_blocks(count: int) -> list[str] | None:
    """The blocks that so many numbers of a block-weight string are for: 20 are SDXL's, 26 SD 1's; None: no model's."""
    depth = {20: 9, 26: 12}.get(count)
    if depth is None:
        return None
    return [BASE, *(f"IN{i:02d}" for i in range(depth)), "M00", *(f"OUT{i:02d}" for i in range(depth))]


def unet_blocks(names: Iterable[str]) -> dict[str, str]:
    """The block of each tensor of a U-Net, by diffusers' names.

    >>> unet_blocks(["mid_block.resnets.0.norm1.bias", "up_blocks.0.resnets.2.conv1.bias", "conv_out.bias"]).values()
    dict_values(['M00', 'OUT02', 'BASE'])
    """
    found = {}
    for name, theirs in unet_names(names).items():
        at = re.match(r"(?P<way>input|middle|output)_blocks?\.(?P<number>\d+)", theirs)
        found[name] = WAYS[at["way"]].format(int(at["number"])) if at else BASE
    return found


def sakana(name: str) -> str:
    """Which of the two groups of Sakana's merges (EvoSDXL-JP, 2024) a tensor is in."""
    return "attn" if any(part in name for part in ATTENTION) else "conv"


def read_mbw(text: str) -> dict[str, float]:
    """A block-weight string, as web UIs' extensions have it -> {block: its number}.

    >>> read_mbw("0," * 19 + "0.5")["OUT08"]
    0.5

    Raises:
        ValueError: for anything else.
    """
    words = [word.strip() for word in text.split(",")]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    blocks = mbw_blocks(len(numbers))
    if blocks is None:
        raise ValueError(
            f"`{text:.40}` is not the 20 numbers of SDXL's blocks or the 26 of SD 1's, with commas between"
        )
    return dict(zip(blocks, numbers, strict=True))


def write_mbw(values: Mapping[str, float]) -> str | None:
    """The inverse; None if these are not all blocks of a kind of model."""
    blocks = mbw_blocks(len(values))
    return ",".join(f"{values[b]}" for b in blocks) if blocks is not None and set(blocks) == values.keys() else None
