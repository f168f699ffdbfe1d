"""The YAML schema of what is searched: genes, and paths."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jevomerge.schema import Dtype, Strict

BY = ("component", "tensor", "block", "sakana", "block x component", "block x sakana")


class Gene(Strict):
    """A parameter that is searched: its range and how finely it varies over the model.

    A parameter of kind int takes the whole numbers of its range, one of kind bool is on or off.
    """

    range: tuple[float, float] | None = None  # None: the parameter's own domain
    layers_per_group: int | None = Field(None, gt=0)  # None: one value for all layers
    smooth: int | None = Field(None, ge=2)  # instead: values at so many points of depth, lines between them
    by: Literal[BY] | tuple[str, ...] | None = None  # type: ignore[valid-type]
    # component: attention, linear attention, MLP, router, experts and norms each get their own; tensor: every kind of
    # tensor does; block: each block of a U-Net does, IN00 to OUT08, and BASE, what is in none; sakana: its attention's
    # matrices (attn) and all else (conv); a list of filters: a tensor belongs to the first that its name contains, else
    # to the rest

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"range": value} if isinstance(value, (list, tuple)) else value

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"the range {list(value)} is empty: give [low, high] with low < high")
        return value

    @field_validator("by", mode="before")
    @classmethod
    def _word_or_list(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in BY:
            raise ValueError(f"`{value}` is none of {', '.join(BY)}; parts of tensors' names are a list: [{value}]")
        return value

    @field_validator("by")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("give at least one filter, each once")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Gene:
        if self.smooth is not None and self.layers_per_group is not None:
            raise ValueError("`layers_per_group` and `smooth` both say how it varies over depth: leave one of them out")
        return self


class PathSlice(Strict):
    """Layers [first, one past the last) of a model, as a slice of a passthrough recipe."""

    model: str  # one of `models`
    layer_range: tuple[int, int]  # [first, one past the last)


class PathSearch(Strict):
    """Data-flow space: which layers of which models a token passes through, and how its stream is scaled.

    With a `recipe` beside it, model A is the merge and `models` are the others.
    """

    models: tuple[str, ...] = Field(min_length=1)  # the first is A, whose embedding, head and tokenizer are used
    repeats: int = Field(3, gt=0, le=100)  # how often all layers are laid out
    scaling: Literal["none", "per_hop", "matrix", "network"] = "per_hop"  # where the scales come from
    scale_range: tuple[float, float] = (0.5, 1.5)  # of every scale
    scale: Literal["stream", "delta"] = "stream"  # what they multiply: the residual stream, or the last MLP's output
    start: tuple[PathSlice, ...] = ()  # where the search begins, or a passthrough recipe's file; (): model A
    others_on: float = Field(0.5, gt=0, lt=1)  # of the slots not in the start, the share on in the first generation
    dtype: Dtype | None = None  # of the exported model; None: model A's, float32 where scales are folded in
