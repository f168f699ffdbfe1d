"""LAION's aesthetic predictors (Schuhmann et al., 2022): how people rate a picture, whatever it shows.

Both versions are affine maps of CLIP's embedding: V1 is one layer, V2 five without activations between, which are one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.checkpoint.clip import ClipCheckpoint
from jevomerge.checkpoint.files import resolve
from jevomerge.checkpoint.safetensors_file import FLOATING, StoredTensor, all_finite, digest_tensors, read_header
from jevomerge.checkpoint.weights import read_weights
from jevomerge.devices.mesh import everywhere, put
from jevomerge.errors import InputError
from jevomerge.fitness.scorers.scorer import OPENAI, blank, named
from jevomerge.models.clip.clip import Clip
from jevomerge.models.layers import Params
from jevomerge.models.vision.on_device import views
from jevomerge.models.vision.processor import Processor
from jevomerge.schema import Notes

# Prefixes of the layers in the files that are published, first to last; numbers left out are dropouts.
VERSIONS = (("",), tuple(f"layers.{i}." for i in (0, 2, 4, 6, 7)))
HEAD = "head"  # where it hangs in the parameters


@dataclasses.dataclass(frozen=True)
class Aesthetic:
    """An affine map of a picture's embedding."""

    kind: ClassVar = "aesthetic"
    bounds: ClassVar = None

    clip: Clip
    processor: Processor
    source: ClipCheckpoint = dataclasses.field(compare=False, repr=False)
    layers: tuple[tuple[StoredTensor, StoredTensor], ...] = dataclasses.field(compare=False, repr=False)

    @classmethod
    def open(cls, weights: str | None, clip: str | None) -> Self:
        """See `open_scorer`; `clip` is the model whose embeddings the head was trained on."""
        head = _open_head(named(cls.kind, weights, None))
        source = ClipCheckpoint(clip or OPENAI)
        if (width := head[0][0].shape[1]) != source.model.width:
            raise InputError(
                f"{head[0][0].path} is a head for embeddings of {width}, {source.folder} makes {source.model.width}; "
                "name in `clip` the model that it was trained on"
            )
        return cls(source.model, source.processor, source, head)

    def fingerprint(self) -> dict[str, str]:
        """See `Scorer`."""
        head = {f"{i}.{stored.shape}": stored for i, layer in enumerate(self.layers) for stored in layer}
        return {**self.source.fingerprint(), HEAD: digest_tensors(head)}

    def load(self, mesh: Mesh | None = None) -> Params:
        """See `Scorer`; the head as one layer."""
        weight, bias = np.eye(self.clip.width), np.zeros(self.clip.width)
        for layer in self.layers:
            w, b = (_read(stored).astype(np.float64) for stored in layer)
            weight, bias = w @ weight, w @ bias + b
        where = None if mesh is None else everywhere(mesh)
        head = {"weight": put(weight[0].astype(np.float32), where), "bias": put(bias.astype(np.float32), where)}
        return {**self.source.load(mesh, self.clip.eyes), HEAD: head}

    def blank(self) -> tuple[Params, np.ndarray]:
        """See `Scorer`."""
        head = {"weight": np.zeros(self.clip.width, np.float32), "bias": np.zeros((), np.float32)}
        return {**blank(self.source, self.clip.eyes), HEAD: head}, np.zeros(0, np.float32)

    def told(self, texts: Sequence[str], params: Params) -> np.ndarray:
        """(N, 0): it looks at no text."""
        return np.zeros((len(texts), 0), np.float32)

    def score(self, params: Params, images: Array, told: Array) -> Array:
        """(B,): see `Scorer`."""
        seen = self.clip.of_pictures(params, views(images, self.processor))
        return jnp.sum(seen * params[HEAD]["weight"][None], axis=-1) + params[HEAD]["bias"]


def _open_head(reference: str) -> tuple[tuple[StoredTensor, StoredTensor], ...]:
    """(weight, bias) of its layers, first to last."""
    path = resolve(reference)
    tensors: Mapping[str, StoredTensor] = read_header(path) if path.is_file() else read_weights(path, Notes())
    for prefixes in VERSIONS:
        if tensors.keys() == {f"{prefix}{leaf}" for prefix in prefixes for leaf in ("weight", "bias")}:
            layers = tuple((tensors[f"{prefix}weight"], tensors[f"{prefix}bias"]) for prefix in prefixes)
            widths = [layers[0][0].shape[-1], *(bias.shape[-1] if bias.shape else 0 for _, bias in layers)]
            fits = all(
                w.shape == (out, width) and b.shape == (out,) and {w.code, b.code} <= set(FLOATING)
                for (w, b), width, out in zip(layers, widths[:-1], widths[1:], strict=True)
            )
            if fits and widths[-1] == 1:
                return layers
    raise InputError(
        f"{path} is no aesthetic head: its tensors must be those of LAION's V1 (weight, bias) or V2 (layers.0.weight, "
        "..., layers.7.bias), which experiments/convert_scorers writes"
    )


def _read(stored: StoredTensor) -> np.ndarray:
    array = stored.read()
    if not all_finite(array):
        raise InputError(f"{stored.path} contains NaN or infinity; convert it again")
    return array
