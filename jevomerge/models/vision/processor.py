"""What happens to a picture before a tower sees it: preprocessor_config.json, bit for bit transformers' PIL processors.

Both spellings of sizes are read (`224`, `{"shortest_edge": 224}`, `{"height": 224, "width": 224}`), and both names of
classes (`CLIPFeatureExtractor`, `CLIPImageProcessor`). The default backend of transformers, torchvision, rounds
differently: a level or two of 255 in a percent of the pixels.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jevomerge.errors import InputError
from jevomerge.models.fields import Fields
from jevomerge.models.vision.pictures import limited, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
COMMON: Mapping[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}


@dataclasses.dataclass(frozen=True)
class Processor:
    """How a picture becomes views: the steps of CLIP, SigLIP and LLaVA, which make one. Sizes are (height, width)."""

    size: int | tuple[int, int] | None  # of the shortest edge, or both, by stretching; None: as it is
    resample: int  # Pillow's number of the filter
    crop: tuple[int, int] | None
    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    square: tuple[int, ...] | None = None  # LLaVA's `do_pad`: first made a square by strips of this colour

    @property
    def view_size(self) -> tuple[int, int] | None:
        """Of what it makes; None: it depends on the picture."""
        size = (self.size, self.size) if isinstance(self.size, int) and self.square else self.size
        return self.crop or (size if isinstance(size, tuple) else None)

    def views(self, picture: Image, name: str) -> np.ndarray:
        """An RGB picture, and what error messages call it -> (V, 3, S, S) float32, here one view."""
        return self.view(picture, name)[None]

    def view(self, picture: Image, name: str) -> np.ndarray:
        """The same -> (3, S, S) float32."""
        if self.square is not None:
            picture = _squared(picture, self.square, name)
        if self.size is not None:
            picture = picture.resize(limited(target(self.size, picture.size), name), self.resample)
        pixels = np.asarray(picture)
        if self.crop is not None:
            pixels = _centre(pixels, *self.crop)
        return self.normalised(pixels)

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (3, H, W) float32."""
        x = pixels.astype(np.float64)
        x = (x if self.scale is None else x * self.scale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            x = (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1))


def target(wanted: int | tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """What a (width, height) becomes."""
    width, height = size
    if isinstance(wanted, tuple):
        return wanted[1], wanted[0]
    return (wanted, int(wanted * height / width)) if width <= height else (int(wanted * width / height), wanted)


def _squared(picture: Image, colour: tuple[int, ...], name: str) -> Image:
    width, height = picture.size
    edge = max(width, height)
    square = pillow()[0].new("RGB", limited((edge, edge), name), colour)
    square.paste(picture, ((edge - width) // 2, (edge - height) // 2))
    return square


def _centre(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of (H, W, 3), with black around it where that is smaller."""
    before = [math.ceil(max(0, wanted - has) / 2) for wanted, has in zip((height, width), x.shape, strict=False)]
    after = [max(0, wanted - has) - b for wanted, has, b in zip((height, width), x.shape, before, strict=False)]
    top, left = ((has - wanted) // 2 + b for wanted, has, b in zip((height, width), x.shape, before, strict=False))
    x = np.pad(x, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    return x[top : top + height, left : left + width]


Reader = Callable[[Fields], Processor]


def read_processor(values: Mapping[str, Any], readers: Mapping[str, Reader], where: str) -> Processor:
    """The processor that a preprocessor_config.json, or the `image_processor` of a processor_config.json, describes.

    Args:
        values: the JSON object.
        readers: {name of a class without "ImageProcessor": what reads its keys}: those that a model can work with.
        where: names the file in error messages.

    Raises:
        InputError: for a class or a value that is not supported, by name.
    """
    fields = Fields(values.get("image_processor") or values, where)
    kind = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if kind is None:
        raise InputError(f"{where}: `image_processor_type` is missing; take the file from the model's source")
    name = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if name not in readers:
        raise InputError(f"{where}: image_processor_type `{kind}` is not supported here (only {', '.join(readers)})")
    return readers[name](fields)


def plain(fields: Fields, defaults: Mapping[str, Any], edge: str = "shortest_edge") -> dict[str, Any]:
    """The fields of a `Processor` from the keys that all classes share; `edge` is which one `size` may name."""
    fields.defaults = {**COMMON, **defaults}

    def get(key: str) -> Any:  # null and absent are the same
        return fields.defaults.get(key) if fields.get(key) is None else fields.get(key)

    fields.expect("do_convert_rgb", True)
    fields.expect("pad_size")
    size = read_size(get("size"), fields.flag("default_to_square"), fields, edge)
    crop = read_size(get("crop_size"), True, fields)
    steps = {step: fields.flag(f"do_{step}") for step in ("resize", "rescale", "normalize")}
    mean, std, resample = get("image_mean"), get("image_std"), get("resample")
    if resample not in range(6):
        raise InputError(f"{fields.where}: `resample: {resample}` is none of Pillow's filters (0 to 5)")
    mean, std = colours(mean, fields), colours(std, fields)
    return {
        "size": size if steps["resize"] else None,
        "resample": resample,
        "crop": crop if fields.flag("do_center_crop") else None,
        "scale": fields.number("rescale_factor") if steps["rescale"] else None,
        "mean": mean if steps["normalize"] else None,
        "std": std if steps["normalize"] else None,
    }


def colours(x: Any, fields: Fields) -> tuple[float, ...]:
    """A number for each colour, or one for all."""
    found = tuple(x) if isinstance(x, list | tuple) else (x,) * 3
    if len(found) != 3 or not all(isinstance(n, int | float) for n in found):
        raise InputError(f"{fields.where}: `{x}`: image_mean and image_std are a number, or one per colour")
    return found


def read_size(size: Any, square: bool, fields: Fields, edge: str = "shortest_edge") -> Any:
    """A size in any spelling -> that of one edge, or (height, width), or None."""
    if isinstance(size, Mapping) and size.keys() == {edge}:
        size, square = size[edge], False
    elif isinstance(size, Mapping) and size.keys() == {"height", "width"}:
        size = [size["height"], size["width"]]
    pair = isinstance(size, list | tuple)
    numbers = size if pair else [size]
    if size is not None and not (len(numbers) == 1 + pair and all(isinstance(n, int) and n > 0 for n in numbers)):
        raise InputError(f"{fields.where}: `{size}` is no size; supported are a number, {edge}, and height with width")
    if pair:
        return tuple(size)
    return (size, size) if square and size is not None else size


def read_clip(fields: Fields) -> Processor:
    """CLIP's: its shortest edge resized, its middle cut out."""
    fields.expect("use_square_size", False)
    return Processor(**plain_of_clip(fields))


def plain_of_clip(fields: Fields) -> dict[str, Any]:
    """What the classes that began as copies of CLIP's share."""
    return plain(fields, CLIP | {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True})


def read_siglip(fields: Fields) -> Processor:
    """SigLIP's: stretched to its size."""
    return Processor(**plain(fields, HALF | {"size": [224, 224]}))


def read_llava(fields: Fields) -> Processor:
    """LLaVA-1.5's: CLIP's, with the option of a square first."""
    steps = plain_of_clip(fields)
    mean = colours(fields.get("image_mean") or CLIP["image_mean"], fields)
    return Processor(**steps, square=tuple(int(x * 255) for x in mean) if fields.flag("do_pad") else None)
