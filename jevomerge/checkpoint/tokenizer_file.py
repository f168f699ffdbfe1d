"""tokenizer.json, as far as vocabularies are aligned by it; the rest is the tokenizer library's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from jevomerge.checkpoint.files import read_json
from jevomerge.schema import Count, Part, check

Two = Field(min_length=2, max_length=2)


class TokenizerModel(Part):
    """Its vocabulary: ids by token, or scores of the tokens in order; its merges: pairs, in old files as one text."""

    vocab: dict[str, Count] | list[Annotated[list[str | float], Two]] = Field(default_factory=dict)
    merges: list[str | Annotated[list[str], Two]] = Field(default_factory=list)


class AddedToken(Part):
    """A token beside the vocabulary."""

    content: str
    id: Count


class TokenizerFile(Part):
    """tokenizer.json."""

    model: TokenizerModel
    added_tokens: list[AddedToken] = Field(default_factory=list)


def read_tokenizer(path: Path) -> dict[str, Any]:
    """A tokenizer.json, as it is.

    Raises:
        InputError: if it is none.
    """
    values: dict[str, Any] = check(TokenizerFile, read_json(path), path, "copy or download the tokenizer again")
    return values
