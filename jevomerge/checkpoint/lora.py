"""LoRA adapters as PEFT saves them (Hu et al., 2021), folded into the tensors of their model.

What is not understood is refused: an adapter that is applied almost rightly is worse than none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from jevomerge.checkpoint.files import digest, read_json
from jevomerge.checkpoint.safetensors_file import FLOATING, StoredTensor, digest_tensors, read_header
from jevomerge.errors import InputError
from jevomerge.models.model import Model
from jevomerge.schema import Part, check

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
USED = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights")
# Which tensors have an adapter is told by the file; these only say how it came about. `bias` and `modules_to_save`
# announce whole tensors in the file, which replace the model's.
HARMLESS = (
    "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
)  # fmt: skip
# The initialisations that leave the model's own weights alone; pissa, olora, corda, loftq and others change them.
PLAIN_INIT = (True, False, None, "gaussian", "orthogonal", "eva")
REMEDY = "fold it into its model with peft (merge_and_unload) and merge the result"


class Settings(Part):
    """The numbers of adapter_config.json; patterns of modules' names have their own."""

    r: Annotated[int, Field(gt=0)]
    lora_alpha: float
    rank_pattern: dict[str, Annotated[int, Field(gt=0)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None


PAIR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>(?:embedding_)?[AB])(?:\.weight)?")


class LowRank(NamedTuple):
    """scale * B @ A, to be added to a matrix, or to the transpose of an embedding."""

    a: StoredTensor  # (rank, in)
    b: StoredTensor  # (out, rank)
    scale: float
    transposed: bool

    def compute(self) -> np.ndarray:
        """The product in float32."""
        delta = self.b.read().astype(np.float32) @ self.a.read().astype(np.float32)
        delta *= np.float32(self.scale)
        return delta.T if self.transposed else delta


class Adapter:
    """An adapter that has been opened and checked against its model; nothing of its weights has been read."""

    def __init__(self, folder: Path, model: Model):
        """Open the adapter in `folder` of a model.

        Raises:
            InputError: naming the file, the key or tensor, and the remedy.
        """
        self.folder = folder
        self.settings = self._read_settings()
        self.low_rank: dict[str, LowRank] = {}
        self.replaced: dict[str, StoredTensor] = {}
        shapes = {name: spec.shape for spec in model.specs for name in spec.names()}
        halves: dict[str, dict[str, StoredTensor]] = {}
        for key, stored in self._read_header().items():
            found = PAIR.fullmatch(key)
            # PEFT wraps the modules it adapts, and saves an adapted embedding along with its adapter.
            name = found["module"] + ".weight" if found else key.removeprefix("base_model.model.")
            name = name.replace(".base_layer.", ".")
            if name in model.tied:
                raise InputError(
                    f"{folder}: {key} trains the head, which in this model is its embeddings (tie_word_embeddings): "
                    "fold the adapter into a model with a head of its own (tie_word_embeddings: false) and merge that"
                )
            if name not in shapes:
                raise InputError(f"{folder}: {key} belongs to no tensor of the model; is this adapter for another one?")
            if stored.code not in FLOATING:
                raise InputError(f"{folder}: {key} is stored as {stored.code}; save the adapter in floating point")
            if found:
                halves.setdefault(name, {})[found["half"]] = stored
            elif stored.shape != shapes[name]:
                raise InputError(f"{folder}: {key} has shape {stored.shape}, the model's {name} {shapes[name]}")
            else:
                self.replaced[name] = stored
        for name, pair in halves.items():
            self.low_rank[name] = self._low_rank(name, pair, shapes[name])
        if {*model.tied.values()} & {*self.low_rank, *self.replaced}:
            raise InputError(
                f"{folder} changes the embeddings, which are also this model's head: the adapter changes one of them "
                "only; save the model with a head of its own (tie_word_embeddings: false)"
            )

    def _read_settings(self) -> dict[str, Any]:
        path = self.folder / ADAPTER_CONFIG
        if not path.exists():
            raise InputError(f"{self.folder} has no {ADAPTER_CONFIG}; behind a + stands the folder of a PEFT adapter")
        settings = read_json(path)
        kind, init = settings.get("peft_type"), settings.get("init_lora_weights", True)
        if kind != "LORA":
            raise InputError(f"{path}: `peft_type: {kind}` is not LORA; {REMEDY}")
        if init not in PLAIN_INIT:
            raise InputError(f"{path}: `init_lora_weights: {init}` may change the model's own weights; {REMEDY}")
        for key, value in settings.items():
            if value and key not in USED + HARMLESS:  # off is false, null or empty
                raise InputError(f"{path}: `{key}: {value}` is not understood; {REMEDY}")
        return check(Settings, settings, path, "download the adapter again")

    def _read_header(self) -> dict[str, StoredTensor]:
        if not (self.folder / ADAPTER_WEIGHTS).exists():
            pickles = [path.name for path in self.folder.glob("*.bin")]
            raise InputError(
                f"{self.folder} has only {min(pickles)}, a pickle file, which can run code and is never opened; "
                "load the adapter with peft once and save_pretrained(FOLDER, safe_serialization=True)"
                if pickles
                else f"{self.folder} has no {ADAPTER_WEIGHTS}"
            )
        return read_header(self.folder / ADAPTER_WEIGHTS)

    def fingerprint(self) -> dict[str, str]:
        """Digests of its weights and of its settings."""
        return {
            "adapter": digest_tensors(self._read_header()),
            ADAPTER_CONFIG: digest(self.folder / ADAPTER_CONFIG),
        }

    def _low_rank(self, name: str, halves: dict[str, StoredTensor], shape: tuple[int, ...]) -> LowRank:
        """The pair of matrices that adapts the tensor `name`, checked."""
        kind = "embedding_" if "embedding_A" in halves else ""
        if halves.keys() != {kind + "A", kind + "B"}:
            raise InputError(f"{self.folder}: {name} has lora_{' and lora_'.join(sorted(halves))}; need an A and a B")
        a, b = halves[kind + "A"], halves[kind + "B"]
        rank = self._setting("rank_pattern", "r", name)
        rows, columns = (shape[::-1] if kind else shape) if len(shape) == 2 else (None, None)
        if (a.shape, b.shape) != ((rank, columns), (rows, rank)):
            raise InputError(
                f"{self.folder}: A and B of {name} have shapes {a.shape} and {b.shape}, which at rank {rank} do not "
                f"make its shape {shape}; is this adapter for another model?"
            )
        root = rank**0.5 if self.settings.get("use_rslora") else rank
        return LowRank(a, b, self._setting("alpha_pattern", "lora_alpha", name) / root, bool(kind))

    def _setting(self, patterns: str, default: str, name: str) -> Any:
        """The value of the first pattern that matches the end of the module's name, as PEFT looks it up."""
        for pattern, value in (self.settings.get(patterns) or {}).items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", name.removesuffix(".weight")):
                    return value
            except re.error as error:
                raise InputError(f"{self.folder / ADAPTER_CONFIG}: {patterns}: `{pattern}`: {error}") from None
        return self.settings[default]

    def apply(self, name: str, weight: np.ndarray) -> None:
        """Change the model's tensor `name` in place: in float32, rounded once."""
        if name in self.replaced:
            weight[...] = self.replaced[name].read()
        if name in self.low_rank:
            # Of a weight that is replaced too, PEFT's own sum starts from the replacement in the weight's dtype.
            weight[...] = self.low_rank[name].compute() + weight.astype(np.promote_types(weight.dtype, np.float32))
