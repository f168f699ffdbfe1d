"""The YAML schema of a recipe's `tokenizer`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jevomerge.schema import Strict


class ModelToken(Strict):
    """Another token's row, of a model that is named."""

    kind: Literal["model_token"]  # tells it from the others
    model: str  # one of the recipe's
    token: str | None = None  # its text, or ...
    token_id: Annotated[int, Field(ge=0)] | None = None  # ... its number there

    @model_validator(mode="after")
    def _one(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("give either `token` or `token_id`")
        return self


class ZeroToken(Strict):
    """A row of zeros."""

    kind: Literal["zero"]  # tells it from the others


class TokenSource(Strict):
    """Where one token's row comes from, for models that lack it or, with `force`, for all."""

    source: str | ModelToken | ZeroToken  # a model that has the token
    force: bool = False  # also for models that have it


class TokenizerSpec(Strict):
    """A recipe's `tokenizer`: whose vocabulary the output has, and exceptions from the rules."""

    source: str = "union"  # or "base", or a model
    tokens: dict[str, TokenSource] = Field(default_factory=dict)  # the exceptions
    pad_to_multiple_of: Annotated[int, Field(gt=0)] | None = None  # of the rows of embedding and head
