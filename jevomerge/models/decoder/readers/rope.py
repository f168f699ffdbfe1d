"""Rotary embeddings as config.json has them, in the spellings of transformers 4 (`rope_scaling`) and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.fields import Fields

KINDS = ("default", "linear", "llama3", "yarn")
LONG = (*KINDS, "longrope", "dynamic")  # of families that have been trained so
FULL, SLIDING = "full_attention", "sliding_attention"


def rope_table(f: Fields, otherwise: Mapping[str, Any] | None = None) -> Fields:
    """The dictionary of the rotary embedding, in either spelling; transformers prefers the old one."""
    f.seen.add("rope_parameters")
    return f.table("rope_scaling") or f.table("rope_parameters") or Fields(otherwise or {}, f.where)


def read_rope(
    f: Fields,
    kinds: tuple[str, ...] = KINDS,
    *,
    table: Fields | None = None,
    partial: str = "",
    theta: str = "rope_theta",
) -> Rope:
    """The rotary embedding of all layers.

    Args:
        f: config.json.
        kinds: of scalings that the family has.
        table: its dictionary, by default `rope_table`.
        partial: the old spelling's key for how much of a head turns; "": the family does not ask.
        theta: the old spelling's key.
    """
    f.defaults = {theta: 10000.0} | dict(f.defaults)
    found = table or rope_table(f)
    f.seen.add("original_max_position_embeddings")
    # Phi's place for it, which transformers looks at first in every family.
    first = f.get("original_max_position_embeddings")
    length = f.integer("max_position_embeddings" if first is None else "original_max_position_embeddings")
    share = f.number(partial) if partial else None
    longest = f.integer("max_position_embeddings")
    return rope_from(found, f.number(theta), length, first is not None, kinds=kinds, share=share, longest=longest)


def rope_from(
    scaling: Fields,
    theta: float,
    length: int,
    overrides: bool = False,
    *,
    kinds: tuple[str, ...] = KINDS,
    share: float | None = None,
    longest: int = 0,
) -> Rope:
    """A rope dictionary, `type` being an old spelling of `rope_type`.

    Args:
        scaling: the dictionary.
        theta: where it does not say.
        length: of the texts that the model was first trained on, where it does not say.
        overrides: `length` holds even if it does.
        kinds: as for `read_rope`.
        share: how much of a head turns, where it does not say; None: the family is not asked.
        longest: of the texts that the model takes.
    """
    scaling.defaults = {
        "rope_type": scaling.get("type") or "default", "rope_theta": theta, "original_max_position_embeddings": length,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "partial_rotary_factor": share,
    }  # fmt: skip
    kind, rope = scaling.text("rope_type"), dict[str, Any](theta=scaling.number("rope_theta"))
    if share is None:
        scaling.expect("partial_rotary_factor", 1.0)
    else:
        rope["partial"] = scaling.number("partial_rotary_factor")
        if rope["partial"] > 1:
            raise scaling.wrong("partial_rotary_factor", rope["partial"], "a share, at most 1")
    if kind not in kinds:
        raise InputError(f"{scaling.where}: rope_type `{kind}` is not supported ({', '.join(kinds)})")
    if kind == "default":
        return Rope(**rope)
    rope["rope_type"] = kind
    if kind == "proportional":
        return Rope(factor=1.0 if scaling.get("factor") is None else scaling.number("factor"), **rope)
    if kind == "longrope":
        return _longrope(scaling, rope, length, longest)
    rope["factor"] = scaling.number("factor")
    if kind == "linear":
        return Rope(**rope)
    if kind == "dynamic":  # it is measured against the longest texts
        return Rope(original_max_position_embeddings=longest, **rope)
    original = scaling.number("original_max_position_embeddings")
    rope["original_max_position_embeddings"] = length if overrides else original
    if kind == "llama3":
        rope |= {name: scaling.number(name) for name in ("low_freq_factor", "high_freq_factor")}
        return Rope(**rope)
    rope |= {name: scaling.number(name) for name in ("beta_fast", "beta_slow")}
    if scaling.get("attention_factor") is not None:
        rope["attention_factor"] = scaling.number("attention_factor")
    elif scaling.get("mscale") and scaling.get("mscale_all_dim"):  # DeepSeek's
        logarithm = 0.1 * math.log(max(rope["factor"], 1.0))
        upper, lower = (scaling.number(name) * logarithm + 1.0 for name in ("mscale", "mscale_all_dim"))
        rope["attention_factor"] = upper / lower
    return Rope(truncate=scaling.flag("truncate"), **rope)


def _longrope(scaling: Fields, rope: dict[str, Any], length: int, longest: int) -> Rope:
    """Phi's, whose scale follows from how much longer texts may become, where it is not given."""
    factor = longest / length if scaling.get("factor") is None else scaling.number("factor")
    if scaling.get("attention_factor") is not None:
        scale = scaling.number("attention_factor")
    else:
        scale = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    factors: dict[str, Any] = {name: tuple(scaling.numbers(name)) for name in ("short_factor", "long_factor")}
    return Rope(factor=factor, original_max_position_embeddings=length, attention_factor=scale, **factors, **rope)


def ropes_by_type(f: Fields, thetas: Mapping[str, tuple[str, float]]) -> dict[str, Rope]:
    """Those of the kinds of layers: a dictionary each, or in the old spelling keys of their own.

    `thetas`: {layer type: (the old spelling's key, what it stands for if it is absent)}; `rope_scaling` is FULL's.
    """
    both = f.table("rope_parameters") or Fields({}, f.where)
    if both.values and not both.values.keys() & thetas.keys():
        raise InputError(f"{both.where} must have an object each for {' and '.join(thetas)}")
    ropes = {}
    length = f.integer("max_position_embeddings")
    for name, (key, theta) in thetas.items():
        own, old = both.table(name), f.table("rope_scaling") if name == FULL else None  # local layers are never scaled
        f.defaults = {key: theta} | dict(f.defaults)
        # A dictionary in the old spelling is laid over a default one: its `rope_type` counts, its `type` does not.
        values = {**(own.values if own else {"rope_type": "default"}), **(old.values if old else {})}
        ropes[name] = rope_from(Fields(values, f"{f.where}: rope_parameters: {name}"), f.number(key), length)
    return ropes
