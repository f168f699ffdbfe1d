"""From a config.json to the model that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.hf_config import FAMILIES as DECODERS
from jevomerge.models.fields import Fields
from jevomerge.models.model import Language

Reader = Callable[[Fields], Language]


def _decoder(fields: Fields) -> Decoder:
    return Decoder(DECODERS[fields.need("model_type")](fields), fields.values)


FAMILIES: dict[str, Reader] = dict.fromkeys(DECODERS, _decoder)  # by model_type
ENTRY_POINTS = "jevomerge.models"  # where a package names a reader for a model_type of its own


def read_model(values: Mapping[str, Any], where: str = "config.json") -> Language:
    """The model a `config.json` describes.

    Raises:
        InputError: for a family, a key or a value that is not supported, by name.
    """
    fields = Fields(values, where)
    model = _reader(fields.need("model_type"), where)(fields)
    fields.expect("quantization_config")
    fields.refuse_rest()
    return model


def _reader(family: str, where: str) -> Reader:
    if family in FAMILIES:
        return FAMILIES[family]
    for entry in entry_points(group=ENTRY_POINTS, name=family):
        reader: Reader = entry.load()
        return reader
    raise InputError(f"{where}: model_type `{family}` is not supported (only {', '.join(FAMILIES)})")
