"""Recipes as mergekit writes them: the YAML schema, and one normal form for its three ways to list models."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AliasChoices, BeforeValidator, Field, PlainValidator, PrivateAttr, field_validator, model_validator

from jevomerge.checkpoint.files import SUFFIX, split_adapter
from jevomerge.errors import InputError
from jevomerge.methods.schema import SEMANTICS
from jevomerge.models.diffusion.places import read_mbw, write_mbw
from jevomerge.models.diffusion.schema import MERGEABLE, MERGED
from jevomerge.schema import (
    Given,
    Location,
    Origin,
    Strict,
    anchor,
    load_given,
    load_yaml,
    plain,
    validate,
    without_torch,
)
from jevomerge.tokenizers.schema import TokenizerSpec

MODEL_KEYS = (
    "model",
    "base_model",
    "path",
    "lora",
    "tokenizer_source",
    "source",
    "carry",
    "vision",
    "compute_as",
    "take",
)  # whose values may name a model
SWITCHES = {
    **dict.fromkeys(("true", "yes", "on", "y", "t"), True),
    **dict.fromkeys(("false", "no", "off", "n", "f"), False),
}
LARGEST = 3.4028234e38  # of what coefficients are computed in, float32
Scalar = bool | int | float
Value = Scalar | tuple[Scalar, ...]  # a list is a gradient over the layers


RecipeDtype = Annotated[Literal["float32", "bfloat16", "float16", "float64"], without_torch]


class Conditional(Strict):
    """A value for the tensors of which all is true that is said; None: nothing is."""

    filter: str | None = None  # their name contains it; "*": whatever their name
    block: str | None = None  # they stand there: IN04, as users of U-Nets have it
    component: str | None = None  # they are of this kind, as genes have it
    value: Value  # of a parameter


def _scalar(value: Any) -> Scalar:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = SWITCHES[value.lower()] if value.lower() in SWITCHES else float(value)
    if not isinstance(value, (bool, int, float)) or not abs(value) < math.inf:
        raise ValueError(f"{value!r} is not a number")
    if abs(value) > LARGEST:
        raise ValueError(f"{value:g} is larger than float32 can hold")
    return value


def _value(value: Any) -> Value:
    if not isinstance(value, (list, tuple)):
        return _scalar(value)
    if not value:
        raise ValueError("an empty list has no values")
    return tuple(map(_scalar, value))


def _setting(value: Any) -> Value | tuple[Conditional, ...]:
    """A number, a list of numbers, or conditions on the tensor's name."""
    cases = value if isinstance(value, (list, tuple)) else [value]
    if not any(isinstance(case, (dict, Conditional)) for case in cases):
        return _value(value)
    conditions = []
    for case in cases:
        if isinstance(case, Conditional):
            conditions.append(case)
        elif isinstance(case, dict) and case.keys() == {"mbw"}:
            conditions += [
                Conditional(block=block, value=_scalar(x)) for block, x in read_mbw(str(case["mbw"])).items()
            ]
        elif isinstance(case, dict) and "value" in case and case.keys() <= Conditional.model_fields.keys():
            told = {k: str(v) for k, v in case.items() if k != "value" and v is not None}
            conditions.append(Conditional(**told, value=_value(case["value"])))
        else:
            raise ValueError(f"{case!r} is not a condition: it has a `value` and mostly a `filter`")
    return tuple(conditions)


Setting = Annotated[Any, PlainValidator(_setting)]  # Value or tuple[Conditional, ...], with messages of our own
Parameters = dict[str, Setting]


def _reference(value: Any) -> Any:
    """mergekit's long form {model: {path, revision}, lora: {path, revision}} -> "path@revision+lora@revision"."""
    if not isinstance(value, dict) or "model" not in value:
        return value
    texts = []
    for part in (value["model"], value.get("lora")):
        names = [part.get("path"), part.get("revision")] if isinstance(part, dict) else [part]
        if any(name is not None and not isinstance(name, str) for name in names):
            raise ValueError(f"{value!r} does not name a model")
        texts.append("@".join(name for name in names if name))
    return "+".join(filter(None, texts))


Reference = Annotated[str, BeforeValidator(_reference), Field(min_length=1)]


class RecipeModel(Strict):
    """A model in a recipe, and the parameters that apply to it alone."""

    model: Reference  # perhaps with an adapter: model+adapter
    parameters: Parameters = Field(default_factory=dict)  # before those of the recipe
    layer_range: tuple[int, int] | None = None  # [first, one past the last); None: all

    @field_validator("layer_range")
    @classmethod
    def _ordered(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 0 <= value[0] < value[1]:
            raise ValueError(f"{list(value)} is not a range of layers: give [first, one past the last)")
        return value


class RecipeSlice(Strict):
    """A range of layers made from ranges of equal length of several models."""

    sources: tuple[RecipeModel, ...] = Field(min_length=1)  # with as many layers each
    base_model: Reference | None = None  # before that of the recipe
    parameters: Parameters = Field(default_factory=dict)  # likewise
    residual_weight: float | None = None  # declared by mergekit, which never uses it


class Extract(Strict):
    """How close adapters are to the models that they are extracted from."""

    rank: int = Field(gt=0)  # of each linear map, at most


TEXT = "text_decoder"  # what mergekit calls the language part of a model of several
EYES = {"vision_tower": "vision tower", "multi_modal_projector": "projector"}  # others, as components of a table


class RecipeModule(Strict):
    """A part of a model. Decoders have just one; beside it, one that lists a single model alone is carried along."""

    models: tuple[RecipeModel, ...] = ()  # that are merged, or the one that lends it
    slices: tuple[RecipeSlice, ...] = ()  # or layers of them; of the language part alone
    base_model: Reference | None = None  # of this part, if not the recipe's: a text model has no tower
    parameters: Parameters = Field(default_factory=dict)  # before those of the recipe

    @property
    def carried(self) -> bool:
        """Whether there is nothing in it to be merged."""
        settings = self.parameters or self.base_model or any(m.parameters for m in self.models)
        return len(self.models) == 1 and not settings


class Layered(NamedTuple):
    """The normal form of a slice: which layers of which models, and whose parameters apply."""

    sources: tuple[RecipeModel, ...]
    where: Location  # of `sources` in the file
    base_model: str | None
    base_where: Location
    scopes: tuple[tuple[Location, Parameters], ...]  # innermost first
    whole: bool  # whether the recipe lists models, not slices of them


class Recipe(Strict):
    """A merge as mergekit's YAML writes it; `semantics` and `seed` are ours."""

    name: str | None = None  # of a stage that later documents of the file refer to
    merge_method: str  # see jevomerge/methods/README.md
    models: tuple[RecipeModel, ...] = ()  # that are merged ...
    slices: tuple[RecipeSlice, ...] = ()  # ... or layers of them, bottom to top ...
    modules: dict[str, RecipeModule] = Field(default_factory=dict)  # ... or each part by itself
    base_model: Reference | None = None  # from which task vectors are counted
    parameters: Parameters = Field(default_factory=dict)  # of the method
    dtype: RecipeDtype | None = None  # None: that which holds the numbers of all sources
    out_dtype: RecipeDtype | None = None  # of what is written, if not `dtype`
    tokenizer_source: Reference | None = None  # whose vocabulary the result has: union, base or a model
    tokenizer: TokenizerSpec | None = None  # the same with exceptions
    chat_template: str | None = None  # auto, a name or jinja
    # Whose parts beside the language model the result has, such as its eyes; default: the only model that has any.
    carry: Reference | None = Field(None, validation_alias=AliasChoices("carry", "vision"))
    compute_as: Reference | None = None  # base or a model: whose rope, window and eps the result has
    # Of image pipelines:
    parts: tuple[Literal[MERGEABLE], ...] = Field(MERGED, min_length=1)  # type: ignore[valid-type]  # that are merged
    take: dict[str, Reference] = Field(default_factory=dict)  # {part that is not: whose}; default: base, else the first
    pooled_from: Literal[1, 2] | None = None  # the text encoder whose pooled vector the U-Net sees; see `assembly`
    variant: str | None = Field(None, pattern=r"^[\w-]+$")  # of files of the same weights, if there are several: fp16
    # Of LoRA adapters of one model: written is one more, see jevomerge/methods/README.md; default: a model.
    adapter: Literal["sum", "factors"] | Annotated[int, Field(gt=0)] | None = None
    semantics: Literal[SEMANTICS] = "mergekit"  # type: ignore[valid-type]  # or as the papers or PEFT have it
    seed: int = 0  # of random masks
    _origin: Origin = PrivateAttr(default_factory=Origin)

    @model_validator(mode="after")
    def _one_list(self) -> Recipe:
        if sum(map(bool, (self.models, self.slices, self.modules))) != 1:
            raise ValueError("give one of `models`, `slices` and `modules`")
        if len(self.modules) > 1 and TEXT not in self.modules:
            raise ValueError(f"`modules`: of several one is `{TEXT}`, which is merged")
        for module in self.modules.values():
            if bool(module.models) == bool(module.slices):
                raise ValueError("give either `models` or `slices` in a module")
        if unknown := [name for name in self._merged if name not in EYES or self.modules[name].slices]:
            parts = ", ".join(f"`{name}`" for name in (TEXT, *EYES))
            raise ValueError(
                f"`modules`: `{unknown[0]}` must list one model alone, from which it is carried along; "
                f"merged are {parts}, the last two by `models`"
            )
        if len({m.models[0].model for m in self._carried} | ({self.carry} if self.carry else set())) > 1:
            raise ValueError("`modules`: what is not merged is carried along from one model, which `carry` names too")
        if merged := [part for part in self.take if part in self.parts]:
            raise ValueError(f"`take`: {merged[0]} is merged (`parts`), and so comes from no single model")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("give either `tokenizer_source` or `tokenizer`")
        return self

    @property
    def origin(self) -> Origin:
        """Where the recipe was read from."""
        return self._origin

    def with_origin(self, origin: Origin) -> Recipe:
        """The recipe, knowing the file it was read from."""
        self._origin = origin
        return self

    @property
    def _beside(self) -> dict[str, RecipeModule]:
        """The modules beside the language part."""
        return {k: m for k, m in self.modules.items() if k != TEXT} if len(self.modules) > 1 else {}

    @property
    def _merged(self) -> dict[str, RecipeModule]:
        return {name: module for name, module in self._beside.items() if not module.carried}

    @property
    def _carried(self) -> list[RecipeModule]:
        return [module for module in self._beside.values() if module.carried]

    @property
    def eyes(self) -> dict[str, Layered]:
        """What beside the language part is merged, by component: tower, projector; all else is carried along."""
        found = {}
        for name, module in self._merged.items():
            where: Location = ("modules", name)
            base_where = (where if module.base_model else ()) + ("base_model",)
            scopes = (((*where, "parameters"), module.parameters), (("parameters",), self.parameters))
            base = module.base_model or self.base_model
            found[EYES[name]] = Layered(module.models, (*where, "models"), base, base_where, scopes, True)
        return found

    @property
    def carrier(self) -> str | None:
        """The model whose parts beside the language model are those of the result; None: it is not said."""
        return self.carry or next((m.models[0].model for m in self._carried), None)

    @property
    def references(self) -> set[str]:
        """The models it names."""
        parts = [*self.stack, *self.eyes.values()]
        return {m.model for s in parts for m in s.sources} | {s.base_model for s in parts if s.base_model}

    @property
    def mentioned(self) -> set[str | None]:
        """All models it names, those that lend a token or a tokenizer too, without their revisions and adapters."""
        found = set[str | None]()

        def note(_: str, name: str) -> str:
            found.add(_head(name))
            return name

        rename_models(self.model_dump(), note)
        return found

    def with_models(self, paths: Mapping[str, str]) -> Recipe:
        """The recipe with the models named in `paths` read from there."""

        def found(_: str, name: str) -> str:
            head = _head(name)
            model, plus, adapter = (paths.get(head, head) + name[len(head) :]).partition("+")
            return model + plus + paths.get(adapter, adapter)

        return Recipe.model_validate(rename_models(self.model_dump(), found)).with_origin(self.origin)

    @property
    def stack(self) -> list[Layered]:
        """The slices, bottom to top, whichever way the models are listed."""
        scopes: tuple[tuple[Location, Parameters], ...] = ((("parameters",), self.parameters),)
        part: Recipe | RecipeModule = self
        where: Location = ()
        if self.modules:
            name = TEXT if len(self.modules) > 1 else next(iter(self.modules))
            part = module = self.modules[name]
            where = ("modules", name)
            scopes = (((*where, "parameters"), module.parameters), *scopes)
        if part.models:
            return [Layered(part.models, (*where, "models"), self.base_model, ("base_model",), scopes, True)]
        return [
            Layered(
                s.sources,
                (*where, "slices", i, "sources"),
                s.base_model or self.base_model,
                ((*where, "slices", i) if s.base_model else ()) + ("base_model",),
                (((*where, "slices", i, "parameters"), s.parameters), *scopes),
                False,
            )
            for i, s in enumerate(part.slices)
        ]

    @property
    def path(self) -> list[tuple[str, int, int]]:
        """A frankenmerge as a path: (model, first layer, one past the last) of each slice.

        Raises:
            InputError: for any other recipe.
        """
        slices = [s.sources[0] for s in self.stack if len(s.sources) == 1]
        scaled = any(parameters for s in self.stack for _, parameters in s.scopes) or any(s.parameters for s in slices)
        if self.merge_method != "passthrough" or scaled or len(slices) < len(self.stack):
            raise InputError(f"{self.origin.at()}not a path: only a passthrough recipe of slices without parameters is")
        if whole := [s.model for s in slices if s.layer_range is None]:
            raise InputError(f"{self.origin.at()}`layer_range` of {whole[0]} is missing")
        return [(s.model, *s.layer_range) for s in slices if s.layer_range is not None]

    @property
    def spec(self) -> TokenizerSpec | None:
        """The `tokenizer` block, which `tokenizer_source` is short for."""
        if self.tokenizer_source is not None:
            return TokenizerSpec(source=self.tokenizer_source)
        return self.tokenizer


def read_recipe(given: Given) -> Recipe:
    """A mergekit recipe; model paths are relative to its file or else, as mergekit's are, to the working directory."""
    data, origin, folder = load_given(given)
    return validate(Recipe, anchor_recipe(data, folder), origin).with_origin(origin)


def read_stages(given: Given | Sequence[Mapping[str, Any]] | Recipe) -> list[Recipe]:
    """The documents of a recipe in the order of their use; all but one have a `name`, by which others use their result.

    The last is the one without a name, or else the last of the file that no other uses. A recipe that was read before
    is the only document.

    Raises:
        InputError: for a name that is missing, doubled, or also a folder, and for documents that need each other.
    """
    if isinstance(given, Recipe):
        return [given]
    if isinstance(given, (str, Path)):
        documents, folder = load_yaml(Path(given)), Path(given).parent
    else:
        mappings = [given] if isinstance(given, Mapping) else given
        documents, folder = [(plain(data), Origin()) for data in mappings], Path()
    names = [data["name"] for data, _ in documents if isinstance(data.get("name"), str)]
    stages: list[Recipe] = []
    for data, origin in documents:
        recipe = validate(Recipe, anchor_recipe(data, folder, names), origin).with_origin(origin)
        if recipe.name is None and any(s.name is None for s in stages):
            raise InputError(f"{origin.at()}it needs a `name`: only one document, the last result, may have none")
        if (name := recipe.name) is not None and len(documents) > 1:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise InputError(f"{origin.at('name')}`{name}` must be of letters, digits, dots and dashes")
            if names.count(name) > 1 or (folder / name).exists() or Path(name).exists():
                raise InputError(f"{origin.at('name')}`{name}` is taken already; choose another name")
        stages.append(recipe)
    return _in_order(stages) if len(stages) > 1 else stages


def _in_order(stages: Sequence[Recipe]) -> list[Recipe]:
    """Every document behind those whose results it uses, the final one last."""
    needs = [stage.mentioned & {s.name for s in stages} for stage in stages]
    used = set[str | None]().union(*needs)
    final = [s for s in stages if s.name is None] or [s for s in stages if s.name not in used][-1:]
    ordered: list[Recipe] = []
    while len(ordered) < len(stages):
        done = {s.name for s in ordered}
        ready = [s for s, need in zip(stages, needs, strict=True) if s not in ordered and need <= done]
        if not ready:
            stuck = next(s for s in stages if s not in ordered)
            raise InputError(f"{stuck.origin.at('name')}`{stuck.name}` and other documents need each other's results")
        ordered.append(next((s for s in ready if s not in final), ready[0]))
    return ordered


def anchor_recipe(data: Any, folder: Path, stages: Sequence[str] = ()) -> Any:
    """A recipe's mapping with the paths of its models made absolute; the names in `stages` stay as they are."""

    def found(key: str, name: str) -> str:
        words = ("union", "base") if key in ("source", "tokenizer_source", "compute_as") else ()
        return name if _head(name) in stages or name in words else anchor_model(name, folder)

    return rename_models(data, found)


def with_mbw(data: Any, text: str) -> Any:
    """A recipe's mapping whose two models are mixed by a block-weight string: 0 is the first one, 1 the second.

    Raises:
        ValueError: for a string that is none, and for more or less than two models.
    """
    blocks = read_mbw(text)
    models = [dict(m) for m in data.get("models") or () if isinstance(m, dict)]
    others = [m for m in models if m.get("model") != data.get("base_model")]
    if data.get("merge_method") == "slerp":
        return {**data, "parameters": {**(data.get("parameters") or {}), "t": {"mbw": text}}}
    shares = {1: [blocks], 2: [{b: round(1 - x, 9) for b, x in blocks.items()}, blocks]}
    if len(others) not in shares or (len(others) == 1) != (data.get("base_model") is not None):
        raise ValueError("a string of block weights mixes two models, or a base model and one other")
    for model, own in zip(others, shares[len(others)], strict=True):
        model["parameters"] = {**(model.get("parameters") or {}), "weight": {"mbw": write_mbw(own)}}
    return {**data, "models": models}


def rename_models(value: Any, rename: Callable[[str, str], str], key: str = "") -> Any:
    """A recipe's mapping with `rename(key, name)` for every name of a model; a key without a value is not given."""
    if isinstance(value, dict):
        return {k: rename_models(v, rename, "take" if key == "take" else k) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [rename_models(v, rename) for v in value]
    return rename(key, value) if key in MODEL_KEYS and isinstance(value, str) and value else value


def seen_from(folder: str | Path, names: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """What a recipe in `folder` calls a model: one on this machine by its path from there, which is nobody's secret.

    `names`: {path: what those are called}.
    """
    here = Path(folder).resolve()
    here = here.parent if here.suffix == SUFFIX else here  # of a single file it is in that file

    def called(part: str) -> str:
        if names and part in names:
            return names[part]
        if not Path(part).is_absolute():
            return part
        path = os.path.relpath(part, here)
        return path if path.startswith(".") else f"./{path}"  # or it might be the name of a model on the hub

    return lambda reference: "+".join(called(part) for part in split_adapter(reference) if part is not None)


def _head(reference: str) -> str:
    """The model in "model@revision+lora"."""
    return re.split(r"[@+]", reference, maxsplit=1)[0]


def anchor_model(reference: str, folder: Path) -> str:
    """A model, or both halves of "model+lora", as absolute paths where they are folders."""
    if "+" not in reference or anchor(reference, folder) != reference:
        return anchor(reference, folder)
    pluses = [i for i, c in enumerate(reference) if c == "+"]
    halves = [(anchor(reference[:i], folder), anchor(reference[i + 1 :], folder)) for i in pluses]
    return "+".join(next((h for h in halves if all(Path(x).is_absolute() for x in h)), halves[-1]))
