"""A config.json read key by key, each as what it has to be: the one place where its types are looked at."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError

# Keys of transformers' base class and of its frameworks that say nothing of a forward pass (shell patterns).
HARMLESS = (
    "_*", "architectures", "model_type", "auto_map", "transformers_version", "torch_dtype", "dtype", "use_bfloat16",
    "*_token_id", "use_cache", "*dropout*", "*_pdrop", "initializer_range", "pretraining_tp", "output_*",
    "use_return_dict", "return_dict", "return_dict_in_generate", "id2label", "label2id", "num_labels", "problem_type",
    "is_decoder", "tokenizer_class", "task_specific_params", "attn_implementation", "rope_interleaved",
    "is_llama_config", "transformers.js_config", "unsloth_*", "name_or_path", "finetuning_task", "prefix",
    "chunk_size_feed_forward", "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef",
    # Settings of generation that old checkpoints keep here; decoding is greedy.
    "cache_implementation", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p",
    "num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty", "length_penalty", "diversity_penalty",
    "early_stopping",
)  # fmt: skip
LARGEST = 2**31 - 1


class Fields:
    """A JSON object that remembers which of its keys were asked for.

    `defaults` are what an absent key stands for, set by who knows the family.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        """`where` names the file in error messages."""
        self.values, self.where, self.seen = values, where, set[str]()
        self.defaults: Mapping[str, Any] = {}

    def get(self, key: str) -> Any:
        """The value of `key` as it stands, its default if it is absent; None: null, or neither."""
        self.seen.add(key)
        return self.values.get(key, self.defaults.get(key))

    def integer(self, key: str, most: int = LARGEST) -> int:
        """A whole number from 1 to `most`."""
        value = self._given(key)
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(key, value, f"a whole number from 1 to {most:,}")
        return value

    def number(self, key: str) -> float:
        """A number above zero."""
        value = self._given(key)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.wrong(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where nothing is said."""
        value = self.get(key)
        value = self.defaults.get(key, False) if value is None else value
        if type(value) is not bool:
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self._given(key)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def texts(self, key: str) -> list[str] | None:
        """A list of strings; None where nothing is said."""
        value = self.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise self.wrong(key, value, "a list of strings")
        return value

    def numbers(self, key: str) -> list[float]:
        """A list of numbers above zero."""
        value = self._given(key)
        if not isinstance(value, list) or not all(type(v) in (int, float) and 0 < v < math.inf for v in value):
            raise self.wrong(key, value, "a list of numbers above 0")
        return [float(v) for v in value]

    def table(self, key: str) -> Fields | None:
        """An object; None where nothing is said, or an empty one."""
        value = self.get(key)
        if value and not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return Fields(value, f"{self.where}: {key}") if value else None

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse a value whose effect is not implemented; null is none."""
        if (value := self.get(key)) is not None and value not in allowed:
            only = f"only {' or '.join(map(str, allowed))}" if allowed else "leave it out if the model does without"
            raise InputError(f"{self.where}: `{key}: {shown(value)}` is not supported ({only})")

    def unread(self) -> list[str]:
        """Keys that nobody asked for and that do not say "off": of no family that is read here."""
        return [
            key
            for key, value in self.values.items()
            if value and key not in self.seen and not any(fnmatch.fnmatch(key, p) for p in HARMLESS)
        ]

    def wrong(self, key: str, value: Any, what: str) -> InputError:
        """That the value is not what it has to be."""
        return InputError(f"{self.where}: `{key}: {shown(value)}` must be {what}")

    def _given(self, key: str) -> Any:
        """The value or its default; to Hugging Face null and absent are nearly always the same."""
        value = self.get(key)
        if (value := self.defaults.get(key) if value is None else value) is None:
            raise InputError(f"{self.where}: `{key}` is missing; the checkpoint's config.json is incomplete")
        return value


def shown(value: Any) -> str:
    """A JSON value in a message, cut short."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refuse_quantised(values: Mapping[str, Any], where: str) -> None:
    """Raise InputError for the config.json of a quantised model, by the name of the method."""
    for key in ("quantization_config", "compression_config"):
        if found := values.get(key):
            told: Mapping[str, Any] = found if isinstance(found, dict) else {}
            bits = any(told.get(k) for k in ("load_in_4bit", "load_in_8bit"))
            method = told.get("quant_method") or ("bitsandbytes" if bits else key)
            if method == "mxfp4" and values.get("model_type") == "gpt_oss":  # read as what it stands for
                continue
            raise InputError(f"{where}: the model is quantised ({shown(method)}); {SIXTEEN_BITS}")


SIXTEEN_BITS = "quantised weights cannot be merged: name the original 16-bit model"
QUANTISED = (  # endings of the names of tensors that only quantised models have
    ".qweight", ".qzeros", ".g_idx", ".scales", ".weight_scale", ".weight_scale_inv", ".input_scale", ".weight_packed",
    ".absmax", ".quant_map", ".SCB", ".weight_format",
)  # fmt: skip
