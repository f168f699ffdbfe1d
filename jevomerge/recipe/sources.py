"""A recipe with its checkpoints opened: which tensors of which models make each tensor of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint.source import Checkpoint, abstract_leaf, read_leaf
from jevomerge.devices.mesh import put
from jevomerge.errors import InputError
from jevomerge.methods.bank import tensor_keys
from jevomerge.methods.method import MergeMethod
from jevomerge.methods.registry import get_method
from jevomerge.models.model import Language
from jevomerge.models.specs import shardings, unflatten
from jevomerge.recipe.opening import Opener, Opening
from jevomerge.recipe.parts import Part, Tensor, by_leaf, lay_out
from jevomerge.recipe.resolve import check_names, resolve
from jevomerge.recipe.schema import Recipe
from jevomerge.schema import Notes, Problems
from jevomerge.tokenizers.chat import chat_template
from jevomerge.tokenizers.vocabulary import Alignment, align, special_ids


class Sources:
    """A recipe's checkpoints, opened and checked against each other, and its coefficients; no weight is read.

    Attributes:
        method: the merge method.
        checkpoints: every model of the recipe, once.
        like: the one that lends what is not merged: config.json, tokenizer, generation config.
        parts: the slices.
        model: the merged model.
        specs: its parameter table.
        tensors: all of its tensors in file order.
        alignment: of the vocabularies, if the recipe asks for one that is not trivial.
        chat_template: the text to store, None for whatever the tokenizer has.
        coefficients: {path: {parameter: (..., [N])}}, behind the leading axes of the leaf; with slices of fewer models
            than others, the columns beyond are zero.
        notes: what a user should hear but need not change.
    """

    def __init__(self, recipe: Recipe, searched: Sequence[str] = (), opener: Opener = Checkpoint):
        """Open every model of `recipe`; parameters in `searched` may lack a value, for they will be genes.

        Raises:
            InputError: with all that is wrong, each with file and line.
        """
        self.recipe, self.notes = recipe, Notes()
        problems = Problems(recipe.origin)
        try:
            self.method: MergeMethod = get_method(recipe.merge_method, recipe.semantics)
        except InputError as error:
            problems.add(("merge_method",), str(error))
            problems.refuse()
        check_names(recipe, self.method, searched, problems, self.notes)
        opening = Opening(recipe, self.method, problems, opener)
        if opening.parts:
            self.parts: list[Part] = opening.parts
            self.checkpoints = opening.checkpoints
            self.like = opening.donor or self.parts[0].checkpoints[0]
            opening.check_alike(self.like, self.parts, self.notes)
            self._align(opening, problems)
            kinds = [k for p in self.parts for k in p.checkpoints[0].model.kinds[p.first[0] : p.first[0] + p.length]]
            self.model: Language = self.like.model.resized(kinds, self.alignment.size if self.alignment else None)
            if not all(c.model.tied for c in self.checkpoints):  # the head of a tied one is its embeddings
                self.model = self.model.untied()
            self.specs = self.model.specs
            self.tensors: list[Tensor] = lay_out(self.specs, self.parts)
            self.coefficients = resolve(recipe, self.method, self.tensors, searched, problems)
        problems.refuse()

    def _align(self, opening: Opening, problems: Problems) -> None:
        """One vocabulary and one chat template."""
        recipe = self.recipe
        self.alignment: Alignment | None = None
        try:
            self.chat_template = chat_template(recipe.chat_template, self.checkpoints)
        except InputError as error:
            problems.add(("chat_template",), str(error))
        if recipe.spec is not None:
            where = "tokenizer" if recipe.tokenizer is not None else "tokenizer_source"
            try:
                base = None if recipe.base_model is None else self.checkpoints.index(self.like)
                alignment = align(self.checkpoints, base, recipe.spec)
                self.alignment = None if alignment.identity else alignment
            except InputError as error:
                problems.add((where,), str(error))
            return
        vocabularies = [(c, v) for c in self.checkpoints if (v := c.vocabulary()) is not None]
        for other, vocabulary in vocabularies[1:]:
            first, expected = vocabularies[0]
            if vocabulary != expected:
                token = min(k for k in vocabulary.keys() | expected.keys() if vocabulary.get(k) != expected.get(k))
                problems.add(
                    opening.where(other),
                    f"the tokenizers of {first.folder} and {other.folder} differ (token {token!r} is "
                    f"{expected.get(token)} and {vocabulary.get(token)}); say how to align them with "
                    "`tokenizer_source` (union, base or a model)",
                )

    # --- what the rest of the program asks ----------------------------------------------------------------------

    @property
    def dtype(self) -> str:
        """The dtype of the merged model: the recipe's, else that of the base or first source."""
        return self.recipe.out_dtype or self.recipe.dtype or self.like.dtype()

    @property
    def files(self) -> dict[str, Any]:
        """The JSON files of the merged model, its special tokens those of its vocabulary."""
        return {name: {**values, **self.special_ids(values)} for name, values in self.model.files.items()}

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
            and all(len(c.model.kinds) == part.length for c in (*part.checkpoints, *([part.base] if part.base else [])))
        )

    def keys(self) -> dict[str, np.ndarray]:
        """The keys of every leaf's random fields, {path: (..., N, 2)}."""
        width = max(len(p.inputs) for p in self.parts)
        keys = {}
        for spec, tensors in by_leaf(self.tensors).items():
            rows = [[c.name for c in t.part.checkpoints] for t in tensors]
            keys[spec.path] = tensor_keys(spec, [row + [""] * (width - len(row)) for row in rows], self.recipe.seed)
        return keys

    def read(self, tensor: Tensor) -> tuple[list[np.ndarray], np.ndarray | None]:
        """The inputs of one tensor and its base, from their files."""
        part = tensor.part
        if self.alignment is not None and tensor.spec.vocabulary:
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
        places = shardings(mesh, self.specs)
        for spec, tensors in by_leaf(self.tensors).items():
            where = places[spec.path]
            if self.alignment is not None and spec.vocabulary and not abstract:
                inputs, own = self.read(tensors[0])
                for tree, array in zip(trees, inputs, strict=True):
                    tree[spec.path] = put(array, where)
                base[spec.path] = None if own is None else put(own, where)
                continue
            for i, tree in enumerate(trees):
                tree[spec.path] = make(spec, [(t.part.checkpoints[i], t.input_name(i)) for t in tensors], where)
            bases = [(t.part.base, t.base_name) for t in tensors if t.part.base is not None]
            base[spec.path] = make(spec, bases, where) if bases else None
        whole = self.parts[0].base is not None
        return [unflatten(tree) for tree in trees], unflatten(base) if whole else None
