"""What a candidate made of a prompt, or the prompt itself, as people see it: one class a kind."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jevomerge.checkpoint.files import write_atomically
from jevomerge.fitness.pictures import as_png
from jevomerge.models.vision.pictures import pillow

PICTURES = "pictures"  # in a run's folder: those that people have been shown
ROOM = 1 << 30  # bytes that these take; of others the log has digests alone


class Output(Protocol):
    """Something that a page shows."""

    @property
    def digest(self) -> str:
        """Equal where people see no difference."""

    @property
    def shown(self) -> Mapping[str, str]:
        """What the page is sent: {"text": ...} or {"picture": a data URL}."""

    def kept(self, folder: Path | None) -> Mapping[str, str]:
        """What a vote's line has of it, after what does not fit there is a file in a run's folder, if there is one."""


class AsText(NamedTuple):
    """A text."""

    digest: str
    text: str

    @property
    def shown(self) -> Mapping[str, str]:
        """As it is."""
        return {"text": self.text}

    def kept(self, folder: Path | None) -> Mapping[str, str]:
        """As it is."""
        return self.shown


class AsPicture(NamedTuple):
    """A picture."""

    digest: str
    pixels: np.ndarray  # (H, W, 3) uint8

    @property
    def _png(self) -> bytes:
        return as_png(pillow()[0].fromarray(self.pixels))

    @property
    def shown(self) -> Mapping[str, str]:
        """As a PNG, to the bit."""
        return {"picture": f"data:image/png;base64,{base64.b64encode(self._png).decode()}"}

    def kept(self, folder: Path | None) -> Mapping[str, str]:
        """The name of a PNG, written once, as long as there is room."""
        if folder is None:
            return {}
        path = folder / PICTURES / f"{self.digest}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            png = self._png
            if len(png) + sum(file.stat().st_size for file in path.parent.iterdir()) > ROOM:
                return {}
            write_atomically(path, png)
        return {"picture": f"{PICTURES}/{path.name}"}


def as_text(text: str) -> AsText:
    """A text, whose ends nobody sees."""
    text = text.strip()
    return AsText(_digest(text.encode()), text)


def as_picture(pixels: np.ndarray) -> AsPicture:
    """A picture, (H, W, 3) uint8."""
    return AsPicture(_digest(repr(pixels.shape).encode() + pixels.tobytes()), pixels)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
