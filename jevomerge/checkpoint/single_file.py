"""Image pipelines in a single safetensors file, with the names of the code that they were trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jevomerge.checkpoint.safetensors_file import Planned, StoredTensor
from jevomerge.errors import InputError
from jevomerge.models.clip.open_clip import TRANSPOSED, open_clip_name, open_clip_names_back
from jevomerge.models.diffusion.ldm import (
    SD1,
    SDXL,
    SingleFile,
    unet_names,
    unet_names_back,
    vae_names,
    vae_names_back,
)

OPEN_CLIP = "text_encoder_2"  # whose names in a single file are OpenCLIP's
PROJECTION = "text_projection.weight"
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"  # tensors without elements, by which programs know such models
UNREAD = {
    "conditioner.embedders.0.model.": "is a refiner of SDXL, which has one text encoder",
    "cond_stage_model.model.": "has Stable Diffusion 2's text encoder; save it as a folder with diffusers",
    "double_blocks.": "is a Flux model; only U-Nets are merged",
    "joint_blocks.": "is a Stable Diffusion 3 model; only U-Nets are merged",
    "lora_": "is a LoRA; write it behind its model: MODEL+FILE",
}


class Transposed(NamedTuple):
    """A matrix that a file has the other way round."""

    stored: StoredTensor

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.stored.path

    @property
    def code(self) -> str:
        """Its dtype as the format spells it."""
        return self.stored.code

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its NumPy dtype."""
        return self.stored.dtype

    @property
    def offset(self) -> int:
        """Of its first byte in the file."""
        return self.stored.offset

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is used."""
        return self.stored.shape[::-1]

    def read(self, out: np.ndarray | None = None, index: tuple[slice, ...] = ()) -> np.ndarray:
        """As of a `StoredTensor`."""
        array = np.ascontiguousarray(self.stored.read().T)[index]
        if out is None:
            return array
        out[...] = array
        return out


def split_file(header: Mapping[str, StoredTensor], path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """{part: {diffusers' name: where it lies}} of a file's tensors, and the names of those that are in no part.

    Raises:
        InputError: for a file of something else, by name.
    """
    kind = kind_of(header)
    for prefix, what in UNREAD.items():
        if any(name.startswith((prefix, f"model.diffusion_model.{prefix}")) for name in header):
            raise InputError(f"{path} {what}")
    if any(name.startswith("down_blocks.") for name in header):  # a U-Net alone, with diffusers' names
        return {"unet": dict(header)}, []
    if all(name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")) for name in header):
        return {"vae": _vae(header)}, []
    parts: dict[str, dict[str, Any]] = {}
    for part, prefix in kind.prefixes.items():
        inside = {name.removeprefix(prefix): stored for name, stored in header.items() if name.startswith(prefix)}
        if part == "unet":
            parts[part] = {ours: inside[theirs] for theirs, ours in unet_names_back(inside).items()}
        elif part == "vae":
            parts[part] = _vae(inside)
        elif part == OPEN_CLIP:
            parts[part] = {ours: s for ours, s in open_clip_tensors(inside) if ours != "logit_scale"}
        else:
            parts[part] = {name: stored for name, stored in inside.items() if not name.endswith(".position_ids")}
    if not any(parts.values()):
        raise InputError(
            f"{path}: its tensors, such as {min(header, default='none')}, are of no image model known here"
        )
    known = {stored.offset for part in parts.values() for stored in part.values()}
    return {part: found for part, found in parts.items() if found}, [
        name for name, stored in header.items() if stored.offset not in known and stored.shape != (0,)
    ]


def kind_of(names: Iterable[str]) -> SingleFile:
    """SDXL's or SD 1's: of the tensors in a file, or of those in a pipeline."""
    marks = ("conditioner.embedders.", "model.diffusion_model.label_emb.", "unet.add_embedding.", "text_encoder_2.")
    return SDXL if any(name.startswith(marks) for name in names) else SD1


def _vae(inside: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    found = {}
    for theirs, ours in vae_names_back(inside).items():
        stored = inside[theirs]
        squeezed = stored.shape[:2] if ".attentions." in ours and stored.shape[2:] == (1, 1) else stored.shape
        found[ours] = stored._replace(shape=squeezed)
    return found


def open_clip_tensors(inside: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Any]]:
    """Transformers' names of OpenCLIP's tensors and where each lies; what is no CLIP's is left out."""
    for theirs, stored in inside.items():
        names = open_clip_names_back(theirs)
        if len(names) > 1:  # one above the other
            rows = stored.shape[0] // len(names)
            third = stored._replace(shape=(rows, *stored.shape[1:]))
            size = Planned(third.code, third.shape).size
            yield from ((name, third._replace(offset=third.offset + i * size)) for i, name in enumerate(names))
        elif names:
            yield names[0], Transposed(stored) if names[0] in TRANSPOSED else stored


class Piece(NamedTuple):
    """A tensor of a single file, and the pipeline's tensors that it is made of."""

    names: tuple[str, ...]  # one above the other
    shape: tuple[int, ...]
    transposed: bool = False

    def made(self, tensors: Iterable[Any]) -> np.ndarray:
        """It, of those."""
        whole = np.concatenate([np.asarray(x) for x in tensors])
        return (whole.T if self.transposed else whole).reshape(self.shape)


def lay_out_file(part: str, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Piece]:
    """What a single file has for a part: {name in the file: what it is made of}, names of tensors with their part's.

    Raises:
        InputError: for a tensor that has no name there.
    """
    pieces: dict[str, Piece] = {}
    try:
        if part == OPEN_CLIP:
            thirds: dict[str, list[str]] = {}
            for name in sorted(shapes, key=lambda name: open_clip_name(name)[1] or 0):
                thirds.setdefault(open_clip_name(name)[0], []).append(name)
            for name in shapes:  # where its last third is, which leaves the least waiting
                theirs, third = open_clip_name(name)
                if third in (None, len(thirds[theirs]) - 1):
                    pieces[prefix + theirs] = _stacked(part, thirds[theirs], shapes)
            return pieces
        told = {"unet": unet_names, "vae": vae_names}.get(part, lambda names: {name: name for name in names})(shapes)
    except KeyError as error:
        raise InputError(f"{part}.{error.args[0]} has no name in a single file; write a folder") from None
    for name, theirs in told.items():
        shape = shapes[name]
        shape = (*shape, 1, 1) if ".mid.attn_1." in theirs and len(shape) == 2 else shape
        pieces[prefix + theirs] = Piece((f"{part}.{name}",), shape)
    return pieces


def _stacked(part: str, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Piece:
    """What OpenCLIP has for tensors of the second text encoder, one above the other."""
    rows, *rest = shapes[names[0]]
    shape, transposed = (rows * len(names), *rest), names[0] in TRANSPOSED
    return Piece(tuple(f"{part}.{name}" for name in names), shape[::-1] if transposed else shape, transposed)
