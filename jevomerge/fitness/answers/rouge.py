"""ROUGE-L of Japanese texts, whose words MeCab finds, as the paper judges descriptions of pictures."""

from __future__ import annotations

import functools
import re
from typing import Any

from jevomerge.errors import InputError

# Faces, pictographs, transport, flags, dingbats: what else the paper's evaluation takes for emoji.
PICTURES = re.compile(
    "[\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff\U0001f1e0-\U0001f1ff\u2702-\u27b0]"
)


def rouge_l_ja(reference: str, text: str) -> float:
    """F-measure of the longest common subsequence of words, from 0 to 1."""
    return float(_scorer().score(reference, text)["rougeL"].fmeasure)


@functools.cache
def _scorer() -> Any:
    """rouge-score's scorer with MeCab's words.

    Raises:
        InputError: if a package is missing.
    """
    try:
        import emoji
        import neologdn
        from fugashi import Tagger
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(
            f"compare: rouge_l_ja needs {error.name}, which is not installed: pip install 'jevomerge[rouge]'"
        ) from None
    tagger = Tagger("-Owakati")

    class Words:
        """Half width, no emoji, then MeCab's words: the normalisation of the paper's evaluation."""

        def tokenize(self, text: str) -> list[str]:
            """The words of a text."""
            plain = PICTURES.sub("", "".join(c for c in text if not emoji.is_emoji(c)))
            words: list[str] = tagger.parse(neologdn.normalize(plain)).split()
            return words

    return RougeScorer(["rougeL"], tokenizer=Words())
