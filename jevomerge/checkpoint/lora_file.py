"""LoRA files of image models, as kohya's scripts, diffusers and PEFT write them, read onto a pipeline's tensors.

Nothing in such a file says which program wrote it. A weight is known by what each of them calls it: kohya's names have
underscores for dots and cannot be taken apart, so all spellings of the pipeline's own names are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import parse_json
from jevomerge.checkpoint.lora import Adapter, LowRank, PeftAdapter
from jevomerge.checkpoint.safetensors_file import FLOATING, StoredTensor, digest_tensors, read_header, read_metadata
from jevomerge.errors import InputError
from jevomerge.models.diffusion.ldm import unet_names
from jevomerge.models.model import Model

HALVES = {  # what follows the name of a module
    "A": ("lora_down", "lora_A", "lora_A.default", "lora.down", "lora_linear_layer.down"),
    "B": ("lora_up", "lora_B", "lora_B.default", "lora.up", "lora_linear_layer.up"),
}
OTHERS = {  # what only other kinds of adapters have in their names
    "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "hada_": "a LoHa", "lokr_": "a LoKr",
    "lora_mid": "a LoCon with a factor in the middle", "oft_": "an OFT", "boft_": "a BOFT", "on_input": "an IA3",
    ".diff": "of differences of whole tensors", "w_norm": "of differences of whole norms", ".a1.": "a GLoRA",
}  # fmt: skip
KOHYA = {"unet": ("lora_unet_",), "text_encoder": ("lora_te1_", "lora_te_"), "text_encoder_2": ("lora_te2_",)}
METADATA = "lora_adapter_metadata"  # under which diffusers keeps PEFT's settings
REMEDY = "fold it into its model with the program that made it and merge the result"


def open_adapter(where: Path, model: Model, every: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The adapter at `where` of a pipeline.

    Args:
        where: a folder that PEFT saved, whose names are a U-Net's, or a file.
        model: the parts of the pipeline that are merged.
        every: {name: shape} of all tensors of the pipeline, "unet.conv_in.weight".
    """
    return LoraFile(where, model, every) if where.is_file() else PeftAdapter(where, model, "unet.")


class LoraFile(Adapter):
    """A LoRA in a file of its own."""

    def __init__(self, path: Path, model: Model, every: Mapping[str, tuple[int, ...]]):
        """Open the file `path`; see `open_adapter`.

        Raises:
            InputError: naming the file, the tensor and the remedy.
        """
        super().__init__(path)
        self._header = read_header(path)
        known, merged = spellings(every), {name for spec in model.specs for name in spec.names()}
        halves: dict[str, dict[str, StoredTensor]] = {}
        for key, stored in self._header.items():
            if other := next((what for mark, what in OTHERS.items() if mark in key), None):
                raise InputError(f"{path}: {key} is {other}; only LoRA is read: {REMEDY}")
            module, half = _taken_apart(key)
            if half is None:
                raise InputError(f"{path}: {key} is of no LoRA that is known here; {REMEDY}")
            if (name := known.get(module)) is None:
                raise InputError(f"{path}: {key} belongs to no tensor of the model; is this LoRA for another one?")
            if stored.code not in FLOATING:
                raise InputError(f"{path}: {key} is stored as {stored.code}; save the LoRA in floating point")
            halves.setdefault(name, {})[half] = stored
        settings = self._settings()
        for name, found in halves.items():
            if not {"A", "B"} <= found.keys():
                raise InputError(f"{path}: of {name} it has only {' and '.join(sorted(found))}; download it again")
            rank = found["A"].shape[0]
            alpha = float(found["alpha"].read().reshape(-1)[0]) if "alpha" in found else settings.alpha(name, rank)
            low_rank = LowRank(found["A"], found["B"], alpha / settings.divisor(name, rank))
            if not low_rank.fits(every[name]):
                raise InputError(
                    f"{path}: the matrices of {name} have shapes {found['A'].shape} and {found['B'].shape}, which do "
                    f"not make its shape {every[name]}; is this LoRA for another model?"
                )
            if name in merged:
                self.low_rank[name] = low_rank
        if aside := sorted({name.partition(".")[0] for name in halves.keys() - merged}):
            self.notes.add(
                f"{path} also changes {' and '.join(aside)}, which is not merged: that is left out; say otherwise with "
                "`parts`"
            )

    def _settings(self) -> Settings:
        text = read_metadata(self.folder).get(METADATA)
        try:
            return Settings(parse_json(text) if text else {}, self.folder)
        except ValueError as error:
            raise InputError(f"{self.folder}: `{METADATA}` is not valid JSON ({error}); download it again") from None

    def fingerprint(self) -> dict[str, str]:
        """Of its matrices."""
        return {"adapter": digest_tensors(self._header)}


class Settings:
    """PEFT's settings of each part, {"unet.lora_alpha": 8, ...}, as diffusers keeps them; {}: alpha is the rank."""

    def __init__(self, values: Mapping[str, Any], path: Path):
        """Refuse what is no plain LoRA."""
        self._values = values
        for key, value in values.items():
            if value and key.endswith((".use_dora", ".lora_bias", ".use_qalora")):
                raise InputError(f"{path}: `{key}` is not understood; {REMEDY}")

    def alpha(self, name: str, rank: int) -> float:
        """Of a tensor whose pair of matrices has this rank."""
        part, _, module = name.removesuffix(".weight").partition(".")
        patterns = self._values.get(f"{part}.alpha_pattern") or {}
        found = next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), None)
        return float(self._values.get(f"{part}.lora_alpha", rank) if found is None else found)

    def divisor(self, name: str, rank: int) -> float:
        """What alpha is divided by."""
        return rank**0.5 if self._values.get(f"{name.partition('.')[0]}.use_rslora") else rank


def _taken_apart(key: str) -> tuple[str, str | None]:
    """A tensor of a LoRA -> (the module, A, B or alpha); None if it is none of them."""
    # Before 2024 diffusers had the matrices beside the attention: "attn1.processor.to_out_lora.down.weight".
    key = re.sub(r"\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight$", r".\1.lora.\2.weight", key)
    key = re.sub(r"\.to_out\.(lora\.\w+\.weight)$", r".to_out.0.\1", key)
    for half, words in HALVES.items():
        for ending in (f".{word}.weight" for word in words):
            if key.endswith(ending):
                return key.removesuffix(ending), half
    return key.removesuffix(".alpha"), "alpha" if key.endswith(".alpha") else None


def spellings(names: Mapping[str, Any]) -> dict[str, str]:
    """{what a program calls a weight's module: the weight}, of all weights of a pipeline that can have a LoRA.

    >>> list(spellings({"unet.conv_in.weight": ()}))
    ['unet.conv_in', 'conv_in', 'lora_unet_conv_in', 'lora_unet_input_blocks_0_0']
    """
    found: dict[str, str] = {}
    unet = [name.removeprefix("unet.") for name in names if name.startswith("unet.")]
    ldm = unet_names(unet)
    for name in names:
        part, _, inside = name.partition(".")
        if part not in KOHYA or not inside.endswith(".weight"):
            continue
        module = inside.removesuffix(".weight")
        told = [module] if part != "unet" else [module, ldm[inside].removesuffix(".weight")]
        dotted = [f"{part}.{module}"]
        dotted += [module] if part == "unet" else [f"{part}.{module.removeprefix('text_model.')}"]
        for spelling in (*dotted, *(prefix + text.replace(".", "_") for prefix in KOHYA[part] for text in told)):
            found[spelling] = name
    return found
