"""Qwen2-VL's pictures: of any shape, in whole squares of patches, neither too few pixels nor too many."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from jevomerge.errors import InputError
from jevomerge.models.fields import Fields
from jevomerge.models.vision.pictures import limited
from jevomerge.models.vision.processor import CLIP, Processor, plain

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 200  # times as long as high, and no more
FEWEST, MOST = 56 * 56, 28 * 28 * 1280  # pixels, where a file says nothing


@dataclasses.dataclass(frozen=True)
class ResizingProcessor(Processor):
    """Its steps."""

    fewest: int = FEWEST
    most: int = MOST
    patch: int = 14
    merge: int = 2
    frames: int = 2

    def views(self, picture: Image, name: str) -> np.ndarray:
        """An RGB picture, and its name -> (1, 3, height, width) float32."""
        size = limited(self.resized(picture.size, name), name)
        return self.normalised(np.asarray(picture.resize(size, self.resample)))[None]

    def resized(self, size: tuple[int, int], name: str) -> tuple[int, int]:
        """What a (width, height) becomes: multiples of a square of patches, of about the same shape."""
        if max(size) > LONGEST * min(size):
            raise InputError(f"{name}: {size[0]} x {size[1]} pixels are longer than {LONGEST} times the other side")
        unit, pixels = self.patch * self.merge, math.prod(size)
        near = [round(n / unit) * unit for n in size]
        if math.prod(near) > self.most:
            scale = math.sqrt(pixels / self.most)
            near = [max(unit, math.floor(n / scale / unit) * unit) for n in size]
        elif math.prod(near) < self.fewest:
            scale = math.sqrt(self.fewest / pixels)
            near = [math.ceil(n * scale / unit) * unit for n in size]
        return near[0], near[1]


def read_qwen2_vl(fields: Fields) -> ResizingProcessor:
    """The processor of Qwen2-VL and Qwen2.5-VL; `min_pixels` and `max_pixels` go before `size`."""
    fields.expect("do_resize", True)
    values = {key: value for key, value in fields.values.items() if key != "size"}
    steps = plain(Fields(values, fields.where), CLIP)
    size = fields.table("size") or Fields({}, fields.where)
    size.defaults = {} if size.values else {"shortest_edge": FEWEST, "longest_edge": MOST}
    fields.defaults = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}

    def bound(key: str, edge: str) -> int:
        return size.integer(edge) if fields.get(key) is None else fields.integer(key)

    return ResizingProcessor(
        **steps,
        fewest=bound("min_pixels", "shortest_edge"),
        most=bound("max_pixels", "longest_edge"),
        patch=fields.integer("patch_size"),
        merge=fields.integer("merge_size"),
        frames=fields.integer("temporal_patch_size"),
    )
