"""Pictures that a device has made into what a tower looks at, without a way over the host.

It computes what `Processor.view` does of an eight-bit picture: colours rounded to 255 steps, Pillow's bicubic filter
along rows and then along columns, rounded after each.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.models.vision.processor import Processor, target

BICUBIC, REACH = 3, 2  # Pillow's number of the filter, and how many pixels away it looks
SHARPNESS = -0.5  # Keys' a (1981), as Pillow has it


def check(processor: Processor, size: int, where: str) -> None:
    """Raise InputError for steps that are not among those here, or a view that is not of `size` x `size`."""
    p = processor
    resized = p.resample == BICUBIC and isinstance(p.size, int) and p.size >= size and p.square is None
    if not (resized and p.crop == (size, size) and p.scale is not None and p.mean is not None and p.std is not None):
        raise InputError(
            f"{where}: pictures are only resized (bicubic, by their shortest edge), cut to the tower's {size} x {size} "
            "and normalised; take the file from where the model is from"
        )


def views(images: Array, processor: Processor) -> Array:
    """(B, H, W, 3) float32, colours from 0 to 1, through a processor that `check` lets pass -> (B, 3, S, S) float32."""
    p, (height, width) = processor, images.shape[1:3]
    assert isinstance(p.size, int)
    assert p.crop is not None
    wide, tall = target(p.size, (width, height))
    across, down = _weights(width, wide, p.crop[1]), _weights(height, tall, p.crop[0])
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    x = _stepped(images.astype(jnp.float32) * 255)
    x = _stepped(exact("bhwc,xw->bhxc", x, across))
    x = _stepped(exact("bhxc,yh->bcyx", x, down))
    mean, std = (jnp.asarray(n, jnp.float32)[None, :, None, None] for n in (p.mean, p.std))
    return (x * (p.scale or 1) - mean) / std


def _stepped(x: Array) -> Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)


@functools.cache
def _weights(size: int, resized: int, kept: int) -> np.ndarray:
    """(kept, size): what each of the pixels in the middle of a resized row is made of."""
    step = size / resized
    blur = max(step, 1.0)
    found = np.zeros((kept, size))
    for i in range(kept):
        centre = ((resized - kept) // 2 + i + 0.5) * step
        first, last = (math.floor(centre + way * REACH * blur + 0.5) for way in (-1, 1))
        first, last = max(first, 0), min(last, size)
        x = np.abs(np.arange(first, last) - centre + 0.5) / blur
        a = SHARPNESS
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
        weights = np.where(x < 1, near, np.where(x < REACH, far, 0))
        found[i, first:last] = weights / weights.sum()
    return found.astype(np.float32)
