"""A config.json of which every key must be understood."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError

# Keys that do not change the function of a forward pass in evaluation mode (shell patterns).
HARMLESS = (
    "_*", "architectures", "model_type", "auto_map", "transformers_version", "torch_dtype", "dtype",
    "*_token_id", "use_cache", "*dropout*", "initializer_range", "pretraining_tp", "max_position_embeddings",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "id2label",
    "label2id", "problem_type", "is_decoder", "is_encoder_decoder", "add_cross_attention", "tokenizer_class",
    "task_specific_params", "num_labels", "rope_interleaved", "is_llama_config", "transformers.js_config",
    "cache_implementation", "max_length", "do_sample", "temperature", "top_k", "top_p", "unsloth_*",
    "name_or_path", "finetuning_task", "prefix", )  # fmt: skip


class Fields:
    """A JSON object that remembers which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any], where: str):
        """`where` names the file in error messages."""
        self.values, self.where, self.seen = values, where, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, None and absent nearly always being the same thing to Hugging Face."""
        self.seen.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value of `key`; its absence is an error."""
        if (value := self.get(key)) is None:
            raise InputError(f"{self.where}: `{key}` is missing; the checkpoint's config.json is incomplete")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse a value whose effect is not implemented."""
        if (value := self.get(key)) is not None and value not in allowed:
            raise InputError(f"{self.where}: `{key}: {value}` is not supported (only {list(allowed)})")

    def refuse_rest(self) -> None:
        """Every key must have been read or be known to be harmless."""
        for key, value in self.values.items():
            if value is None or key in self.seen or any(fnmatch.fnmatch(key, p) for p in HARMLESS):
                continue
            raise InputError(
                f"{self.where}: `{key}: {value}` is not understood and may change what the model computes; "
                "remove the key if it does not"
            )
