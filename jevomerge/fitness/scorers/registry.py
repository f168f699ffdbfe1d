"""Scorers by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from jevomerge.errors import InputError
from jevomerge.fitness.scorers.aesthetic import Aesthetic
from jevomerge.fitness.scorers.clip import ClipScore
from jevomerge.fitness.scorers.hpsv2 import Hpsv2
from jevomerge.fitness.scorers.pickscore import PickScore
from jevomerge.fitness.scorers.scorer import Scorer

SCORERS: dict[str, Callable[[str | None, str | None], Scorer]] = {
    scorer.kind: scorer.open for scorer in (ClipScore, Aesthetic, PickScore, Hpsv2)
}


def open_scorer(kind: str, weights: str | None = None, clip: str | None = None) -> Scorer:
    """A scorer of which everything has been checked and no weight has been read.

    Args:
        kind: clip, aesthetic, pickscore or hpsv2.
        weights: a folder, a file or a hub name; None: those that are published, where they are no pickle.
        clip: what completes weights in a single file: for `aesthetic` the CLIP that its head was trained on, for the
            others a folder with their tokenizer. None: openai/clip-vit-large-patch14, of which the others need
            the tokenizer alone.

    Raises:
        InputError: if it cannot score as it is.
    """
    if kind not in SCORERS:
        close = difflib.get_close_matches(kind, SCORERS, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(SCORERS)}"
        raise InputError(f"score: `{kind}` is not known; {hint}")
    return SCORERS[kind](weights, clip)
