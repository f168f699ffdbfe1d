"""Files <-> pytrees: Hugging Face folders in, Hugging Face folders out, bit for bit."""

from jevomerge.checkpoint.export import ExportFolder, write_model
from jevomerge.checkpoint.hf_config import read_config
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.checkpoint.specs import ParamSpec, param_specs

__all__ = ["Checkpoint", "ExportFolder", "ParamSpec", "param_specs", "read_config", "write_model"]
