"""LLaVA-NeXT's tiles: a picture seen once whole and once in parts, at the resolution that suits it (Liu et al., 2024).

Sizes are (height, width), as in transformers' files, unless they are a Pillow picture's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jevomerge.errors import InputError
from jevomerge.models.fields import Fields
from jevomerge.models.vision.pictures import pillow
from jevomerge.models.vision.processor import Processor, plain_of_clip, read_size

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
PINPOINTS: tuple[Size, ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a picture lies in its views: those after the first form a grid, whose edges are dropped as features."""

    grid: Size  # of views
    kept: Size  # patches of the grid that show the picture, in its middle; a side may be 0

    def tokens(self, side: int) -> int:
        """Features of the picture: a view's, the grid's, and one at the end of each of the grid's rows."""
        return side**2 + self.kept[0] * (self.kept[1] + 1)


def tiling(size: Size, pinpoints: Sequence[Size], view: int, side: int) -> Tiling:
    """How a picture of this size lies in views of `view` pixels and `side` patches along each side."""
    rows, columns = (n // view for n in best(size, pinpoints))
    height, width = rows * side, columns * side
    if size[1] / size[0] > width / height:
        shown = int(round(size[0] * (width / size[1]), 7))
        return Tiling((rows, columns), (height - (height - shown) // 2 * 2, width))
    shown = int(round(size[1] * (height / size[0]), 7))
    return Tiling((rows, columns), (height, width - (width - shown) // 2 * 2))


def best(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The resolution that shows most of a picture's pixels; of those the smallest, of those the first."""

    def suits(resolution: Size) -> Size:
        scale = min(resolution[1] / size[1], resolution[0] / size[0])
        shown = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return shown, shown - resolution[0] * resolution[1]

    return max(pinpoints, key=suits)


@dataclasses.dataclass(frozen=True)
class TilingProcessor(Processor):
    """LLaVA-NeXT's steps; each of its views goes through CLIP's."""

    pinpoints: tuple[Size, ...] = PINPOINTS
    whole: Size = (224, 224)  # to which the first view is stretched
    tile: int = 224

    def views(self, picture: Image, name: str) -> np.ndarray:
        """An RGB picture, and its name -> (V, 3, S, S) float32: the whole, then its tiles row by row."""
        width, height = picture.size
        high, wide = best((height, width), self.pinpoints)
        across, down = wide / width, high / height
        if across < down:
            size = wide, min(math.ceil(height * across), high)
        else:
            size = min(math.ceil(width * down), wide), high
        canvas = pillow()[0].new("RGB", (wide, high))  # black, whatever the mean
        canvas.paste(picture.resize(size, self.resample), ((wide - size[0]) // 2, (high - size[1]) // 2))
        corners = [(x, y) for y in range(0, high, self.tile) for x in range(0, wide, self.tile)]
        tiles = [canvas.crop((x, y, min(x + self.tile, wide), min(y + self.tile, high))) for x, y in corners]
        whole = picture.resize(self.whole[::-1], self.resample)
        return np.stack([self.view(v, name) for v in (whole, *tiles)])


def read_pinpoints(fields: Fields) -> tuple[Size, ...]:
    """`image_grid_pinpoints`: resolutions to choose from."""
    found: Any = fields.get("image_grid_pinpoints")
    found = PINPOINTS if found is None else found
    try:
        pairs = tuple((int(height), int(width)) for height, width in found)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs or min(map(min, pairs)) < 1:
        raise InputError(f"{fields.where}: image_grid_pinpoints must be a list of heights with widths")
    return pairs


def read_llava_next(fields: Fields) -> TilingProcessor:
    """The processor of LLaVA-NeXT."""
    steps = plain_of_clip(fields)
    size, crop = steps["size"], read_size(fields.get("crop_size") or 224, True, fields)  # the tiles', cropped or not
    if size is None:
        raise InputError(f"{fields.where}: `do_resize: false` is not supported: the views need a size")
    whole = size if isinstance(size, tuple) else (size, size)
    return TilingProcessor(**steps, pinpoints=read_pinpoints(fields), whole=whole, tile=crop[0])
