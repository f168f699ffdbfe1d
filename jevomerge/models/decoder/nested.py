"""The decoder of a larger model: where its config.json lies within that of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from jevomerge.errors import InputError
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.hf_config import DEFAULTS, read_config
from jevomerge.models.fields import Fields

OF_THE_FOLDER = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
# Of what predicts later tokens, which is the folder's, whoever's text is in it.
PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")


class Nesting(Protocol):
    """How a kind of larger models keeps the config.json of its decoder."""

    def alone(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The config.json that the decoder would have alone, of the whole one; InputError if there is none in it."""

    def around(self, values: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
        """The whole config.json with that of another decoder in it."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """As the object `text_config`, as nearly all kinds do."""

    absent: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what stands for it; its model_type always may

    def alone(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """That object; the head is tied if either of the two says so."""
        inside = values.get("text_config")
        inside = self.absent if inside is None else object_of(inside, where)
        family = inside.get("model_type", self.absent.get("model_type"))
        return {**inside, "model_type": family} | tied(values, inside)

    def around(self, values: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
        """With that object, and what is said of it outside."""
        inside = {key: value for key, value in text.items() if key not in OF_THE_FOLDER}
        inside = with_predictors(inside, values.get("text_config") or {})
        shared = [key for key in ("vocab_size", "tie_word_embeddings") if key in values and key in inside]
        return {**values, **{key: inside[key] for key in shared}, "text_config": inside}


@dataclasses.dataclass(frozen=True)
class Alone:
    """As the whole: a decoder beside which is only what predicts later tokens."""

    def alone(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """That very object."""
        del where
        return dict(values)

    def around(self, values: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
        """The other decoder's, with what is said of what predicts."""
        return with_predictors(text, values)


def with_predictors(text: Mapping[str, Any], folder: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a decoder, in which that of a folder says what predicts later tokens."""
    kept = {key: value for key, value in text.items() if key not in PREDICTORS}
    return kept | {key: folder[key] for key in PREDICTORS if key in folder}


def object_of(inside: Any, where: str) -> Mapping[str, Any]:
    """A `text_config` that is there."""
    if not isinstance(inside, Mapping):
        raise Fields({}, where).wrong("text_config", inside, "an object")
    return inside


def tied(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """`tie_word_embeddings` as any of these says it; {}: none says anything."""
    said = [value for part in parts if (value := part.get("tie_word_embeddings")) is not None]
    return {"tie_word_embeddings": next((value for value in said if value is not False), False)} if said else {}


def read_text(f: Fields, nesting: Nesting) -> Decoder:
    """The decoder of a larger model's config.json.

    Raises:
        InputError: for a family or a value that is not supported, by name.
    """
    f.seen |= {"text_config", "tie_word_embeddings"}
    values = nesting.alone(f.values, f.where)
    fields = Fields(values, f"{f.where}: text_config")
    if (family := fields.text("model_type")) not in DEFAULTS:
        raise InputError(f"{fields.where}: model_type `{family}` is not supported (only {', '.join(DEFAULTS)})")
    return Decoder(read_config(fields), values)
