"""Idefics3's views: a picture in squares of the tower's size, and the whole behind them (Laurençon et al., 2024)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from jevomerge.errors import InputError
from jevomerge.models.fields import Fields
from jevomerge.models.vision.pictures import limited
from jevomerge.models.vision.processor import HALF, Processor, plain, read_size

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 4096  # no picture is resized to more, whatever the file says
FAKE, WHOLE = "<fake_token_around_image>", "<global-img>"  # what stands around a view and before the whole


def text_of(grid: tuple[int, int], view: str) -> str:
    """What stands in a text for a picture of so many rows and columns of views, `view` for the features of each."""
    rows, columns = grid
    whole = f"{FAKE}{WHOLE}{view}{FAKE}"
    if not rows:
        return whole
    lines = ("".join(f"{FAKE}<row_{r}_col_{c}>{view}" for c in range(1, columns + 1)) for r in range(1, rows + 1))
    return "\n".join([*lines, "", whole])


@dataclasses.dataclass(frozen=True)
class SplittingProcessor(Processor):
    """Its steps; `size` here is that of the longest edge."""

    edge: int = 364  # of a view
    split: bool = True

    @property
    def view_size(self) -> tuple[int, int]:
        """Of what it makes."""
        return self.edge, self.edge

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of a picture -> rows and columns of its views, (0, 0) if it has but one."""
        columns, rows = (n // self.edge for n in self._multiple(self._within(size)))
        return (rows, columns) if self.split and rows * columns > 1 else (0, 0)

    def views(self, picture: Image, name: str) -> np.ndarray:
        """An RGB picture, and its name -> (V, 3, S, S) float32: its parts row by row, if any, then the whole."""
        edge, parts = self.edge, []
        rows, columns = self.grid(picture.size)
        picture = picture.resize(limited(self._within(picture.size), name), self.resample)
        if rows:
            picture = picture.resize(limited((columns * edge, rows * edge), name), self.resample)
            corners = [(c * edge, r * edge) for r in range(rows) for c in range(columns)]
            parts = [picture.crop((x, y, x + edge, y + edge)) for x, y in corners]
        whole = picture.resize((edge, edge), self.resample)
        return np.stack([self.normalised(np.asarray(view)) for view in (*parts, whole)])

    def _within(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after the first resizing, which enlarges too: the shorter edge even, then none above 4096."""
        if self.size is None:
            return size
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        width, height = size
        aspect = width / height
        if width >= height:
            width, height = self.size, _even(int(self.size / aspect))
        else:
            width, height = _even(int(self.size * aspect)), self.size
        aspect = width / height
        if width >= height and width > LONGEST:
            width, height = LONGEST, int(LONGEST / aspect)
        elif height > width and height > LONGEST:
            width, height = int(LONGEST * aspect), LONGEST
        return max(width, 1), max(height, 1)

    def _multiple(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in whole views: of the longer edge, and of what the shorter one then is."""
        (width, height), aspect = size, size[0] / size[1]
        if width >= height:
            width = self._up(width)
            return width, self._up(int(width / aspect))
        height = self._up(height)
        return self._up(int(height * aspect)), height

    def _up(self, pixels: int) -> int:
        return math.ceil(pixels / self.edge) * self.edge


def _even(pixels: int) -> int:
    return max(pixels + pixels % 2, 1)


def read_idefics3(fields: Fields) -> SplittingProcessor:
    """The processor of Idefics3 and SmolVLM."""
    for key in ("do_rescale", "do_normalize"):  # else transformers takes black views for padding
        fields.expect(key, True)
    edge = read_size(fields.get("max_image_size") or {"longest_edge": 364}, False, fields, "longest_edge")
    if not isinstance(edge, int):
        raise InputError(f"{fields.where}: `max_image_size` must be that of the longest_edge")
    defaults = HALF | {"size": {"longest_edge": 4 * 364}, "resample": 1, "do_image_splitting": True}
    steps = plain(fields, defaults, "longest_edge")
    return SplittingProcessor(**steps, edge=edge, split=fields.flag("do_image_splitting"))
