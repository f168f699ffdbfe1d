"""The decoder of a larger model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.hf_config import DEFAULTS, read_config
from jevomerge.models.fields import Fields


def read_text(f: Fields, absent: Mapping[str, Any] | None = None) -> Decoder:
    """The decoder of a config.json's `text_config`, or of `absent`; its head is tied if either of the two says so.

    Without a model_type it is a Llama.

    Raises:
        InputError: for a family or a value that is not supported, by name.
    """
    table = f.table("text_config")
    values = {"model_type": "llama"} | dict((absent or {}) if table is None else table.values)
    fields = Fields(values, f"{f.where}: text_config")
    if (family := fields.text("model_type")) not in DEFAULTS:
        raise InputError(f"{fields.where}: model_type `{family}` is not supported (only {', '.join(DEFAULTS)})")
    config = read_config(fields)
    tied = f.flag("tie_word_embeddings") or config.tie_word_embeddings
    config = dataclasses.replace(config, tie_word_embeddings=tied)
    return Decoder(config, {**values, "tie_word_embeddings": tied})
