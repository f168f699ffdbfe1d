"""Pictures in prompts: read, counted in tokens, and looked at once in a run.

Where the tower and what joins it to the decoder hold no gene, what a picture is to the decoder is the same for all
candidates: it is computed when it is first needed and kept. A candidate costs what texts of that length cost. Models
with eyes of their own (`models.vision.sighted`) are handed the views, which are kept in the same way.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.safetensors_file import digest_tensors
from jevomerge.checkpoint.source import Source
from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example
from jevomerge.fitness.kept import KeepFeatures, Kept
from jevomerge.models.families import read_seeing
from jevomerge.models.specs import unflatten
from jevomerge.models.vision.pictures import open_picture
from jevomerge.models.vision.seeing import Seeing, features
from jevomerge.models.vision.sighted import Sighted
from jevomerge.models.vision.specs import TEXT

MARK = "<image>"  # what stands in a prompt for a picture
# How JPEG, PNG, GIF and WebP begin, as VLMEvalKit's TSV files have them, and as data URLs do.
BASE64 = re.compile(r"(?:data:[^,]*,)?((?:/9j/|iVBORw0K|R0lGOD|UklGR)[\w+/]+={0,2})", re.ASCII)


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it was handed in, and how the model it is for divides it."""

    name: str
    content: bytes
    layout: Hashable
    views: int  # of which it is made
    text: str  # what stands for it in the text that is tokenised
    features: int  # of it

    @property
    def digest(self) -> str:
        """Of its content."""
        return hashlib.sha256(self.content).hexdigest()


class Eyes:
    """What sees for a language model: tower, projector and processor of a folder."""

    def __init__(self, source: Source, tokenizer: Any, dtype: str = "float32", keep: KeepFeatures | None = None):
        """Read the configuration of `source`; weights are read when the first picture is looked at.

        Raises:
            InputError: if it cannot see, or its processor is not known.
        """
        if source.frame is None:
            raise InputError(f"{source.name} has no eyes: a task with `image` needs a vision-language model")
        frame, self.dtype = source.frame, dtype
        model = read_seeing(frame.json, str(frame.folder / "config.json"))
        self.model: Seeing = model.stored_as([*frame.tensors, frame.name("model.norm.weight")])
        self.tensors = frame.tensors
        self.processor = self._read_processor(frame.folder)
        self.tokenizer, self.token = tokenizer, tokenizer.convert_ids_to_tokens(self.model.image_token)
        # It is None beyond all of them.
        if self.token is None or tokenizer.convert_tokens_to_ids(self.token) != self.model.image_token:
            raise InputError(f"{source.name}: its tokenizer has no token {self.model.image_token}, the picture's")
        self._kept = Kept(keep or KeepFeatures())

    def _read_processor(self, folder: Path) -> Any:
        for file in ("preprocessor_config.json", "processor_config.json"):
            if (path := folder / file).exists():
                return self.model.processor(read_json(path), str(path))
        raise InputError(
            f"{folder} has no preprocessor_config.json, without which pictures cannot be read as it needs them; take "
            "it from where the model is from"
        )

    @property
    def width(self) -> int:
        """D of a feature."""
        return self.model.text.config.hidden_size

    def picture(self, given: Any, folder: Path, name: str) -> Picture:
        """A picture from a field of a row; `name` for messages.

        It is a path from `folder`, bytes, these in base64, {"bytes"} or {"path"}, or one that Pillow has opened.
        """
        if isinstance(given, Mapping):
            given = given.get("bytes") or given.get("path")
        if hasattr(given, "getbands"):
            given = as_png(open_picture(given, name))
        if isinstance(given, str) and (encoded := BASE64.fullmatch(given)):
            given = base64.b64decode(encoded[1])
        if isinstance(given, str):
            path = folder / given
            if not path.is_file():
                raise InputError(f"{name}: {path} is no file; pictures are named by their paths from the data file")
            given = path.read_bytes()
        if not isinstance(given, bytes):
            raise InputError(f"{name}: a picture is a path or bytes, not {type(given).__name__}")
        views = self.model.views(open_picture(given, name), self.processor, name)
        text = self.model.placeholder(views.layout, self.token)
        return Picture(name, given, views.layout, len(views.pixels), text, text.count(self.token))

    def check(self, tokens: Sequence[int], features: int, where: str) -> None:
        """Raise InputError unless a text has as many tokens for features, and none for what is not looked at."""
        if found := self.model.unseen.keys() & set(tokens):
            token = self.tokenizer.convert_ids_to_tokens(min(found))
            raise InputError(
                f"{where}: the prompt has {token}, which stands for {self.model.unseen[min(found)]}; only pictures are "
                f"looked at, each where the prompt has {MARK}"
            )
        if (seen := tokens.count(self.model.image_token)) != features:
            raise InputError(
                f"{where}: the prompt has {seen} tokens for {features} features of pictures; the tokenizer must know "
                "what stands for a picture as a token of its own, and the model take so long a text"
            )

    def look(self, picture: Picture) -> np.ndarray:
        """(N, D) what a picture is to the decoder."""

        def make() -> np.ndarray:
            pixels = jnp.asarray(self._views(picture))
            return np.asarray(features(self._params, self.model, pixels, picture.layout, dtype=self.dtype))

        return self._kept.get(self._key(picture, self._weights, self.dtype), make, self.dtype)

    def views(self, picture: Picture) -> np.ndarray:
        """(V, 3, S, S) what a tower looks at."""
        return self._kept.get(self._key(picture, "views"), lambda: self._views(picture), "float32")

    def _views(self, picture: Picture) -> np.ndarray:
        return self.model.views(open_picture(picture.content, picture.name), self.processor, picture.name).pixels

    def _key(self, picture: Picture, *what: str) -> str:
        """A digest of all that decides what is kept of a picture."""
        parts = (picture.digest, str(picture.layout), str(self.processor), str(self.model), *what)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def _weights(self) -> str:
        return digest_tensors(self.tensors)

    def size(self, pictures: Iterable[Picture], model: Any) -> int:
        """Bytes of what is kept of pictures, for a model that looks at them itself or has these eyes."""
        different = {(p.digest, p.layout): p for p in pictures}.values()
        if isinstance(model, Sighted):
            return sum(p.views for p in different) * 3 * math.prod(self.processor.view_size) * 4
        return sum(p.features for p in different) * self.width * np.dtype(self.dtype).itemsize

    def marked(self, text: str, pictures: Sequence[Picture]) -> str:
        """A text in which a chat template may have written pictures in the model's own way, with marks for them."""
        for own in {re.sub(f"(?:{re.escape(self.token)})+", lambda _: self.token, p.text) for p in pictures}:
            text = text.replace(own, MARK)
        return text

    def placed(self, prompt: str, pictures: Sequence[Picture], where: str) -> str:
        """The prompt as it is tokenised: what stands for each picture in place of its mark.

        Raises:
            InputError: unless there is a mark for each.
        """
        if (marks := prompt.count(MARK)) != len(pictures):
            raise InputError(f"{where}: the prompt has {MARK} {marks} times for {len(pictures)} pictures")
        first, *rest = prompt.split(MARK)
        return first + "".join(p.text + text for p, text in zip(pictures, rest, strict=True))

    def shown(self, example: Example, pictures: Sequence[Picture], where: str) -> Example:
        """An example whose tokens have room for the features of its pictures, with them.

        Raises:
            InputError: for a tokenizer by which it has not.
        """
        features = sum(p.text.count(self.token) for p in pictures)
        self.check(example.prompt_tokens, features, where)
        return example._replace(pictures=tuple(pictures), features=features)

    @cached_property
    def _params(self) -> dict[str, Any]:
        """The parts beside the decoder, in float32."""
        leaves = {}
        for spec in self.model.specs:
            if spec.path.startswith(f"{TEXT}."):
                continue
            stored = np.stack([self.tensors[name].read().astype(np.float32) for name in spec.names()])
            leaves[spec.path] = jnp.asarray(stored.reshape(spec.leaf_shape))
        return unflatten(leaves)


def images_of(value: Any) -> Sequence[Any]:
    """The pictures in a field: a list of them, one, or none."""
    return value if isinstance(value, list | tuple) else [] if value in (None, "") else [value]


def as_png(picture: Any) -> bytes:
    """What is in a file of an RGB picture, to the bit."""
    picture.save(file := io.BytesIO(), "png", compress_level=1)
    return file.getvalue()
