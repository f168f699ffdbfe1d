"""Qwen2.5-VL as a model that sees (Bai et al., 2025).

Parameters, named and laid out as in checkpoints except for the stacks of layers:

    {"text_model": ...,                          # the decoder's, a Qwen2
     "vision_tower": ...}                        # see `models.qwen2_5_vl.tower`
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.nested import read_text
from jevomerge.models.fields import Fields
from jevomerge.models.layers import Params
from jevomerge.models.qwen2_5_vl.config import IMAGE, SECTIONS, VIDEO, TextBeside, TowerConfig, read_tower, sections
from jevomerge.models.qwen2_5_vl.resizing import ResizingProcessor, read_qwen2_vl
from jevomerge.models.qwen2_5_vl.tower import BLOCKS, Grid, init, look, merged, windows
from jevomerge.models.specs import ParamSpec
from jevomerge.models.vision.processor import Processor, read_processor
from jevomerge.models.vision.seeing import Views
from jevomerge.models.vision.specs import TOWER, Names, module_specs, stacked, text_specs

if TYPE_CHECKING:
    from PIL.Image import Image

START, END = "<|vision_start|>", "<|vision_end|>"  # what stands around a picture
NESTING = TextBeside()
PROCESSORS = {"Qwen2VL": read_qwen2_vl}


def names_in(names: Iterable[str]) -> Names:
    """What a file that holds these tensors calls the parts: as on the hub, or as models of 4.52 to 5 have them."""
    if any(name.startswith(("model.language_model.", "model.visual.")) for name in names):
        return Names(text="model.language_model.", head="", tower="model.visual.", rest="")
    return Names(text="model.", head="", tower="visual.", rest="")


@functools.cache
def tower_specs(config: TowerConfig, prefix: str) -> tuple[ParamSpec, ...]:
    """The tower's table."""
    parts = {"ff": config.intermediate_size}  # heads lie side by side in none of its maps
    table = module_specs(lambda: init(jax.random.key(0), config), TOWER, prefix, "vision tower", parts)
    return tuple(stacked(table, BLOCKS, config.num_hidden_layers))


@dataclasses.dataclass(frozen=True)
class Qwen25VL:
    """Qwen2.5-VL as a `models.vision.seeing.Seeing`."""

    vision: TowerConfig
    text: Decoder
    image_token: int
    video_token: int
    sections: tuple[int, ...]  # pairs of a head that turn by the time, row and column of a feature
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)  # its config.json
    names: Names = dataclasses.field(default_factory=lambda: names_in(()), compare=False)

    @classmethod
    def read(cls, f: Fields) -> Qwen25VL:
        """What a config.json of model_type `qwen2_5_vl` describes.

        Raises:
            InputError: for a part, a key or a value that is not supported, by name.
        """
        f.defaults = {"image_token_id": IMAGE, "video_token_id": VIDEO}
        text = read_text(f, NESTING)
        tower = read_tower(f.table("vision_config") or Fields({}, f"{f.where}: vision_config"))
        if tower.width != text.config.hidden_size:
            raise InputError(
                f"{f.where}: vision_config: `out_hidden_size: {tower.width}` is not the hidden_size of the decoder, "
                f"{text.config.hidden_size}"
            )
        pairs, each = text.config.head_dim // 2, sections(f.values)
        if not isinstance(each, list) or [type(n) for n in each] != [int] * 3 or min(each) < 1 or sum(each) != pairs:
            raise InputError(f"{f.where}: `{SECTIONS}: {each}` must be three numbers of pairs, all {pairs} of a head")
        image, video = (f.integer(f"{kind}_token_id") for kind in ("image", "video"))
        return cls(tower, text, image, video, tuple(each), f.values)

    @property
    def unseen(self) -> Mapping[int, str]:
        """The token of videos."""
        return {self.video_token: "a video"}

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table of all parts."""
        found = [*text_specs(self.text.specs, self.names), *tower_specs(self.vision, self.names.tower)]
        return tuple(sorted(found, key=lambda s: s.path))

    @property
    def files(self) -> Mapping[str, Any]:
        """Its config.json."""
        return {"config.json": self.json}

    def stored_as(self, names: Iterable[str]) -> Qwen25VL:
        """The same model, its parts called as in a file that holds tensors of these names."""
        return dataclasses.replace(self, names=names_in(names))

    def processor(self, values: Mapping[str, Any], where: str = "preprocessor_config.json") -> Processor:
        """What a preprocessor_config.json describes, or the same within a processor_config.json.

        Raises:
            InputError: for what is not supported, and for patches that this model cannot look at.
        """
        found, c = read_processor(values, PROCESSORS, where), self.vision
        assert isinstance(found, ResizingProcessor)
        if (found.patch, found.merge, found.frames) != (c.patch_size, c.merge, c.frames):
            raise InputError(
                f"{where}: patch_size, merge_size and temporal_patch_size are not those of the model's tower, "
                f"{c.patch_size}, {c.merge} and {c.frames}"
            )
        return found

    def views(self, picture: Image, processor: Processor, name: str = "a picture") -> Views:
        """What the tower looks at of an RGB picture, which error messages call `name`: windows."""
        (pixels,) = processor.views(picture, name)
        rows, columns = (n // self.vision.patch_size for n in pixels.shape[1:])
        return Views(windows(pixels, self.vision), (rows, columns))

    def placeholder(self, layout: Any, token: str) -> str:
        """What stands in a text for a picture: `token`, which is `image_token` in words, once per feature."""
        return f"{START}{token * len(self._places(layout))}{END}"

    def shifts(self, layouts: Sequence[Any]) -> np.ndarray:
        """(F, H/2) int32: pairs are turned by time, row and column of a feature, where those of tokens count on."""
        found, before = [np.zeros((0, sum(self.sections)), np.int32)], 0
        for layout in layouts:
            places = self._places(layout)
            moved = before + places - np.arange(len(places), dtype=np.int32)[:, None]
            found.append(np.repeat(moved, self.sections, axis=1))
            before = moved[-1].max()  # from which the text goes on
        return np.concatenate(found)

    def _places(self, layout: Grid) -> np.ndarray:
        """(N, 3) int32: time, row and column of each feature of a picture."""
        rows, columns = (n // self.vision.merge for n in layout)
        return np.indices((1, rows, columns), np.int32).reshape(3, -1).T

    def features(self, params: Params, pixels: Array, layout: Any) -> Array:
        """(V, 3, S, S) in the dtype of the activations -> (N, D)."""
        tower = params[TOWER]
        return merged(tower, self.vision, look(tower, self.vision, pixels, layout))
