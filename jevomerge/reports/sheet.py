"""Contact sheets: what each model draws of the same prompts from the same noise, side by side."""

from __future__ import annotations

import base64
import io
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from jevomerge.fitness.tasks import AnyTask
from jevomerge.models.vision.pictures import pillow
from jevomerge.reports.heldout import best_name, models_of
from jevomerge.reports.look import blank, styled

# In this order; the latter have the letters of many languages, and a machine may have one of them.
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "Hiragino Sans", "Yu Gothic", "Unifont")
LETTERS = 26  # of a line above a picture; Chinese and Japanese ones take the room of two
SIDE = 1.5  # inches of a picture on a sheet of its own


class Picture(NamedTuple):
    """What a model drew."""

    jpeg: str  # in base64
    score: float | None


class Sheet(NamedTuple):
    """The pictures of a task."""

    task: str
    prompts: list[tuple[str, str]]  # what was to be drawn, and by what it was judged
    rows: list[tuple[str, list[Picture]]]  # by model, the result first


def sheets(models: Mapping[str, Any], tasks: Sequence[AnyTask]) -> list[Sheet]:
    """One for each task that draws: the result, its sources, their average, points of a front.

    Tasks that judge the same pictures share one, with the scores of the first.
    `models`: as in heldout.json, or in drawn.json, which is like it.
    """
    known, found = models_of(models), list[Sheet]()
    order = [name for name in dict.fromkeys((best_name(models), *known)) if name in known]
    for task in tasks:
        drawn = {name: known[name].get("drawn", {}).get(task.name) for name in order}
        rows = [
            (name, [Picture(*pair) for pair in zip(jpegs, known[name]["scores"][task.name], strict=False)])
            for name, jpegs in drawn.items()
            if jpegs
        ]
        if rows and not any(jpegs_of(other.rows) == jpegs_of(rows) for other in found):
            shown = models["examples"][task.name][: len(rows[0][1])]
            found.append(Sheet(task.name, [(e["prompt"], e["answer"]) for e in shown], rows))
    return found


def jpegs_of(rows: Sequence[tuple[str, Sequence[Picture]]]) -> list[list[str]]:
    """The pictures alone."""
    return [[picture.jpeg for picture in pictures] for _, pictures in rows]


@styled
def sheet_figure(sheet: Sheet) -> Figure:
    """The sheet as a picture for anywhere."""
    across, down = len(sheet.prompts), len(sheet.rows)
    known = {*font_manager.get_font_names()}
    letters = [name for name in FONTS if name in known]
    figure = blank(across * SIDE + 0.3, down * SIDE + 0.4)
    axes = figure.subplots(down, across, squeeze=False)
    for i, (name, pictures) in enumerate(sheet.rows):
        for place, picture in zip(axes[i], pictures, strict=False):
            place.imshow(pixels_of(picture))
            place.set(xticks=[], yticks=[], frame_on=False)
        axes[i][0].set_ylabel(textwrap.shorten(name, 32, placeholder="…"), fontsize=7, family=letters)
    faces = [font_manager.get_font(font_manager.findfont(name)) for name in letters]
    for place, texts in zip(axes[0], sheet.prompts, strict=True):
        # Where no font has the prompt's letters, what it was judged by may be readable.
        text = next((t for t in texts if all(any(f.get_char_index(ord(c)) for f in faces) for c in t)), texts[0])
        place.set_title(wrapped(text), fontsize=7, loc="left", family=letters)
    return figure


def wrapped(text: str, lines: int = 3) -> str:
    """A text in lines as wide as a picture."""
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return textwrap.fill(text, LETTERS // (1 + wide), max_lines=lines, placeholder="…")


def pixels_of(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8."""
    images, _ = pillow()
    return np.asarray(images.open(io.BytesIO(base64.b64decode(picture.jpeg))).convert("RGB"))
