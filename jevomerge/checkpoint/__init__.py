"""Files <-> pytrees: Hugging Face folders in, Hugging Face folders out, bit for bit."""

from jevomerge.checkpoint.export import copy_tokenizer, export_folder, write_model
from jevomerge.checkpoint.hf_config import read_config
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.checkpoint.specs import ParamSpec, param_specs

__all__ = [
    "Checkpoint", "ParamSpec", "copy_tokenizer", "export_folder", "param_specs", "read_config", "write_model",
]  # fmt: skip
