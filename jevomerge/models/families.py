"""From a config.json to the model that it describes."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.hf_config import DEFAULTS, read_config
from jevomerge.models.decoder.nested import Nesting, TextConfig
from jevomerge.models.fields import Fields, refuse_quantised
from jevomerge.models.idefics3 import idefics3
from jevomerge.models.idefics3.idefics3 import Idefics3
from jevomerge.models.llava import config as llava
from jevomerge.models.llava.llava import Llava
from jevomerge.models.model import Language
from jevomerge.models.qwen2_5_vl import qwen2_5_vl
from jevomerge.models.qwen2_5_vl.qwen2_5_vl import Qwen25VL
from jevomerge.models.vision.seeing import Seeing
from jevomerge.schema import Notes

Reader = Callable[[Fields], Language]


def _decoder(fields: Fields) -> Decoder:
    config = read_config(fields)
    # What is read as four bits is written as sixteen.
    return Decoder(config, {key: v for key, v in fields.values.items() if key != "quantization_config" or not v})


FAMILIES: dict[str, Reader] = dict.fromkeys(DEFAULTS, _decoder)  # by model_type
# Families whose blocks compute what none of these does (shell patterns), and what that is.
OUT_OF_REACH = {
    "*mamba*": "Mamba", "falcon_h1": "Mamba2", "nemotron_h": "Mamba2", "granitemoehybrid": "Mamba2", "jamba": "Mamba",
    "bamba": "Mamba2", "plamo*": "Mamba", "gemma3n*": "per-layer embeddings and AltUp", "lfm2*": "short convolutions",
    "deepseek_v32": "sparse attention", "glm_moe_dsa": "sparse attention", "deepseek*": "multi-head latent attention",
    "kimi*": "multi-head latent attention", "llama4*": "chunked attention", "minimax*": "lightning attention",
}  # fmt: skip
ENTRY_POINTS = "jevomerge.models"  # where a package names a reader for a model_type of its own


def read_model(values: Mapping[str, Any], where: str = "config.json", notes: Notes | None = None) -> Language:
    """The model a `config.json` describes; keys that its family never reads go to `notes`.

    Raises:
        InputError: for a family, a key or a value that is not supported, by name.
    """
    refuse_quantised(values, where)
    fields = Fields(values, where)
    fields.seen.add("quantization_config")
    family = fields.text("model_type")
    model = _reader(family, where)(fields)
    if notes is not None and (unread := fields.unread()):
        notes.add(f"{where}: {', '.join(unread)}: no key of {family} models, in transformers neither; ignored")
    return model


SEEING: dict[str, Callable[[Fields], Seeing]] = {
    **dict.fromkeys(("llava", "llava_next"), Llava.read),
    **dict.fromkeys(("idefics3", "smolvlm"), Idefics3.read),
    "qwen2_5_vl": Qwen25VL.read,
}


def read_seeing(values: Mapping[str, Any], where: str = "config.json") -> Seeing:
    """The model that sees which a `config.json` describes, its decoder included.

    Raises:
        InputError: for a family, a key or a value that is not supported, by name.
    """
    fields = Fields(values, where)
    if (family := fields.text("model_type")) not in SEEING:
        raise InputError(f"{where}: pictures are not supported for model_type `{family}` (only {', '.join(SEEING)})")
    return SEEING[family](fields)


NESTINGS: dict[str, Nesting] = {  # of these also without a `text_config`
    **dict.fromkeys(("llava", "llava_next"), llava.NESTING),
    **dict.fromkeys(("idefics3", "smolvlm"), idefics3.NESTING),
    "qwen2_5_vl": qwen2_5_vl.NESTING,
    "mistral3": TextConfig({"model_type": "mistral"}),
    "gemma3": TextConfig({"model_type": "gemma3_text"}),
}


def nesting_of(values: Mapping[str, Any]) -> Nesting | None:
    """How a config.json keeps that of its language model; None: it is that of a language model alone."""
    usual = None if values.get("text_config") is None else TextConfig()
    return NESTINGS.get(str(values.get("model_type")), usual)


def class_default(family: Any, key: str) -> Any:
    """What transformers takes for a key that a config.json of this family leaves out; None: nothing, or not known."""
    return DEFAULTS[family].get(key) if isinstance(family, str) and family in DEFAULTS else None


def _reader(family: str, where: str) -> Reader:
    if family in FAMILIES:
        return FAMILIES[family]
    for entry in entry_points(group=ENTRY_POINTS, name=family):
        reader: Reader = entry.load()
        return reader
    for pattern, what in OUT_OF_REACH.items():
        if fnmatch.fnmatch(family, pattern):
            raise InputError(f"{where}: model_type `{family}` is not supported: its blocks have {what}")
    raise InputError(f"{where}: model_type `{family}` is not supported (only {', '.join(FAMILIES)})")
