"""What stands in for image pipelines that are not on this machine, for LoRAs and for CLIPs: their weights are holes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from jevomerge.checkpoint.files import SUFFIX
from jevomerge.checkpoint.pipeline import STEMS
from jevomerge.checkpoint.safetensors_file import DTYPES, Planned, stream_safetensors
from jevomerge.checkpoint.weights import write_weights
from jevomerge.models.clip.clip import Clip
from jevomerge.models.diffusion.parts import read_config, shapes
from jevomerge.models.diffusion.schema import MERGEABLE
from jevomerge.models.fields import Fields
from jevomerge.models.specs import tensor_names
from jevomerge.schema import Dtype, Strict

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WHOLE = 1 << 50  # bytes: no file is so large that it is cut


class PipelineShape(Strict):
    """An image pipeline, a U-Net alone, or a CLIP, without its weights."""

    files: dict[str, dict[str, Any]]
    dtype: Dtype = "float16"


class LoraShape(Strict):
    """A LoRA of all matrices of a U-Net's attention and feed-forward layers."""

    of: str  # which of the models
    rank: int = Field(gt=0)


def write_pipeline(shape: PipelineShape, place: Path) -> Path:
    """A folder, or the file of a U-Net alone."""
    if (values := shape.files.get("config.json")) is not None:
        return _write_clip(shape, values, place)
    known = {name: shape.files[file] for name in MERGEABLE if (file := f"{name}/config.json") in shape.files}
    planned = {part: _planned(shape, shapes(read_config(part, values, part))) for part, values in known.items()}
    if place.suffix == SUFFIX:
        place.parent.mkdir(parents=True, exist_ok=True)
        stream_safetensors(place, planned["unet"], _hole)
        return place
    for file, values in shape.files.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(json.dumps(values), encoding="utf-8")
    for part, tensors in planned.items():
        write_weights(place / part, tensors, _hole, WHOLE, STEMS.get(part, "model"))
        if part.startswith("text_encoder"):
            _write_tokenizer(place / part.replace("text_encoder", "tokenizer"), known[part].get("vocab_size", 49408))
    return place


def _write_clip(shape: PipelineShape, values: Mapping[str, Any], folder: Path) -> Path:
    clip = Clip.read(Fields(values, "config.json"))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    tensors = {name: spec.shape for name, spec, _ in tensor_names(clip.specs)}
    write_weights(folder, _planned(shape, tensors), _hole, WHOLE)
    _write_tokenizer(folder, clip.text.vocab_size)
    return folder


def write_lora(shape: LoraShape, unet: PipelineShape, path: Path) -> Path:
    """A file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves: dict[str, tuple[int, ...]] = {}
    for name, dims in shapes(read_config("unet", unet.files["unet/config.json"], "unet")).items():
        if ".transformer_blocks." in name and len(dims) == 2:
            before = f"unet.{name.removesuffix('.weight')}"
            halves |= {
                f"{before}.lora_A.weight": (shape.rank, dims[1]),
                f"{before}.lora_B.weight": (dims[0], shape.rank),
            }
    stream_safetensors(path, _planned(unet, halves), _hole)
    return path


def _planned(shape: PipelineShape, tensors: Mapping[str, tuple[int, ...]]) -> dict[str, Planned]:
    return {name: Planned(DTYPES[shape.dtype], dims) for name, dims in tensors.items()}


def _write_tokenizer(folder: Path, tokens: int) -> None:
    """One that knows no words: each is the end of the text."""
    folder.mkdir(exist_ok=True)
    vocabulary = {BEGIN: tokens - 2, END: tokens - 1}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": END}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    roles = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END, "model_max_length": 77}
    roles["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")


def _hole(name: str) -> None:
    """Instead of a tensor."""
