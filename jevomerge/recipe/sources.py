"""A recipe with its checkpoints opened: which tensors of which models make each tensor of the result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jevomerge.checkpoint.card import before_publishing
from jevomerge.checkpoint.frame import Frame
from jevomerge.checkpoint.packing import PackingError, packed_leaf
from jevomerge.checkpoint.pipeline import Pipeline, open_model
from jevomerge.checkpoint.source import Source, abstract_leaf, read_leaf
from jevomerge.devices.mesh import put
from jevomerge.devices.schema import Memory
from jevomerge.errors import InputError
from jevomerge.methods.bank import tensor_keys
from jevomerge.methods.method import MergeMethod
from jevomerge.methods.packed import packs
from jevomerge.methods.registry import get_method
from jevomerge.models.model import Language
from jevomerge.models.specs import ParamSpec, shardings, unflatten, waiting
from jevomerge.models.vision.sighted import Sighted, language_of
from jevomerge.recipe.adapter import check_adapter, is_pool
from jevomerge.recipe.assembly import Assembly
from jevomerge.recipe.opening import Opener, Opening
from jevomerge.recipe.parts import Part, Tensor, by_leaf, lay_out
from jevomerge.recipe.resolve import check_names, check_sums, resolve
from jevomerge.recipe.schema import Recipe
from jevomerge.schema import Notes, Problems
from jevomerge.tokenizers.chat import chat_template, template_of, templates_of, turn_end
from jevomerge.tokenizers.load import model_ends
from jevomerge.tokenizers.vocabulary import Alignment, align, read_beside, special_ids, token_names

KINDS = ("image", "video", "audio", "vision_start", "vision_end")  # of tokens that stand for no text


class Sources:
    """A recipe's checkpoints, opened and checked against each other, and its coefficients; no weight is read.

    Attributes:
        method: the merge method.
        checkpoints: every model of the recipe, once.
        like: the one that lends what is not merged, config.json.
        carrier: the one whose parts beside the language model the result has; None: it has none.
        assembly: of an image pipeline, whose parts those are that are not merged; None: the models are none.
        lender: the one that lends the tokenizer, its special tokens and the generation config: the recipe's
            `tokenizer_source`, else `like`.
        parts: the slices.
        eyes: what is merged beside the language model, by component; empty: all of that is carried along.
        model: the merged model.
        specs: its parameter table.
        tensors: all of its tensors in file order.
        alignment: of the vocabularies, if the recipe asks for one that is not trivial.
        templates: the chat templates to store by name, None for whatever the tokenizer has.
        turn_end: the id that their answers end with, if that is a token of the tokenizer.
        coefficients: {path: {parameter: (..., [N])}}, behind the leading axes of the leaf; with slices of fewer models
            than others, the columns beyond are zero.
        notes: what a user should hear but need not change.
    """

    def __init__(self, recipe: Recipe, searched: Sequence[str] = (), opener: Opener = open_model):
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
            self.eyes = opening.eyes
            self.checkpoints = opening.checkpoints
            self.carrier, self.like = opening.carrier, opening.like()
            opening.check_alike(self.like, self.parts, self.notes)
            self._align(opening, problems)
            if self.carrier is not None and self.carrier.frame is not None:
                self._check_tokens(self.carrier, self.carrier.frame, problems)
            kinds = [k for p in self.parts for k in p.checkpoints[0].model.kinds[p.first[0] : p.first[0] + p.length]]
            size = self.alignment.size if self.alignment else None
            self.model: Language = language_of(self.like.model).resized(kinds, size)
            self.assembly = self._assembly(opening, problems)
            if not all(c.model.tied for c in self.checkpoints):  # the head of a tied one is its embeddings
                self.model = self.model.untied()
            self.specs = self.model.specs
            if self.eyes and self.carrier is not None:
                self.model = Sighted(self.model, self.carrier.model.eyes)
                self.specs = tuple(s for s in self.model.specs if s in self.specs or s.component in self.eyes)
            self.tensors: list[Tensor] = lay_out(self.specs, self.parts, self.eyes)
            for text in (*self.carried, *before_publishing(self.checkpoints)):
                self.notes.add(text)
            if len(self.names) > 1 and any(spec.component == "router" for spec in self.specs):
                self.notes.add(
                    "the models are mixtures of experts, whose routers are merged, too: a router between two sends "
                    "texts to experts that neither meant; give routers weights of their own (genes `by: component`, or "
                    "a filter such as mlp.gate.), all of one model's to leave them alone"
                )
            self.coefficients = resolve(recipe, self.method, self.tensors, searched, problems)
            if "weight" not in searched:
                check_sums(self.method, self.tensors, self.coefficients, self.notes)
            if recipe.adapter is not None:
                check_adapter(recipe, self.method, self.pool, self.coefficients, searched, problems)
            if "float64" in (recipe.dtype, recipe.out_dtype):
                self.notes.add("float64: merges are computed in float32 here, and written in nothing wider")
        problems.refuse()

    def _assembly(self, opening: Opening, problems: Problems) -> Assembly | None:
        """What image pipelines are put together of; other models have nothing of that kind."""
        if isinstance(self.like, Pipeline):
            models = [c for c in self.checkpoints if isinstance(c, Pipeline)]
            taken = {part: c for part, c in opening.taken.items() if isinstance(c, Pipeline)}
            assembly = Assembly(self.recipe, self.like, models, taken, problems)
            self.notes.update([assembly.notes])
            return assembly
        for key in ("take", "pooled_from"):
            if getattr(self.recipe, key):
                problems.add((key,), f"{self.like.name} is no image pipeline; leave it out")
        return None

    def _align(self, opening: Opening, problems: Problems) -> None:
        """One vocabulary and one chat template."""
        recipe = self.recipe
        self.alignment: Alignment | None = None
        self.lender = self.like
        if opening.spec is not None:
            where = "tokenizer" if recipe.tokenizer is not None else "tokenizer_source"
            try:
                base = None if opening.donor is None else self.checkpoints.index(opening.donor)
                rows = 0 if self.carrier is None else self.carrier.model.vocab_size
                alignment = align(self.checkpoints, base, opening.spec, rows)
                self.alignment = None if alignment.identity and alignment.tokenizer is None else alignment
                self.lender = alignment.like
            except InputError as error:
                problems.add((where,), str(error))
        else:
            self._check_vocabularies(opening, problems)
        try:
            text = chat_template(recipe.chat_template, self.checkpoints)
        except InputError as error:
            problems.add(("chat_template",), str(error))
            return
        self._end_turns(text)

    def _end_turns(self, text: str | None) -> None:
        """What goes with the chat template `text`: others of its owner's, and the token that answers end with."""
        self.templates: dict[str, str] | None = None
        self.turn_end: int | None = None
        vocabulary = self.lender.vocabulary() if self.alignment is None else self.alignment.vocabulary
        if text is not None:
            owners = [c for c in self.checkpoints if template_of(c) == text]
            self.templates = {**templates_of(owners[0] if owners else self.lender), "default": text}
            data = (self.alignment and self.alignment.tokenizer) or read_beside(self.lender, "tokenizer.json")
            added = [t["content"] for t in data.get("added_tokens", [])]
            roles = read_beside(self.lender, "tokenizer_config.json")
            names = {k: v["content"] if isinstance(v, dict) else v for k, v in roles.items() if k.endswith("_token")}
            if (token := turn_end(text, added, {k: v for k, v in names.items() if isinstance(v, str)})) is not None:
                self.turn_end = (vocabulary or {}).get(token)
        ends = {c.name: token_names(c, model_ends(c.folder)) for c in self.checkpoints if c.vocabulary() is not None}
        if len(set(ends.values())) > 1:
            told = "; ".join(f"{name}: {' '.join(tokens) or 'nothing'}" for name, tokens in ends.items())
            self.notes.add(
                f"the models end texts with different tokens ({told}); the merged one with those of {self.lender.name}"
                + ("" if self.turn_end is None else " and the one that its chat template's answers end with")
                + "; `tokenizer_source` and `chat_template` say whose"
            )

    def _check_vocabularies(self, opening: Opening, problems: Problems) -> None:
        """Without a word on how to align them, they must be one."""
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

    def _check_tokens(self, carrier: Source, frame: Frame, problems: Problems) -> None:
        """What is carried along must know the tokens of the result, whose pictures have ids in config.json."""
        names = {i: token for token, i in (carrier.vocabulary() or {}).items()}
        output = names if self.alignment is None else {i: token for token, i in self.alignment.vocabulary.items()}
        for tensor in frame.vocabularies(carrier.model.vocab_size) if output != names else ():
            problems.add(
                ("tokenizer_source",),
                f"{tensor} of {carrier.name}, which is carried along, has a row for each of its tokens, not of the "
                f"result's; take its tokenizer: {carrier.reference}",
            )
        for key, i in frame.json.items():
            if not key.endswith(("_token_index", *(f"{kind}_token_id" for kind in KINDS))):
                continue
            if i not in names:
                self.notes.add(f"{carrier.name}: its tokenizer has no token with the id of `{key}`, {i}")
            elif output.get(i) != names[i]:
                problems.add(
                    ("tokenizer_source",),
                    f"`{key}` of {carrier.name}, whose other parts are carried along, is {names[i]!r} ({i}), but "
                    f"the result's {i} is {output.get(i)!r}; take its tokenizer: {carrier.reference}",
                )
            for other in (c for c in self.checkpoints if c.frame is None and i in names):
                if names[i] in (other.vocabulary() or {}):
                    problems.add(
                        None,
                        f"{other.name} has no eyes, but a token {names[i]!r} too, which would be merged into that of "
                        f"the pictures of {carrier.name}; rename it in its tokenizer.json",
                    )

    # --- what the rest of the program asks ----------------------------------------------------------------------

    @property
    def frame(self) -> Frame | None:
        """The parts beside the language model, if there are any."""
        return None if self.carrier is None else self.carrier.frame

    @property
    def carried(self) -> list[str]:
        """A sentence on what is not merged, but carried along; []: nothing is."""
        if self.carrier is None or self.frame is None:
            return []
        return self.frame.told((t.name for t in self.tensors), self.carrier.name)

    def kept(self, spec: ParamSpec) -> tuple[np.ndarray, np.ndarray] | None:
        """The rows of an embedding or head that no other model has, (K,), and which rows of the carrier's these are.

        They stay as they are in the carrier: the tokens of its pictures, and rows without a token.
        """
        if self.carrier is None or self.alignment is None or not spec.vocabulary:
            return None
        carrier = self.checkpoints.index(self.carrier)
        theirs = self.alignment.own[carrier].copy()
        if self.alignment.like is self.carrier:  # the rows are its own, spare ones included
            spare = np.arange(min(len(theirs), self.carrier.model.vocab_size))
            theirs[spare] = np.where(theirs[spare] < 0, spare, theirs[spare])
        alone = (np.delete(self.alignment.own, carrier, axis=0) < 0).all(axis=0) & (theirs >= 0)
        return np.flatnonzero(alone), theirs[alone]

    def kept_leaves(self, *, abstract: bool = False) -> dict[str, Any]:
        """{path: (those rows, what they hold)} of the leaves that have any; `abstract`: zeros are what they hold."""
        found = {}
        for spec in self.specs:
            if (rows := self.kept(spec)) is not None and len(rows[0]):
                assert self.carrier is not None
                shape, dtype = (len(rows[0]), *spec.shape[1:]), self.carrier.tensors[spec.name()].dtype
                values = np.zeros(shape, dtype) if abstract else self.carrier.tensor(spec.name())[rows[1]]
                found[spec.path] = rows[0].astype(np.int32), values
        return found

    @property
    def dtype(self) -> str:
        """The dtype of the merged model: the recipe's, else the one that holds the numbers of all sources."""
        if wanted := self.recipe.out_dtype or self.recipe.dtype:
            return "float32" if wanted == "float64" else wanted
        parts = [*self.parts, *self.eyes.values()]
        merged = [c for p in parts for c in (*p.checkpoints, p.base) if c is not None]
        found = {c.dtype() for c in merged}
        return found.pop() if len(found) == 1 else "float32"  # which holds both kinds of half precision

    @property
    def files(self) -> dict[str, Any]:
        """The JSON files of the merged model, its special tokens those of its vocabulary."""
        theirs = self.lender.model.files
        return {
            name: {k: v for k, v in values.items() if not k.endswith("_token_id")} | self.special_ids(theirs[name])
            for name, values in self.model.files.items()
        }

    def special_ids(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The `*_token_id` entries of a configuration of `lender`, for the merged model's vocabulary."""
        ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
        if self.alignment is not None:
            ids = special_ids(self.alignment, config, self.checkpoints.index(self.lender))
        if self.turn_end is not None:
            ends = ids.get("eos_token_id")
            ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
            if self.turn_end not in ends:
                ids["eos_token_id"] = [*ends, self.turn_end] if ends else self.turn_end
        return ids

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

    @property
    def pool(self) -> Part | None:
        """The only slice, if all that is merged are adapters of one model, which may also be the base."""
        plain = self.plain and not self.eyes and self.alignment is None
        return self.parts[0] if plain and is_pool(self.parts[0]) else None

    def keys(self) -> dict[str, np.ndarray]:
        """The keys of every leaf's random fields, {path: (..., N, 2)}."""
        keys = {}
        for spec, tensors in by_leaf(self.tensors).items():
            rows = [[c.name for c in t.part.checkpoints] for t in tensors]
            width = max(map(len, rows))
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
        self,
        mesh: Mesh | None = None,
        memory: Memory = "device",
        *,
        abstract: bool = False,
        but: Collection[str] = (),
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """All weights in memory, shaped like the merged model: a nested tree per input, and one for the base.

        Of what has fewer inputs than other parts the last trees have nothing. `memory`: in which all but vectors are;
        any but "device" needs a mesh, "mesh" gives each slice of its `pop` a part, and "int8" packs the leaves that can
        be (`methods.packed`), with a note on the error. `abstract`: nothing is read, and the leaves are their
        `jax.ShapeDtypeStruct`. `but`: the paths of leaves that are left out.

        Raises:
            InputError: if the slices merge different numbers of models, or for broken weights.
        """
        most = [self.num_inputs, *(len(part.inputs) for part in self.eyes.values())]
        trees: list[dict[str, Any]] = [{} for _ in range(max(most))]
        base: dict[str, Any] = {}
        for checkpoint in () if abstract else self.checkpoints:
            checkpoint.check_head()
        make, error = abstract_leaf if abstract else read_leaf, PackingError()
        for spec, tensors in by_leaf(self.tensors).items():
            if spec.path in but:
                continue
            where = waiting(shardings(mesh, [spec])[spec.path], spec, memory)
            if self.alignment is not None and spec.vocabulary and not abstract:
                inputs, own = self.read(tensors[0])
                for tree, array in zip(trees, inputs, strict=True):
                    tree[spec.path] = put(array, where)
                base |= {} if own is None else {spec.path: put(own, where)}
                continue
            bases = [(t.part.base, t.base_name) for t in tensors if t.part.base is not None]
            base |= {spec.path: make(spec, bases, where)} if bases else {}
            places = [
                [(t.part.checkpoints[i], t.input_name(i)) for t in tensors] for i in range(len(tensors[0].part.inputs))
            ]
            for i, tree in enumerate(trees[: len(places)]):
                origin = bases or (places[0] if i else [])
                if memory == "int8" and origin and packs(spec):
                    assert where is not None
                    tree[spec.path] = packed_leaf(spec, places[i], origin, where, None if abstract else error)
                else:
                    tree[spec.path] = make(spec, places[i], where)
        if memory == "int8" and not abstract:
            self.notes.add(
                f"memory: int8: candidates and the plain average are scored with task vectors that are off by {error} "
                "(norm of the error by theirs); finalists, the sources and the result are scored as they are"
            )
        return [unflatten(tree) for tree in trees], unflatten(base) if base else None

    def load_one(self, name: str, mesh: Mesh | None = None) -> dict[str, Any]:
        """{path: leaf} of the language part of one of the models, as all inputs are (`load`)."""
        found = {}
        for spec, tensors in by_leaf(self.tensors).items():
            names = [c.name for c in tensors[0].part.checkpoints]
            if name not in names or spec.component in self.eyes:
                continue
            i, where = names.index(name), shardings(mesh, [spec])[spec.path]
            if self.alignment is not None and spec.vocabulary:
                found[spec.path] = put(self.read(tensors[0])[0][i], where)
            else:
                found[spec.path] = read_leaf(spec, [(t.part.checkpoints[i], t.input_name(i)) for t in tensors], where)
        return found

    def load_carried(self, mesh: Mesh | None = None, *, abstract: bool = False) -> dict[str, Any]:
        """{path: leaf} of eyes that are not merged, which a model that has others that are needs all the same."""
        if not isinstance(self.model, Sighted):
            return {}
        assert self.carrier is not None
        make, specs = abstract_leaf if abstract else read_leaf, set(self.model.eye_specs) - set(self.specs)
        where = shardings(mesh, [*specs])
        return {s.path: make(s, [(self.carrier, name) for name in s.names()], where[s.path]) for s in specs}
