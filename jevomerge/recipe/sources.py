"""A recipe with its checkpoints opened: which tensors of which models make each tensor of the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint import Checkpoint, ParamSpec
from jevomerge.checkpoint.chat import chat_template
from jevomerge.checkpoint.hf_config import stacked_config_json
from jevomerge.checkpoint.safetensors_file import DTYPES
from jevomerge.checkpoint.source import abstract_leaf, read_leaf
from jevomerge.checkpoint.specs import param_specs, unflatten
from jevomerge.checkpoint.vocabulary import Alignment, align, special_ids
from jevomerge.errors import InputError
from jevomerge.merge import MergeMethod, get_method
from jevomerge.merge.bank import tensor_keys
from jevomerge.mesh import put, shardings
from jevomerge.models import DecoderConfig
from jevomerge.recipe.resolve import check_names, resolve
from jevomerge.recipe.schema import Layered, Parameters, Recipe, RecipeModel
from jevomerge.strict import Location, Problems

VOCABULARY_LEAVES = ("embed_tokens.weight", "lm_head.weight")


class Part(NamedTuple):
    """A slice whose models have been opened; the base, if the method wants one, is not among the inputs."""

    inputs: tuple[RecipeModel, ...]
    where: tuple[Location, ...]  # of the inputs in the file
    scopes: tuple[tuple[Location, Parameters], ...]
    checkpoints: tuple[Checkpoint, ...]
    first: tuple[int, ...]  # layer that each takes part from
    base: Checkpoint | None
    base_first: int
    length: int  # layers


class Tensor(NamedTuple):
    """One tensor of the merged model and what it is made of."""

    spec: ParamSpec
    layer: int | None  # of the merged model; None for what is not in a layer
    part: Part
    row: int  # layer within the part

    @property
    def name(self) -> str:
        """What it will be called."""
        return self.spec.template.format(layer=self.layer)

    def input_name(self, i: int) -> str:
        """What the `i`-th input calls it."""
        return self.spec.template.format(layer=self.part.first[i] + self.row)

    @property
    def base_name(self) -> str:
        """What the base model calls it."""
        return self.spec.template.format(layer=self.part.base_first + self.row)

    @property
    def position(self) -> float:
        """Its point on a gradient: depth in its slice; what is not in a layer stands at the first one's."""
        if self.layer is None:
            return 0.0
        return self.row / (self.part.length - 1) if self.part.length > 1 else 1.0


class Sources:
    """A recipe's checkpoints, opened and checked against each other, and its coefficients; no weight is read.

    Attributes:
        method: the merge method.
        checkpoints: every model of the recipe, once.
        like: the one that lends what is not merged: config.json, tokenizer, generation config.
        parts: the slices.
        config: the architecture of the merged model.
        specs: its parameter table.
        tensors: all of its tensors in file order.
        alignment: of the vocabularies, if the recipe asks for one that is not trivial.
        chat_template: the text to store, None for whatever the tokenizer has.
        numbers: the coefficients, {path: {parameter: ([L,][N,])}}; with slices of fewer models than others, the
            columns beyond are zero.
        notes: what a user should hear but need not change, in order.
    """

    def __init__(self, recipe: Recipe, searched: Sequence[str] = ()):
        """Open every model of `recipe`; parameters in `searched` may lack a value, for they will be genes.

        Raises:
            InputError: with all that is wrong, each with file and line.
        """
        self.recipe = recipe
        self.notes: dict[str, None] = {}
        self._opened: dict[str, Checkpoint | None] = {}
        self._where: dict[str, Location] = {}
        self._problems = problems = Problems(recipe.origin)
        try:
            self.method: MergeMethod = get_method(recipe.merge_method, recipe.semantics)
        except InputError as error:
            problems.add(("merge_method",), str(error).removeprefix("merge_method: "))
            problems.refuse()
        check_names(recipe, self.method, searched, problems, self.notes)
        donor = None if recipe.base_model is None else self._open(recipe.base_model, ("base_model",))
        if self.method.base == "required" and not all(s.base_model for s in recipe.stack):
            problems.add(("merge_method",), f"{self.method.name} needs a `base_model`")
        parts = [self._part(layered) for layered in recipe.stack]
        self.parts = [p for p in parts if p is not None]
        if self.parts and len(self.parts) == len(parts):
            self.checkpoints = [c for c in self._opened.values() if c is not None]
            self.like = donor or self.parts[0].checkpoints[0]
            self._check_alike()
            self._align()
            self._lay_out()
            self.numbers = resolve(self, searched, problems)
        problems.refuse()

    # --- opening and checking ---------------------------------------------------------------------------------

    def _open(self, reference: str, where: Location) -> Checkpoint | None:
        if reference not in self._opened:
            self._where[reference] = where
            try:
                self._opened[reference] = Checkpoint(reference)
            except InputError as error:
                self._opened[reference] = None  # said once
                self._problems.add(where, str(error))
        return self._opened[reference]

    def _part(self, layered: Layered) -> Part | None:
        """A slice's models, opened; None if something is wrong with it."""
        method, problems, before = self.method, self._problems, len(self._problems.found)
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
        elif layered.base_model is not None and layered.base_model not in references and layered.where[-1] == "models":
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
                depth = checkpoint.config.num_hidden_layers
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
            depth = base.config.num_hidden_layers
            whole = layered.where[-1] == "models" and base_range is None
            base_range = (0, depth) if whole else base_range or ranges[0]
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

    def _check_alike(self) -> None:
        like, problems = self.like, self._problems
        self._name_apart()
        for other in self.checkpoints:
            if other.config.tie_word_embeddings != like.config.tie_word_embeddings:
                tied, untied = (other, like) if other.config.tie_word_embeddings else (like, other)
                problems.add(
                    self._where[other.reference],
                    f"{tied.folder} ties its head to its embeddings, {untied.folder} does not; "
                    "save the tied one with an lm_head of its own (tie_word_embeddings: false)",
                )
                continue
            for a, b in zip(like.specs, other.specs, strict=False):
                aligned = a.path in VOCABULARY_LEAVES and self.recipe.spec is not None
                if a.template != b.template or (a.shape[1:] if aligned else a.shape) != (
                    b.shape[1:] if aligned else b.shape
                ):
                    remedy = (
                        "say how to align the vocabularies with `tokenizer_source` (union, base or a model)"
                        if a.path == b.path and a.path in VOCABULARY_LEAVES and a.shape[1:] == b.shape[1:]
                        else "only models of one shape can be merged"
                    )
                    problems.add(
                        self._where[other.reference],
                        f"{b.template} is {list(b.shape)} in {other.folder}, but "
                        f"{a.template} {list(a.shape)} in {like.folder}; {remedy}",
                    )
                    break
            else:
                mine, its = (dataclasses.replace(c.config, layer_kinds=(0,), vocab_size=0) for c in (like, other))
                differing = [k for k, v in vars(mine).items() if v != getattr(its, k)]
                if differing and set(differing) <= {"kinds", "rms_norm_eps"}:
                    self.notes[
                        f"{other.name} and {like.name} differ in how they compute (rope, window or rms_norm_eps in "
                        f"config.json); the merged model computes as {like.name} does"
                    ] = None
                elif differing:
                    problems.add(
                        self._where[other.reference],
                        f"{other.folder} and {like.folder} compute different functions of their weights "
                        f"({', '.join(differing)} differ in config.json); merging them means nothing",
                    )
        if self.method.pool is not None and len({(p.checkpoints, p.base) for p in self.parts}) > 1:
            message = f"{self.method.name} as in the paper looks at whole models; merge the same models in every slice"
            problems.add(("semantics",), message)
        for part in self.parts:
            sides = [
                *zip(part.checkpoints, part.first, strict=True),
                *([(part.base, part.base_first)] if part.base else []),
            ]
            kinds = {c.config.layer_kinds[first : first + part.length] for c, first in sides}
            if len(kinds) > 1:
                problems.add(part.where[0][:-1], "merges layers of different kinds of attention (layer_types)")

    def _name_apart(self) -> None:
        """Models whose references end alike ("runs/x/best", "runs/y/best") get longer names."""
        for size in (2, 3, 4):
            names = [c.name for c in self.checkpoints]
            for checkpoint in self.checkpoints:
                if names.count(checkpoint.name) > 1:
                    checkpoint.name = "/".join(checkpoint.reference.rstrip("/").split("/")[-size:])
        for checkpoint in self.checkpoints:
            if [c.name for c in self.checkpoints].count(checkpoint.name) > 1:
                self._problems.add(self._where[checkpoint.reference], f"two models are called {checkpoint.name}")

    def _align(self) -> None:
        self.alignment: Alignment | None = None
        try:
            self.chat_template = chat_template(self.recipe.chat_template, self.checkpoints)
        except InputError as error:
            self._problems.add(("chat_template",), str(error).removeprefix("chat_template: "))
        if self.recipe.spec is not None:
            where = "tokenizer" if self.recipe.tokenizer is not None else "tokenizer_source"
            try:
                base = None if self.recipe.base_model is None else self.checkpoints.index(self.like)
                alignment = align(self.checkpoints, base, self.recipe.spec)
                self.alignment = None if alignment.identity else alignment
            except InputError as error:
                self._problems.add((where,), str(error))
            return
        vocabularies = [(c, v) for c in self.checkpoints if (v := c.vocabulary()) is not None]
        for other, vocabulary in vocabularies[1:]:
            first, expected = vocabularies[0]
            if vocabulary != expected:
                token = min(k for k in vocabulary.keys() | expected.keys() if vocabulary.get(k) != expected.get(k))
                self._problems.add(
                    self._where[other.reference],
                    f"the tokenizers of {first.folder} and {other.folder} differ (token {token!r} is "
                    f"{expected.get(token)} and {vocabulary.get(token)}); say how to align them with "
                    "`tokenizer_source` (union, base or a model)",
                )

    def _lay_out(self) -> None:
        """The merged model's architecture and the list of its tensors."""
        kinds = tuple(
            kind for p in self.parts for kind in p.checkpoints[0].config.layer_kinds[p.first[0] : p.first[0] + p.length]
        )
        vocabulary = self.alignment.size if self.alignment else self.like.config.vocab_size
        self.config: DecoderConfig = dataclasses.replace(self.like.config, layer_kinds=kinds, vocab_size=vocabulary)
        self.specs = param_specs(self.config)
        layers = [(part, row) for part in self.parts for row in range(part.length)]
        self.tensors: list[Tensor] = []
        for spec in self.specs:
            if spec.num_layers is None:  # the embedding belongs to the first slice, norm and head to the last
                self.tensors.append(Tensor(spec, None, self.parts[0 if spec.path.startswith("embed") else -1], 0))
            else:
                self.tensors += [Tensor(spec, i, part, row) for i, (part, row) in enumerate(layers)]

    # --- what the rest of the program asks ----------------------------------------------------------------------

    @property
    def dtype(self) -> str:
        """The dtype of the merged model: the recipe's, else that of the base or first source."""
        if given := self.recipe.out_dtype or self.recipe.dtype:
            return given
        stored = {code: name for name, code in DTYPES.items()}
        if (code := self.like.dtype()) not in stored:
            raise InputError(f"{self.like.folder} is stored as {code}; say which `dtype` to write: {', '.join(DTYPES)}")
        return stored[code]

    @property
    def config_json(self) -> dict[str, Any]:
        """config.json of the merged model."""
        values = stacked_config_json(self.like.config_json, self.config) | {"vocab_size": self.config.vocab_size}
        return values | self.special_ids(values)

    def special_ids(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The `*_token_id` entries of a configuration of `like`, for the merged model's vocabulary."""
        if self.alignment is None:
            return {}
        return special_ids(self.alignment, config, self.checkpoints.index(self.like))

    @property
    def names(self) -> list[str]:
        """The models' names, those that are merged in the order of the recipe."""
        return list(dict.fromkeys(c.name for p in self.parts for c in p.checkpoints))

    @property
    def num_inputs(self) -> int:
        """How many models are merged, the base not counted.

        Raises:
            InputError: if that differs from slice to slice.
        """
        widths = {(len(p.inputs), p.base is None) for p in self.parts}
        if len(widths) > 1:
            raise InputError(
                self.recipe.origin.at("slices") + "the slices merge different numbers of models; "
                "`jevomerge merge` can do that, a search needs the same number everywhere"
            )
        return len(self.parts[0].inputs)

    @property
    def plain(self) -> bool:
        """Whether all layers are merged from the same models, each with all of its own: no slices, no stacking."""
        part = self.parts[0]
        return (
            len(self.parts) == 1
            and (part.base is None or part.base.reference == self.recipe.base_model)
            and all(
                c.config.num_hidden_layers == part.length
                for c in (*part.checkpoints, *([part.base] if part.base else []))
            )
        )

    def keys(self) -> dict[str, np.ndarray]:
        """The keys of every leaf's random fields, {path: ([L,] N, 2)}."""
        width = max(len(p.inputs) for p in self.parts)
        keys = {}
        for spec in self.specs:
            rows = [[c.name for c in t.part.checkpoints] for t in self.tensors if t.spec is spec]
            keys[spec.path] = tensor_keys(spec, [row + [""] * (width - len(row)) for row in rows], self.recipe.seed)
        return keys

    def read(self, tensor: Tensor) -> tuple[list[np.ndarray], np.ndarray | None]:
        """The inputs of one tensor and its base, from their files."""
        part = tensor.part
        if self.alignment is not None and tensor.spec.path in VOCABULARY_LEAVES:
            matrices = self.alignment.matrices([c.tensor(tensor.spec.template) for c in self.checkpoints])
            by_model = dict(zip(map(id, self.checkpoints), matrices, strict=True))
            return [by_model[id(c)] for c in part.checkpoints], by_model[id(part.base)] if part.base else None
        inputs = [c.tensor(tensor.input_name(i)) for i, c in enumerate(part.checkpoints)]
        return inputs, part.base.tensor(tensor.base_name) if part.base else None

    def load(
        self, mesh: Mesh | None = None, *, abstract: bool = False
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """All weights in memory, shaped like the merged model: a nested tree per input, and one for the base.

        `abstract`: nothing is read, and the leaves are their `jax.ShapeDtypeStruct`.

        Raises:
            InputError: if the slices merge different numbers of models, or for broken weights.
        """
        trees: list[dict[str, Any]] = [{} for _ in range(self.num_inputs)]
        base: dict[str, Any] = {}
        for checkpoint in () if abstract else self.checkpoints:
            checkpoint.check_head()
        make = abstract_leaf if abstract else read_leaf
        places = shardings(mesh, self.config, self.specs)
        for spec in self.specs:
            where = places[spec.path]
            rows = [t for t in self.tensors if t.spec is spec]
            if self.alignment is not None and spec.path in VOCABULARY_LEAVES and not abstract:
                inputs, own = self.read(rows[0])
                for tree, array in zip(trees, inputs, strict=True):
                    tree[spec.path] = put(array, where)
                base[spec.path] = None if own is None else put(own, where)
                continue
            for i, tree in enumerate(trees):
                tree[spec.path] = make(spec, [(t.part.checkpoints[i], t.input_name(i)) for t in rows], where)
            bases = [(t.part.base, t.base_name) for t in rows if t.part.base is not None]
            base[spec.path] = make(spec, bases, where) if bases else None
        whole = self.parts[0].base is not None
        return [unflatten(tree) for tree in trees], unflatten(base) if whole else None
