"""config.json of Qwen2.5-VL -> everything that decides what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.hf_config import DEFAULTS as DECODERS
from jevomerge.models.decoder.nested import OF_THE_FOLDER, object_of, tied
from jevomerge.models.fields import Fields
from jevomerge.models.vision.config import ACTIVATIONS, MOST_LAYERS

IMAGE, VIDEO = 151655, 151656  # tokens by default
# What transformers' classes take for keys that are absent: of the decoder, which is a Qwen2's, and of the tower.
TEXT: Mapping[str, Any] = {
    "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "sliding_window": 4096, "max_window_layers": 80, "eos_token_id": 151645,
}  # fmt: skip
TOWER: Mapping[str, Any] = {
    "depth": 32, "hidden_size": 3584, "hidden_act": "silu", "intermediate_size": 3420, "num_heads": 16,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
SECTIONS = "mrope_section"
OUTSIDE = (  # of a flat file, what is not the decoder's
    "model_type", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "vision_token_id",
)  # fmt: skip
ROPES = ("rope_scaling", "rope_parameters")  # its two spellings; transformers prefers the first


@dataclasses.dataclass(frozen=True)
class TextBeside:
    """The decoder's keys, a Qwen2's: in `text_config`, or as in the first files beside all others.

    What its rope says of pictures (`mrope_section`) is the whole's and stays there when another decoder comes: without
    pictures a Qwen2 computes the same.
    """

    def alone(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """As a Qwen2's, with all that its own class would take for keys that are absent."""
        inside = values.get("text_config")
        if inside is None:
            inside = {key: value for key, value in values.items() if key not in OUTSIDE}
        found = _with_theta({**TEXT, **object_of(inside, where), "model_type": "qwen2"}, 1e6) | tied(values, inside)
        for key in ROPES:
            if isinstance(rope := found.get(key), Mapping):
                said = {name: value for name, value in rope.items() if name != SECTIONS and value != "mrope"}
                found[key] = said or None
        return found

    def around(self, values: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
        """Where the file has them; of a file that has them in both places in `text_config` alone, which is read."""
        inside = {key: value for key, value in text.items() if key not in OF_THE_FOLDER}
        defaults = {**DECODERS["qwen2"], "tie_word_embeddings": False}
        inside = _with_theta({**defaults, **inside, "model_type": "qwen2_5_vl_text"}, 1e4)
        key = "rope_scaling" if inside.get("rope_scaling") or not inside.get("rope_parameters") else "rope_parameters"
        inside[key] = {**(inside.get(key) or {"type": "mrope"}), SECTIONS: list(sections(values))}
        nested = values.get("text_config") is not None
        before = values["text_config"] if nested else values
        rest = {k: v for k, v in values.items() if k in (*OUTSIDE, *OF_THE_FOLDER) or k not in before}
        if nested:
            return {**rest, "tie_word_embeddings": inside["tie_word_embeddings"], "text_config": inside}
        return {**rest, **{k: v for k, v in inside.items() if k != "model_type"}}


def _with_theta(text: dict[str, Any], theta: float) -> dict[str, Any]:
    """A decoder's keys with the base of its rope, if none is said."""
    said = [text, *(rope for key in ROPES if isinstance(rope := text.get(key), Mapping))]
    return text if any(part.get("rope_theta") is not None for part in said) else text | {"rope_theta": theta}


def sections(values: Mapping[str, Any]) -> Any:
    """`mrope_section` as it stands: how many pairs of a head turn by the time, row and column of a feature."""
    text = values if values.get("text_config") is None else values["text_config"]
    rope: Mapping[str, Any] = next((text[key] for key in ROPES if text.get(key)), {})
    return rope.get(SECTIONS, [16, 24, 24])


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """What decides the function of the tower and of what joins it to the decoder; hashable, a static jit argument."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str  # as in `models.layers.ACTIVATIONS`
    patch_size: int
    frames: int  # a picture is a film of so many that are equal
    merge: int  # so many patches along each side become one feature
    window: int  # patches along each side of a window
    full: tuple[int, ...]  # blocks that see the whole picture
    width: int  # of the decoder
    theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """H."""
        return self.hidden_size // self.num_attention_heads


def read_tower(f: Fields) -> TowerConfig:
    """A `vision_config`.

    Raises:
        InputError: for a value that is not supported, by name.
    """
    f.defaults = TOWER
    f.expect("in_channels", 3)
    f.expect("hidden_act", *ACTIVATIONS)
    rope = f.table("rope_parameters") or Fields({}, f.where)
    rope.defaults = {"rope_theta": 10000.0}
    rope.expect("rope_type", "axial", "default")
    for key in ("in_chans", "spatial_patch_size", "tokens_per_second"):  # which no class reads, or of videos
        f.get(key)
    patch, merge, depth = f.integer("patch_size"), f.integer("spatial_merge_size"), f.integer("depth", MOST_LAYERS)
    full = f.get("fullatt_block_indexes")
    if not isinstance(full, list) or not all(type(i) is int and 0 <= i < depth for i in full):
        raise InputError(f"{f.where}: `fullatt_block_indexes: {full}`: the tower has {depth} blocks")
    config = TowerConfig(
        hidden_size=f.integer("hidden_size"),
        intermediate_size=f.integer("intermediate_size"),
        num_hidden_layers=depth,
        num_attention_heads=f.integer("num_heads"),
        hidden_act=ACTIVATIONS[f.text("hidden_act")],
        patch_size=patch,
        frames=f.integer("temporal_patch_size"),
        merge=merge,
        window=f.integer("window_size") // merge // patch * merge,
        full=tuple(full),
        width=f.integer("out_hidden_size"),
        theta=rope.number("rope_theta"),
    )
    if config.hidden_size % (4 * config.num_attention_heads):
        raise f.wrong("hidden_size", config.hidden_size, f"a multiple of 4 x num_heads, {config.num_attention_heads}")
    if not config.window:
        raise f.wrong("window_size", f.get("window_size"), f"at least {merge} patches of {patch}")
    return config
