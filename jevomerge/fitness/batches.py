"""Examples, and how texts are laid out in batches of few shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import numpy as np
from jax import Array

from jevomerge.models.model import Pictures, Shown
from jevomerge.models.vision.sighted import Sighted, Unseen

FEW = 16  # a part of a batch: a guess between 41 of 397 prompts, which are not few, and 12 (experiments/pod_plan)


class Example(NamedTuple):
    """One example as text and as tokens."""

    prompt: str
    answer: str
    prompt_tokens: list[int]
    answer_tokens: list[int]
    pictures: tuple[Any, ...] = ()  # `fitness.pictures.Picture`s, in the order of their tokens
    features: int = 0  # of all of them


@flax.struct.dataclass
class Batch:
    """Rows of tokens, padded on the left (B, T); the last `answer_length` of a row are its reference answer."""

    tokens: Array  # (B, T) int32
    valid: Array  # (B, T) bool
    answer_length: Array  # (B,) int32
    pictures: Shown | None = None


class Layout(NamedTuple):
    """The static shape of a batch: everything of one layout shares one compiled program."""

    rows: int
    length: int  # T
    answer_slots: int  # A, or the room for new tokens
    features: int = 0  # F, the room for features of pictures
    views: int = 0  # W, the room for views of pictures
    together: int | None = None  # rows that are run at a time, where others take their places; None: all
    shared: int = 0  # P, tokens that all rows begin with, beside the T

    @property
    def running(self) -> int:
        """How many rows are run at a time."""
        return self.rows if self.together is None else self.together


def plan_layouts(
    lengths: Sequence[int],
    slots: Sequence[int],
    searched: int,
    tokens_per_batch: int,
    at_once: int | None = None,
    pieces: int = 1,
    *,
    written: int = 0,
    pictures: Sequence[Sequence[Any]] = (),
    fillings: int = 1,
    shared: int = 0,
) -> list[Layout]:
    """A few batch shapes, by growing length, into which every text fits.

    Lengths fall into buckets whose widths double, unless padding all of them to the longest costs less than a
    quarter more tokens than that; a bucket is as long as its longest text, rounded up to 8. Where texts are written, a
    bucket that is few for a batch goes with the one before it, if that costs no more: each batch reads all weights for
    every token. All texts share the shapes, but the number of rows fits what a candidate is scored on: the search
    split, or the `at_once` examples of a minibatch, in `pieces` or more.

    Args:
        lengths: (n,) tokens of each text.
        slots: (n,) how many answer slots it needs.
        searched: how many of them, the first ones, are the search split.
        tokens_per_batch: at most so many in a batch, if a row can be that small.
        at_once: how many of the search split make a minibatch; None: all.
        pieces: in which a candidate is scored, at least.
        written: tokens that a row grows by.
        pictures: (n,) those of each text; (): none.
        fillings: a batch may have so many times the rows that are run at a time.
        shared: tokens that all texts begin with, which rows do not hold.
    """
    sizes, room = np.array(lengths) - shared, np.array(slots)
    shown = pictures or [()] * len(lengths)
    features, views = (np.array([sum(getattr(p, k) for p in row) for row in shown]) for k in ("features", "views"))
    buckets = np.ceil(np.log2(np.maximum(sizes, 16))).astype(int)
    longest = {bucket: sizes[buckets == bucket].max() for bucket in np.unique(buckets)}
    if sizes.size * sizes.max() < 1.25 * sum(longest[bucket] for bucket in buckets):
        buckets = np.zeros_like(buckets)
    for bucket, shorter in itertools.pairwise(np.unique(buckets)[::-1] if written else ()):
        size, other = longest[bucket] + written, longest[shorter] + written
        if np.sum(buckets[:searched] == bucket) / pieces < tokens_per_batch // size / FEW and size < 1.25 * other:
            buckets[buckets == bucket] = shorter
            longest[shorter] = longest[bucket]
    layouts = []
    for bucket in np.unique(buckets):
        inside = buckets == bucket
        length = int(-(-sizes[inside].max() // 8) * 8)
        count = float(inside[:searched].sum())
        if at_once is not None and at_once < searched:
            count *= at_once / searched
            count += 2 * math.sqrt(count)  # the share of a random minibatch varies
        count = max(count, inside.sum() / 8)  # a bucket that the search hardly meets is for the others
        most = max(1, tokens_per_batch // (length + written))
        least = max(math.ceil(count / (most * fillings)), min(pieces, math.ceil(count)))
        rows = math.ceil(count / least)  # full ones of equal size
        running = math.ceil(rows / math.ceil(rows / most))
        layout = Layout(rows, length, *(int(counts[inside].max()) for counts in (room, features, views)))
        layouts.append(layout._replace(together=running if running < rows else None, shared=shared))
    return layouts


def shortest(lengths: Sequence[int], layouts: Sequence[Layout]) -> np.ndarray:
    """(n,) the index of the shortest layout that holds each text, of layouts by growing length."""
    return np.searchsorted([layout.length for layout in layouts], lengths)


def left_padded(texts: Sequence[Sequence[int]], layout: Layout, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, T) tokens of at most B texts and which of them are valid."""
    tokens = np.full((layout.rows, layout.length), pad, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for row, text in enumerate(texts):
        tokens[row, layout.length - len(text) :] = text
        valid[row, layout.length - len(text) :] = True
    valid[len(texts) :, -1] = True  # padding rows hold one token: an empty row has no softmax
    return tokens, valid


def shown(examples: Sequence[Example], layout: Layout, eyes: Any, model: Any) -> Shown | None:
    """The pictures of at most B texts: what `fitness.pictures.Eyes` see in them, or for a model with eyes the views.

    None: there are none.
    """
    if not layout.features:
        return None
    token: Any = np.int32(eyes.model.image_token)
    if isinstance(model, Sighted):
        return _unseen(examples, layout, eyes, token)
    features = np.zeros((layout.rows, layout.features, eyes.width), eyes.dtype)
    plain = eyes.model.shifts(())
    shifts = None if plain is None else np.zeros((*features.shape[:2], plain.shape[1]), np.int32)
    for row, example in enumerate(examples):
        if example.pictures:
            seen = np.concatenate([eyes.look(p) for p in example.pictures])
            features[row, : len(seen)] = seen
            if shifts is not None:
                shifts[row, : len(seen)] = eyes.model.shifts([p.layout for p in example.pictures])
    arrays: tuple[Any, ...] = (features, token, shifts)  # NumPy's, for any mesh
    return Pictures(*arrays)


def _unseen(examples: Sequence[Example], layout: Layout, eyes: Any, token: Any) -> Unseen:
    """The same for a model that looks at them itself."""
    pixels = np.zeros((layout.rows, layout.views, 3, *eyes.processor.view_size), np.float32)
    order = np.zeros((layout.rows, layout.features), np.int32)
    for row, places, example in zip(pixels, order, examples, strict=False):
        view = feature = 0
        for picture in example.pictures:
            row[view : view + picture.views] = eyes.views(picture)
            places[feature : feature + picture.features] = eyes.model.order(picture.layout, view)
            view, feature = view + picture.views, feature + picture.features
    arrays: tuple[Any, ...] = (pixels, order, token)
    return Unseen(*arrays)
