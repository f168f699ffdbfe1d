"""What everybody may know of a scorer, and what those share that compare a picture with a text.

Dimensions in comments: N texts, B pictures, H and W pixels, D of what a scorer is told of a text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.checkpoint.clip import ClipCheckpoint
from jevomerge.checkpoint.files import resolve
from jevomerge.checkpoint.source import TOKENIZER_FILES, blank_leaf
from jevomerge.errors import InputError
from jevomerge.models.clip.clip import Clip
from jevomerge.models.clip.text import OLD_EOS
from jevomerge.models.layers import Params
from jevomerge.models.specs import ParamSpec, unflatten
from jevomerge.models.vision.on_device import views
from jevomerge.models.vision.processor import Processor
from jevomerge.tokenizers.load import load_tokenizer

OPENAI = "openai/clip-vit-large-patch14"
READING = ("text_model", "text_projection")  # the parameters that only texts need


class Scorer(Protocol):
    """A model that scores pictures; a hashable value, equal to those that compute the same."""

    kind: ClassVar[str]

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Between which its scores lie whatever the picture; None: nobody knows."""

    def fingerprint(self) -> dict[str, str]:
        """{part: digest of its content}, by which a resumed run knows that it is judged as before."""

    def load(self, mesh: Mesh | None = None) -> Params:
        """Its parameters, in the stored dtypes.

        Raises:
            InputError: if one of them is NaN or infinite.
        """

    def blank(self) -> tuple[Params, np.ndarray]:
        """Zeros in place of the parameters that `score` needs and of (D,) what is told of a text; nothing is read."""

    def told(self, texts: Sequence[str], params: Params) -> np.ndarray:
        """(N, D) float32 of N > 0 texts, cut where the model cannot take more; D is 0 if it looks at pictures alone.

        Each is read alone, so that its numbers do not depend on what others there are.
        """

    def score(self, params: Params, images: Array, told: Array) -> Array:
        """(B, H, W, 3) float32, colours from 0 to 1, with (B, D) of their texts -> (B,) float32; higher is better.

        Pure: what the model needs of resizing and cutting is done on the device. A picture with NaN scores NaN.
        """


@dataclasses.dataclass(frozen=True)
class Comparing:
    """A scorer that takes the cosine between CLIP's embeddings of a picture and of its text."""

    kind: ClassVar[str]
    published: ClassVar[str | None]  # hub name; None: as a pickle alone

    clip: Clip
    processor: Processor
    source: ClipCheckpoint = dataclasses.field(compare=False, repr=False)
    tokenizer: Any = dataclasses.field(compare=False, repr=False)

    @classmethod
    def open(cls, weights: str | None, clip: str | None) -> Self:
        """See `open_scorer`; `clip` is where the tokenizer is, if it is not beside the weights."""
        source = ClipCheckpoint(named(cls.kind, weights, cls.published))
        return cls(source.model, source.processor, source, _tokenizer(source, clip))

    def fingerprint(self) -> dict[str, str]:
        """See `Scorer`."""
        return self.source.fingerprint()

    def load(self, mesh: Mesh | None = None) -> Params:
        """See `Scorer`. After `told`, nobody reads `text_model` and `text_projection`: a caller may drop them."""
        return self.source.load(mesh)

    def blank(self) -> tuple[Params, np.ndarray]:
        """See `Scorer`."""
        specs = [spec for spec in self.clip.specs if not spec.path.startswith(READING)]
        return blank(self.source, specs), np.zeros(self.clip.width, np.float32)

    def told(self, texts: Sequence[str], params: Params) -> np.ndarray:
        """(N, D): see `Scorer`."""
        length = self.clip.text.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length).input_ids
        return np.concatenate([_read(params, self.clip, np.array([ids], np.int32)) for ids in tokens])

    def cosine(self, params: Params, images: Array, told: Array) -> Array:
        """(B,) float32 from -1 to 1."""
        seen = self.clip.of_pictures(params, views(images, self.processor))
        return jnp.sum(seen * told, axis=-1)


def blank(source: ClipCheckpoint, specs: Sequence[ParamSpec]) -> Params:
    """Zeros in place of parameters."""
    return unflatten({s.path: blank_leaf(s, source.tensors[s.names()[0]].dtype) for s in specs})


@functools.partial(jax.jit, static_argnames="clip")
def _read(params: Params, clip: Clip, tokens: Array) -> Array:
    return clip.of_texts(params, tokens)


def named(kind: str, weights: str | None, published: str | None) -> str:
    """The weights that a user named, else those that are published."""
    if (found := weights or published) is None:
        raise InputError(
            f"{kind}: `weights` is missing: they are published as a pickle, which can run code and is never opened; "
            "convert it once, see experiments/convert_scorers, and name the file that this writes"
        )
    return found


def _tokenizer(source: ClipCheckpoint, clip: str | None) -> Any:
    """CLIP's, of which all models have the same, or that of a folder."""
    folder = source.folder
    if clip is not None or not any((folder / name).exists() for name in TOKENIZER_FILES):
        folder = resolve(clip or OPENAI, ("*.json", "*.txt"))
    tokenizer, text = load_tokenizer(folder), source.model.text
    if len(tokenizer) > text.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, {source.folder} knows {text.vocab_size}; "
            "name in `clip` a folder with its tokenizer"
        )
    if text.eos_token_id not in (OLD_EOS, tokenizer.eos_token_id):
        raise InputError(
            f"{folder}: its tokenizer ends texts with {tokenizer.eos_token_id}, {source.folder} with "
            f"{text.eos_token_id}; name in `clip` a folder with its tokenizer"
        )
    return tokenizer
