"""LoRA adapters (Hu et al., 2021), folded into the tensors of their model when these are read; PEFT's folders.

What is not understood is refused: an adapter that is applied almost rightly is worse than none. Files of other programs
are read in `lora_file`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from jevomerge.checkpoint.files import digest, read_json
from jevomerge.checkpoint.safetensors_file import (
    FLOATING,
    Planned,
    StoredTensor,
    digest_tensors,
    read_header,
    stream_safetensors,
)
from jevomerge.checkpoint.weights import check_room
from jevomerge.errors import InputError
from jevomerge.models.model import Model
from jevomerge.schema import Notes, Part, check

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
    """scale * B @ A, to be added to a matrix or a convolution, or to the transpose of an embedding."""

    a: StoredTensor  # (rank, in), of a convolution (rank, in, height, width)
    b: StoredTensor  # (out, rank), of a convolution (out, rank, 1, 1)
    scale: float
    transposed: bool = False

    @property
    def rank(self) -> int:
        """How many rows A has."""
        return self.a.shape[0]

    def compute(self) -> np.ndarray:
        """The product in float32, (out, all the rest)."""
        a, b = (half.read().astype(np.float32).reshape(half.shape[0], -1) for half in (self.a, self.b))
        delta = b @ a
        delta *= np.float32(self.scale)
        return delta.T if self.transposed else delta

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the product is of such a tensor, linear maps and convolutions of 1 x 1 being the same."""
        rows, columns = shape[0], math.prod(shape[1:])
        a, b = ((half.shape[0], math.prod(half.shape[1:])) for half in (self.a, self.b))
        return len(shape) > 1 and (a, b) == ((self.rank, columns), (rows, self.rank))


class Adapter:
    """An adapter that has been opened and checked against its model; nothing of its matrices has been read.

    Attributes:
        low_rank: {the model's tensor: what is added to it}.
        replaced: {the model's tensor: what stands in its place}.
        notes: what was found odd and needs no change.
    """

    def __init__(self, folder: Path):
        """`folder`: where it is, for messages."""
        self.folder, self.notes = folder, Notes()
        self.low_rank: dict[str, LowRank] = {}
        self.replaced: dict[str, StoredTensor] = {}

    def fingerprint(self) -> dict[str, str]:
        """{part: digest of its content}."""
        raise NotImplementedError

    def apply(self, name: str, weight: np.ndarray) -> None:
        """Change the model's tensor `name` in place: in float32, rounded once."""
        if name in self.replaced:
            weight[...] = self.replaced[name].read()
        if name in self.low_rank:
            # Of a weight that is replaced too, PEFT's own sum starts from the replacement in the weight's dtype.
            delta = self.low_rank[name].compute().reshape(weight.shape)
            weight[...] = delta + weight.astype(np.promote_types(weight.dtype, np.float32))


class PeftAdapter(Adapter):
    """A folder that PEFT saved."""

    def __init__(self, folder: Path, model: Model, inside: str = ""):
        """Open the adapter in `folder` of a model; the names of what it adapts begin with `inside` there.

        Raises:
            InputError: naming the file, the key or tensor, and the remedy.
        """
        super().__init__(folder)
        self.settings = self._read_settings()
        shapes = {name: spec.shape for spec in model.specs for name in spec.names()}
        halves: dict[str, dict[str, StoredTensor]] = {}
        for key, stored in self._read_header().items():
            found = PAIR.fullmatch(key)
            # PEFT wraps the modules it adapts, and saves an adapted embedding along with its adapter.
            name = found["module"] + ".weight" if found else key.removeprefix("base_model.model.")
            name = inside + name.replace(".base_layer.", ".")
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
        root = rank**0.5 if self.settings.get("use_rslora") else rank
        low_rank = LowRank(a, b, self._setting("alpha_pattern", "lora_alpha", name) / root, bool(kind))
        if low_rank.rank != rank or not low_rank.fits(shape[::-1] if kind else shape):
            raise InputError(
                f"{self.folder}: A and B of {name} have shapes {a.shape} and {b.shape}, which at rank {rank} do not "
                f"make its shape {shape}; is this adapter for another model?"
            )
        return low_rank

    def _setting(self, patterns: str, default: str, name: str) -> Any:
        """The value of the first pattern that matches the end of the module's name, as PEFT looks it up."""
        for pattern, value in (self.settings.get(patterns) or {}).items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", name.removesuffix(".weight")):
                    return value
            except re.error as error:
                raise InputError(f"{self.folder / ADAPTER_CONFIG}: {patterns}: `{pattern}`: {error}") from None
        return self.settings[default]


def write_adapter(
    folder: Path,
    model: str,
    rank: int,
    shapes: Mapping[str, tuple[int, ...]],
    every: Sequence[str],
    pair: Callable[[int], tuple[np.ndarray, np.ndarray] | None],
) -> None:
    """Write a PEFT adapter in float32, whose scale is one, into a folder that is there.

    Args:
        folder: of adapter_config.json and adapter_model.safetensors.
        model: what it is for, as PEFT looks it up.
        rank: of all pairs.
        shapes: {the model's tensor: (out, in)} of those that are adapted.
        every: all tensors of the model.
        pair: gives A (rank, in) and B (out, rank) of a tensor by its number in `shapes`, asked for in order; None:
            holes.
    """
    modules = [name.removesuffix(".weight") for name in shapes]
    kinds = {module.rpartition(".")[2] for module in modules}
    alike = {name for name in every if name.removesuffix(".weight").rpartition(".")[2] in kinds and "bias" not in name}
    settings = {
        "base_model_name_or_path": model,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(kinds if alike == shapes.keys() else modules),  # PEFT finds these by their ends
        "task_type": "CAUSAL_LM",
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    planned, places = dict[str, Planned](), dict[str, tuple[int, int]]()
    for i, (module, (out, inside)) in enumerate(zip(modules, shapes.values(), strict=True)):
        for half, shape in enumerate([(rank, inside), (out, rank)]):
            key = f"base_model.model.{module}.lora_{'AB'[half]}.weight"
            planned[key], places[key] = Planned("F32", shape), (i, half)
    check_room(folder, planned)
    last: dict[int, tuple[np.ndarray, np.ndarray] | None] = {}

    def tensor(key: str) -> np.ndarray | None:
        i, half = places[key]
        if i not in last:
            last.clear()
            last[i] = pair(i)
        found = last[i]
        return None if found is None else found[half]

    stream_safetensors(folder / ADAPTER_WEIGHTS, planned, tensor)
