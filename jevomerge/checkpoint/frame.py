"""What stands around a language model in a folder of several parts: a vision-language model, say.

Such a folder's config.json has a `text_config`, and its tensors those of a language model below a prefix. That part is
opened like a model alone; all the rest, whatever it is, is only ever carried along: the tensors to the bit, config.json
with another `text_config`, the processor's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.safetensors_file import StoredTensor
from jevomerge.errors import InputError

# The model_type of a `text_config` that names none, and of folders without one, as transformers' classes have it.
TEXT = {
    "llava": "llama", "llava_next": "llama", "idefics3": "llama", "smolvlm": "llama", "mistral3": "mistral",
    "gemma3": "gemma3_text",
}  # fmt: skip
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
OF_THE_FOLDER = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


@dataclass(frozen=True, eq=False)
class Frame:
    """The other parts of a folder, and where its language model is among them."""

    folder: Path
    json: Mapping[str, Any]  # its config.json
    prefix: str  # what stands here for the "model." of a language model alone
    tensors: Mapping[str, StoredTensor]  # those that are not the language model's, by their names

    def name(self, alone: str) -> str:
        """What the tensor of a language model is called in the folder."""
        if alone == HEAD:
            return f"language_model.{HEAD}" if self.prefix == "language_model.model." else HEAD
        return self.prefix + alone.removeprefix("model.")

    def around(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """The folder's config.json around the config.json of another language model."""
        inside = {key: value for key, value in text.items() if key not in OF_THE_FOLDER}
        shared = [key for key in ("vocab_size", "tie_word_embeddings") if key in self.json and key in inside]
        return {**self.json, **{key: inside[key] for key in shared}, "text_config": inside}

    @property
    def parts(self) -> list[str]:
        """What its tensors belong to, as far as their names tell: vision_tower, ..."""
        return list(dict.fromkeys(name.removeprefix("model.").split(".")[0] for name in self.tensors))

    @property
    def files(self) -> list[Path]:
        """Those that go with its parts."""
        return [path for name in PROCESSOR_FILES if (path := self.folder / name).exists()]


def text_config(values: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """The config.json that the language part of a folder would have alone; None where it is alone.

    Raises:
        InputError: for a `text_config` that is no object.
    """
    inside, whole = values.get("text_config"), str(values.get("model_type"))
    if inside is None and whole not in TEXT:
        return None
    inside = {} if inside is None else inside
    if not isinstance(inside, Mapping):
        raise InputError(f"{where}: `text_config` must be an object; copy or download the file again")
    family = inside.get("model_type", TEXT.get(whole))
    tied = [part["tie_word_embeddings"] for part in (values, inside) if part.get("tie_word_embeddings") is not None]
    return {**inside, "model_type": family} | ({"tie_word_embeddings": any(tied)} if tied else {})


def frame_of(
    values: Mapping[str, Any], folder: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[Frame, dict[str, StoredTensor]]:
    """A folder's frame, and the tensors of its language part by the names that they would have alone.

    Raises:
        InputError: if it is not to be seen which these are.
    """
    prefix = text_prefix(tensors, folder)
    frame = Frame(folder, values, prefix, {})
    own = {frame.name(HEAD): HEAD}
    own |= {name: f"model.{name.removeprefix(prefix)}" for name in tensors if _in_text(name, prefix)}
    rest = {name: stored for name, stored in tensors.items() if name not in own}
    return Frame(folder, values, prefix, rest), {own[name]: tensors[name] for name in tensors if name in own}


def text_prefix(names: Iterable[str], folder: Path) -> str:
    """What the names of a language model's tensors begin with, its head's aside: where its embeddings are."""
    found = [name.removesuffix(EMBEDDING) for name in names if name.endswith(f".{EMBEDDING}")]
    if len(found) != 1:
        what = "no language model" if not found else f"several language models ({', '.join(sorted(found))})"
        raise InputError(f"{folder}: its tensors show {what}; there must be one {EMBEDDING} among them")
    return found[0]


def _in_text(name: str, prefix: str) -> bool:
    """Whether a tensor belongs to the decoder below a prefix; "model." is one beside which others lie."""
    return name.startswith((f"{prefix}layers.", f"{prefix}norm.", f"{prefix}{EMBEDDING}"))
