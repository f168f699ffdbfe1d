"""What stands around a language model in a folder of several parts: a vision-language model, say.

Such a folder's config.json holds that of a language model, and among its tensors are those of one below a prefix. That
part is opened like a model alone; all the rest, whatever it is, is only ever carried along: the tensors to the bit,
config.json around that of another language model, the processor's files. In a folder of a language model alone the rest
is what predicts later tokens (MTP): `mtp`, or layers behind the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.safetensors_file import StoredTensor
from jevomerge.errors import InputError
from jevomerge.models.decoder.nested import Alone, Nesting

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class Frame:
    """The other parts of a folder, and where its language model is among them."""

    folder: Path
    json: Mapping[str, Any]  # its config.json
    nesting: Nesting  # where in it that of its language model is
    prefix: str  # what stands here for the "model." of a language model alone
    tensors: Mapping[str, StoredTensor]  # those that are not the language model's, by their names
    eyes: Mapping[str, str] = field(default_factory=dict)  # {tensor of a `Sighted` model: its name among these}
    depth: int = 0  # how many layers its language model has, if some of these are layers behind the last; else 0

    def name(self, alone: str) -> str:
        """What the tensor of a language model, or of its eyes, is called in the folder."""
        if alone in self.eyes:
            return self.eyes[alone]
        if alone == HEAD:
            return f"language_model.{HEAD}" if self.prefix == "language_model.model." else HEAD
        return alone if self.prefix == "model." else self.prefix + alone.removeprefix("model.")

    def around(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """The folder's config.json around the config.json of another language model."""
        return self.nesting.around(self.json, text)

    def carried(self, names: Iterable[str]) -> dict[str, StoredTensor]:
        """Its tensors but those of a model that has tensors of these names, behind whose last layer layers are."""
        own = set(map(self.name, names))
        if not self.depth:
            return {name: stored for name, stored in self.tensors.items() if name not in own}
        further = 1 + max(int(found[1]) for name in own if (found := LAYER.match(name))) - self.depth

        def moved(found: re.Match[str]) -> str:
            return f"model.layers.{int(found[1]) + further}."

        return {LAYER.sub(moved, name): stored for name, stored in self.tensors.items()}

    def vocabularies(self, rows: int) -> list[str]:
        """Those of its tensors that have a row for each of so many tokens."""
        ends = (EMBEDDING, "head.weight")
        return [name for name, x in self.tensors.items() if name.endswith(ends) and x.shape[:1] == (rows,)]

    def told(self, names: Iterable[str], lender: str) -> list[str]:
        """A sentence on what is carried to a model with tensors of these names; []: nothing is."""
        parts = ", ".join(parts_of(carried := self.carried(names)))
        return [f"{parts}: all {len(carried)} tensors are those of {lender}, unchanged"] if carried else []

    @property
    def files(self) -> list[Path]:
        """Those that go with its parts."""
        return [path for name in PROCESSOR_FILES if (path := self.folder / name).exists()]


def parts_of(names: Iterable[str]) -> list[str]:
    """What tensors belong to, as far as their names tell: vision_tower, mtp, layers.46, ..."""
    found = (re.match(r"(?:model\.)?(layers\.\d+|[^.]+)", name) for name in names)
    return list(dict.fromkeys(match[1] for match in found if match))


def predictors_of(
    values: Mapping[str, Any], depth: int, folder: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[Frame | None, dict[str, StoredTensor]]:
    """What predicts later tokens beside a language model of so many layers, or None; and the model's own tensors."""
    count = values.get("num_nextn_predict_layers") or 0
    behind = [rf"model\.layers\.{depth + i}" for i in range(count if isinstance(count, int) else 0)]
    found = {name: x for name, x in tensors.items() if re.match(rf"({'|'.join(['mtp', *behind])})\.", name)}
    if not found:
        return None, dict(tensors)
    frame = Frame(folder, values, Alone(), "model.", found, depth=0 if "mtp" in parts_of(found) else depth)
    return frame, {name: x for name, x in tensors.items() if name not in found}


def frame_of(
    values: Mapping[str, Any], nesting: Nesting, folder: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[Frame, dict[str, StoredTensor]]:
    """A folder's frame, and the tensors of its language part by the names that they would have alone.

    Raises:
        InputError: if it is not to be seen which these are.
    """
    prefix = text_prefix(tensors, folder)
    frame = Frame(folder, values, nesting, prefix, {})
    own = {frame.name(HEAD): HEAD}
    own |= {name: f"model.{name.removeprefix(prefix)}" for name in tensors if _in_text(name, prefix)}
    rest = {name: stored for name, stored in tensors.items() if name not in own}
    return Frame(folder, values, nesting, prefix, rest), {own[name]: tensors[name] for name in tensors if name in own}


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
