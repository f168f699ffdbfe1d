"""What is computed once in a run and needed again and again: in memory as long as there is room, or in files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from jevomerge.checkpoint.files import expanded
from jevomerge.schema import Strict

SHARE = 4  # without a word on it, a quarter of the machine's memory


class KeepFeatures(Strict):
    """`features` of a run: where is kept what pictures are to a model."""

    memory: Annotated[float, Field(ge=0)] | None = None  # GB that it may take, a quarter of the machine's if not given
    folder: str | None = None  # instead: where it lies as files, which are mapped, and found again by later runs

    @property
    def bytes(self) -> int:
        """The most that is kept in memory."""
        if self.memory is not None:
            return int(self.memory * 1e9)
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE

    def says(self, size: int) -> str:
        """What becomes of so many bytes."""
        if self.folder is not None:
            return f"they lie as files in {self.folder}"
        room = f"{self.bytes / 1e9:.3g} GB" + (" (a quarter of the machine's memory)" if self.memory is None else "")
        if size <= self.bytes:
            return f"they are kept in memory, where `features.memory` allows {room}"
        return (
            f"`features.memory` allows {room}: what is beyond is made again for each group of candidates; raise it, or "
            "give a `features.folder`, where they lie as files"
        )


class Kept:
    """Arrays by what they are made of."""

    def __init__(self, wanted: KeepFeatures):
        """Nothing yet, but for what lies in the folder, if there is one."""
        self.left = wanted.bytes
        self.folder = None if wanted.folder is None else expanded(wanted.folder)
        self._held: dict[str, np.ndarray] = {}

    def get(self, key: str, make: Callable[[], np.ndarray], dtype: str) -> np.ndarray:
        """The array of a `key`, which is good as a file name, made if it is not here."""
        if self.folder is not None:
            return self._mapped(self.folder / f"{key}.npy", make, dtype)
        if key in self._held:
            return self._held[key]
        if (made := make()).nbytes <= self.left:
            self._held[key] = made
            self.left -= made.nbytes
        return made

    def _mapped(self, path: Path, make: Callable[[], np.ndarray], dtype: str) -> np.ndarray:
        """An array in a file, whose bytes come into memory where they are looked at."""
        with contextlib.suppress(OSError, ValueError):  # not there, or cut short
            return np.load(path, mmap_mode="r").view(dtype)
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w+b", dir=path.parent, prefix=".", delete=False) as file:
            np.save(file, made.view(f"u{made.itemsize}"))  # the format knows no bfloat16
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
        return made
