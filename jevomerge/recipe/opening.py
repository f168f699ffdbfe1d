"""A recipe's models, opened and checked against each other; no weight is read."""

from __future__ import annotations

from collections.abc import Callable

from jevomerge.checkpoint.source import Source, with_eyes
from jevomerge.errors import InputError
from jevomerge.methods.method import MergeMethod
from jevomerge.models.vision.sighted import Sighted, language_of
from jevomerge.recipe.parts import Part
from jevomerge.recipe.schema import Layered, Recipe, RecipeModel
from jevomerge.schema import Location, Notes, Problems
from jevomerge.tokenizers.schema import TokenizerSpec
from jevomerge.tokenizers.vocabulary import index_of

Opener = Callable[..., Source]  # (reference, parts=, variant=), as `checkpoint.pipeline.open_model`


def depth_of(checkpoint: Source, eyes: bool) -> int:
    """How many layers a model has, or its tower."""
    return checkpoint.model.depth if eyes else len(checkpoint.model.kinds)


class Opening:
    """The models of a recipe as they are opened; what is wrong with them goes to `problems`.

    Attributes:
        parts: the slices; None where something is wrong with one.
        eyes: what is merged beside the language model, by component.
        donor: the recipe's base model, if it names one.
        carrier: the model whose parts beside the language model the result has, if any has such parts.
        taken: {part of an image pipeline: whose it is}, as far as the recipe says.
        spec: how vocabularies are aligned, if they are: by default as those of the carrier, where it has more rows.
    """

    def __init__(self, recipe: Recipe, method: MergeMethod, problems: Problems, opener: Opener):
        """Open every model that `recipe` names."""
        self.recipe, self.method, self.problems = recipe, method, problems
        self._opener = opener
        self._opened: dict[str, Source | None] = {}
        self._where: dict[str, Location] = {}
        eyes = recipe.eyes.values()  # of whose models the towers are looked into
        named = {recipe.carrier, *(m.base_model for m in eyes), *(s.model for m in eyes for s in m.sources)}
        self._seers = named if recipe.eyes else set()
        self.donor = None if recipe.base_model is None else self._open(recipe.base_model, ("base_model",))
        if method.base == "required" and not all(s.base_model for s in recipe.stack):
            problems.add(("merge_method",), f"{method.name} needs a `base_model`")
        parts = [self._part(layered) for layered in recipe.stack]
        self.parts: list[Part] | None = [p for p in parts if p is not None]
        if len(self.parts) < len(parts):
            self.parts = None
        self.eyes: dict[str, Part] = {}
        self._open_eyes()
        self.taken = {part: model for part in recipe.take if (model := self._taken(part)) is not None}
        self.spec = recipe.spec
        if self.spec is None and self.carrier is not None and len({c.model.vocab_size for c in self.checkpoints}) > 1:
            self.spec = TokenizerSpec(source=self.carrier.reference)

    @property
    def checkpoints(self) -> list[Source]:
        """Every model, once."""
        return [c for c in self._opened.values() if c is not None]

    def where(self, checkpoint: Source) -> Location:
        """Where the recipe first names it."""
        return self._where[checkpoint.reference]

    def _carrier(self) -> Source | None:
        """The model whose parts beside the language model the result has; None: no model has any."""
        framed = [c for c in self.checkpoints if c.frame is not None]
        if self.recipe.carrier is None:
            if len(framed) > 1:
                names = ", ".join(c.name for c in framed)
                self.problems.add(None, f"{names} have parts beside their language model; say whose with `carry`")
            return framed[0] if len(framed) == 1 else None
        if (found := self._named(self.recipe.carrier, "carry")) is not None and found.frame is None:
            self.problems.add(("carry",), f"{found.name} has no parts beside its language model")
        return found

    def _open_eyes(self) -> None:
        """What is merged beside the language model; the other parts are the carrier's, which all must fit."""
        for layered in self.recipe.eyes.values():
            for i, model in enumerate(layered.sources):
                self._open(model.model, (*layered.where, i))
        self.carrier, before = self._carrier(), len(self.problems.found)
        for component, layered in self.recipe.eyes.items():
            listed = [(m.model, (*layered.where, i)) for i, m in enumerate(layered.sources)]
            if self.method.base != "none" and layered.base_model is not None:
                listed.append((layered.base_model, layered.base_where))
            else:
                layered = layered._replace(base_model=None)
            for name, where in listed:
                if (found := self._open(name, where)) is not None and (message := self._misseen(found)):
                    self.problems.add(where, message)
            if len(self.problems.found) == before and (part := self._part(layered, eyes=True)) is not None:
                self.eyes[component] = part
        if len(self.eyes) < len(self.recipe.eyes):
            self.parts = None

    def _misseen(self, other: Source) -> str | None:
        """Why a model's tower and projector cannot be merged into those of the carrier; None if they can."""
        remedy = "list one model alone in the module, from which it is then carried along"
        if not isinstance(other.model, Sighted):
            return f"{other.name} has no eyes to be merged: give the module a `base_model` that has, or {remedy}"
        if self.carrier is None or not isinstance(self.carrier.model, Sighted):
            return None  # it has been said
        ours, theirs = self.carrier.model, other.model
        if differing := ours.seen_otherwise(theirs):
            return f"{other.folder} and {self.carrier.folder} differ in their eyes ({', '.join(differing)}); {remedy}"
        return None

    def _taken(self, part: str) -> Source | None:
        """A model that only lends a part, unless it is merged too."""
        if (opened := self._opened.get(self.recipe.take[part])) is not None:
            return opened
        try:
            return self._opener(self.recipe.take[part], parts=(), variant=self.recipe.variant)
        except InputError as error:
            self.problems.add(("take", part), str(error))
            return None

    def like(self) -> Source:
        """The model that the result computes as, if all could be opened."""
        name = self.recipe.compute_as
        if name not in (None, "base") and (found := self._named(name, "compute_as")) is not None:
            return found
        if name == "base" and self.donor is None:
            self.problems.add(("compute_as",), "there is no `base_model`")
        assert self.parts
        return self.donor or self.carrier or self.parts[0].checkpoints[0]

    def _named(self, model: str, key: str) -> Source | None:
        try:
            return self.checkpoints[index_of(self.checkpoints, model, key)]
        except InputError as error:
            self.problems.add((key,), str(error))
            return None

    def _open(self, reference: str, where: Location) -> Source | None:
        if reference not in self._opened:
            self._where[reference] = where
            try:
                found = self._opener(reference, parts=self.recipe.parts, variant=self.recipe.variant)
                self._opened[reference] = with_eyes(found) if found.frame and reference in self._seers else found
            except InputError as error:
                self._opened[reference] = None  # said once
                self.problems.add(where, str(error))
        return self._opened[reference]

    def _part(self, layered: Layered, eyes: bool = False) -> Part | None:
        """A slice's models, opened, or those whose eyes are merged; None if something is wrong with it."""
        method, problems, before = self.method, self.problems, len(self.problems.found)
        listed = [((*layered.where, i), m) for i, m in enumerate(layered.sources)]
        references = [m.model for _, m in listed]
        for where, model in listed:
            if references.count(model.model) > 1:
                problems.add(where, f"{model.model} is listed more than once")
        base, base_range = None, None
        if method.base in ("required", "optional") and layered.base_model is not None:
            base = self._open(layered.base_model, layered.base_where)
            base_range = next((m.layer_range for _, m in listed if m.model == layered.base_model), None)
            listed = [(w, m) for w, m in listed if m.model != layered.base_model]
        elif layered.base_model is not None and layered.base_model not in references and layered.whole:
            # As in mergekit an unlisted base model is one more model: slerp's first, and linear's if it has a weight.
            needed = [p.name for p in method.parameters if p.per_model and p.default is None]
            if method.base == "first":
                listed.insert(0, (layered.base_where, RecipeModel(model=layered.base_model)))
            elif needed and all(any(name in scope for _, scope in layered.scopes) for name in needed):
                listed.append((layered.base_where, RecipeModel(model=layered.base_model)))
        if method.base == "first" and layered.base_model is not None:
            listed.sort(key=lambda item: item[1].model != layered.base_model)
            if layered.base_model not in [m.model for _, m in listed]:
                problems.add(
                    layered.base_where, f"{method.name} starts from one of its models, not {layered.base_model}"
                )
        fewest, most = method.num_sources
        if not fewest <= len(listed) <= (most or len(listed)):
            wanted = str(fewest) if most == fewest else f"at least {fewest}" if most is None else f"{fewest} to {most}"
            beside = " beside the base model" if base is not None else ""
            problems.add(layered.where, f"{method.name} needs {wanted} models{beside}, not {len(listed)}")
        opened = [self._open(m.model, w) for w, m in listed]
        ranges = []
        for (where, model), checkpoint in zip(listed, opened, strict=True):
            if checkpoint is not None:
                depth = depth_of(checkpoint, eyes)
                if layered.whole and model.layer_range not in (None, (0, depth)):
                    what = "chooses no layers under `models`, which are merged whole; write `slices`"
                    problems.add((*where, "layer_range"), what)
                ranges.append(model.layer_range or (0, depth))
                if ranges[-1][1] > depth:
                    problems.add(
                        (*where, "layer_range"),
                        f"{list(ranges[-1])} ends outside {checkpoint.name}, which has {depth} layers",
                    )
                if (length := ranges[-1][1] - ranges[-1][0]) != (first := ranges[0][1] - ranges[0][0]):
                    problems.add(where, f"takes part with {length} layers, the first model with {first}")
        if len(problems.found) > before or len(ranges) < len(listed) or (base is None and method.base == "required"):
            return None
        length = ranges[0][1] - ranges[0][0]
        if base is not None:
            depth = depth_of(base, eyes)
            base_range = (0, depth) if layered.whole and base_range is None else base_range or ranges[0]
            if base_range[1] > depth or base_range[1] - base_range[0] != length:
                problems.add(
                    layered.base_where,
                    f"{base.name}, the base model, takes part with layers {list(base_range)} of its {depth}, "
                    f"the models with {length} layers",
                )
                return None
        return Part(
            inputs=tuple(m for _, m in listed),
            where=tuple(w for w, _ in listed),
            scopes=layered.scopes,
            checkpoints=tuple(c for c in opened if c is not None),
            first=tuple(start for start, _ in ranges),
            base=base,
            base_first=base_range[0] if base_range else 0,
            length=length,
        )

    # --- against each other -----------------------------------------------------------------------------------

    def check_alike(self, like: Source, parts: list[Part], notes: Notes) -> None:
        """Whether the models can be merged at all; `like` is the one that the result computes as."""
        self._name_apart()
        notes.update(c.notes for c in self.checkpoints)
        for other in self.checkpoints:
            message = self._misfit(like, other)
            same = message is None or type(like.model) is type(other.model)
            differing = language_of(like.model).unlike(language_of(other.model)) if same else {}
            refused = [what for what, fine in differing.items() if not fine]
            if message is not None:
                self.problems.add(self.where(other), message + (f"; {', '.join(refused)} differ" if refused else ""))
            elif differing and not refused:
                notes.add(
                    f"{other.name} and {like.name} differ in how they compute (rope, window or rms_norm_eps in "
                    f"config.json); the merged model computes as {like.name} does"
                )
            elif differing:
                self.problems.add(
                    self.where(other),
                    f"{other.folder} and {like.folder} compute different functions of their weights "
                    f"({', '.join(differing)} differ in config.json); merging them means nothing",
                )
        if self.method.pool is not None and (self.eyes or len({(p.checkpoints, p.base) for p in parts}) > 1):
            message = (
                f"{self.method.name} as in the paper looks at whole models; merge the same models in every slice, and "
                "carry along what is beside the language part"
            )
            self.problems.add(("semantics",), message)
        for part in parts:
            sides = [
                *zip(part.checkpoints, part.first, strict=True),
                *([(part.base, part.base_first)] if part.base else []),
            ]
            kinds = {c.model.kinds[first : first + part.length] for c, first in sides}
            if len(kinds) > 1:
                self.problems.add(part.where[0][:-1], "merges layers of different kinds of attention (layer_types)")

    def _misfit(self, like: Source, other: Source) -> str | None:
        """Why the tensors of two models do not belong together; None if they do."""
        # Tied or not, both have a head.
        tables = (language_of(m.model).untied().specs for m in (like, other))
        for a, b in zip(*tables, strict=False):
            aligned = a.vocabulary and self.spec is not None
            if a.template != b.template or (a.shape[1:] if aligned else a.shape) != (
                b.shape[1:] if aligned else b.shape
            ):
                remedy = (
                    "say how to align the vocabularies with `tokenizer_source` (union, base or a model)"
                    if a.path == b.path and a.vocabulary and a.shape[1:] == b.shape[1:]
                    else "only models of one shape can be merged"
                )
                return (
                    f"{b.template} is {list(b.shape)} in {other.folder}, but "
                    f"{a.template} {list(a.shape)} in {like.folder}; {remedy}"
                )
        return None

    def _name_apart(self) -> None:
        """Models whose references end alike ("runs/x/best", "runs/y/best") get longer names."""
        for size in (2, 3, 4):
            names = [c.name for c in self.checkpoints]
            for checkpoint in self.checkpoints:
                if names.count(checkpoint.name) > 1:
                    checkpoint.name = "/".join(checkpoint.reference.rstrip("/").split("/")[-size:])
        for checkpoint in self.checkpoints:
            if [c.name for c in self.checkpoints].count(checkpoint.name) > 1:
                self.problems.add(self.where(checkpoint), f"two models are called {checkpoint.name}")
