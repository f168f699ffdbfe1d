"""The parts of an image pipeline that are merged, as one `models.model.Model`: "unet.conv_in.weight", ..."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from jevomerge.models.diffusion.config import UNetConfig
from jevomerge.models.diffusion.parts import Config
from jevomerge.models.diffusion.pipeline import part_specs
from jevomerge.models.diffusion.places import BASE, VAE, unet_blocks
from jevomerge.models.model import Stackless
from jevomerge.models.specs import ParamSpec

INPUTS = {9: "inpainting", 8: "editing"}  # what U-Nets with so many input channels are for


@dataclasses.dataclass(frozen=True)
class PipelineModel(Stackless):
    """Some parts of a pipeline; hashable, a static jit argument."""

    parts: tuple[tuple[str, Config], ...]  # sorted
    prediction: str | None = None  # what the U-Net predicts: epsilon, v_prediction, sample; None: nobody says
    stated: bool = True  # whether `parts` are as files say, or as shapes and the kind of model let one deduce

    files = property(lambda self: dict[str, Any]())

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The tables of the parts, one behind the other."""
        return tuple(spec for part, config in self.parts for spec in _placed(part, config))

    def unlike(self, other: PipelineModel) -> dict[str, bool]:
        """What of the function differs; nothing of it may."""
        return dict.fromkeys(self._differences(other), False)

    def _differences(self, other: PipelineModel) -> Iterator[str]:
        if None not in (self.prediction, other.prediction) and self.prediction != other.prediction:
            yield f"`prediction_type`, {self.prediction} and {other.prediction},"
        for (part, mine), (_, theirs) in zip(self.parts, other.parts, strict=False):
            for field in dataclasses.fields(mine) if type(mine) is type(theirs) else ():
                a, b = getattr(mine, field.name), getattr(theirs, field.name)
                known = (self.stated and other.stated) or field.name == "in_channels"
                if field.compare and known and a != b:
                    use = next((f" of {INPUTS[n]}" for n in (a, b) if field.name == "in_channels" and n in INPUTS), "")
                    yield f"`{part}.{field.name}`{use}, {a} and {b},"


@functools.cache
def _placed(part: str, config: Config) -> tuple[ParamSpec, ...]:
    """The table of a part, which says in which block each tensor stands."""
    own, before = part_specs(part, config), f"{part}."
    unet = isinstance(config, UNetConfig)
    blocks = unet_blocks([name.removeprefix(before) for spec in own for name in spec.names()]) if unet else {}
    outside = VAE if part == "vae" else BASE
    return tuple(
        dataclasses.replace(spec, place=blocks.get(spec.names()[0].removeprefix(before), outside)) for spec in own
    )
