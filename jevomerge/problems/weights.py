"""Parameter space: the coefficients of a recipe."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jevomerge.checkpoint.memory import InMemory
from jevomerge.checkpoint.orbax_tree import OrbaxTree
from jevomerge.checkpoint.pipeline import open_model
from jevomerge.checkpoint.safetensors_file import DTYPES, NUMPY
from jevomerge.checkpoint.source import Source, with_eyes
from jevomerge.devices.mesh import WHOLE
from jevomerge.devices.schema import Memory
from jevomerge.genome.schema import Gene
from jevomerge.genome.space import Space, express, make_space, start_of, starts
from jevomerge.methods.bank import (
    Bank,
    Merge,
    abstract_bank,
    abstract_settled,
    build,
    in_scan,
    is_product,
    make_bank,
    settle,
    together,
    unmerged,
)
from jevomerge.methods.registry import get_method
from jevomerge.models.layers import Params
from jevomerge.models.model import Language
from jevomerge.models.specs import ParamSpec, flatten, shardings, unflatten
from jevomerge.models.vision.sighted import Sighted, language_of
from jevomerge.problems.problem import AVERAGE, Baseline, Candidates, Instance, Shared
from jevomerge.recipe.extract import load_extracted, numbers_of, refuse_extract
from jevomerge.recipe.opening import Opener
from jevomerge.recipe.parts import Part
from jevomerge.recipe.pool import adapted, load_pool
from jevomerge.recipe.resolve import Coefficients
from jevomerge.recipe.schema import EYES, TEXT, Recipe, RecipeModel, RecipeModule
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import eyes_of, merge_to_folder, write_beside_weights, write_hollow
from jevomerge.strategies.registry import make_strategy
from jevomerge.strategies.schema import Search
from jevomerge.strategies.strategy import Strategy
from jevomerge.tokenizers.load import load_tokenizer


class WeightProblem:
    """Parameter space: the coefficients of a recipe."""

    no_gradient = "no gene has a gradient (see jevomerge/methods/README.md); leave refine out"

    def __init__(
        self,
        recipe: Recipe,
        genome: Mapping[str, Gene],
        mean: float | None = 0.5,
        opener: Opener = open_model,
        extract: int | None = None,
    ):
        """Open the sources and build the search space; no weight is read.

        The search starts at `mean` of all ranges; None: at the recipe's own numbers, which then are all there. It is of
        adapters of rank `extract`; None: of the models as they are.
        """
        self._opener, self.extract = opener, extract
        self.sources = Sources(recipe, searched=() if mean is None else tuple(genome), opener=opener)
        if extract is not None:
            refuse_extract(self.sources)
        self.merge = Merge(self.sources.method, self.sources.dtype, recipe.adapter == "factors")
        self.space: Space = make_space(self.sources, genome)
        self.names = self.space.names
        self.mean: float | np.ndarray = start_of(self.space, self.sources.coefficients) if mean is None else mean
        self.notes = self.sources.notes
        self.checkpoints = self.sources.checkpoints
        self.model = self.sources.model
        self.scores_sources = self.sources.plain
        self.title = f"{self.sources.method.name} of {', '.join(self.sources.names)}"
        parameters = {p.name: p for p in self.sources.method.parameters}
        searched = [parameters[name.rpartition("/")[2]] for name in self.names]
        self.gradient = np.array([p.kind == "float" and p.differentiable for p in searched], bool)

    def strategy(self, search: Search, seed: int = 0) -> Strategy:
        """By default CMA-ES."""
        settings = (search.population, self.mean, search.sigma, seed)
        return make_strategy(search.strategy or "cma_es", len(self.names), *settings)

    def starts(self, which: Sequence[str]) -> np.ndarray:
        """The sources, their average, sparsified sources."""
        return starts(self.space, self.sources, which)

    def values(self, genome: np.ndarray) -> dict[str, float]:
        """The genes by name."""
        return self.space.values(genome)

    def distinct(self, genomes: np.ndarray) -> np.ndarray:
        """(P, n) -> (P, n) float32, equal where candidates are."""
        return genomes.astype(np.float32)

    def coefficients(self, genome: np.ndarray) -> Coefficients:
        """The recipe's coefficients for a genome, as the search itself expresses it."""
        return jax.tree.map(np.asarray, jax.jit(express)(self.space, jnp.asarray(genome, jnp.float32)))

    @property
    def shared(self) -> Shared | str:
        """Whole models, or one and its adapters, of a language model that is merged by a linear method."""
        method = self.merge.method
        if (linear := method if method.linear else method.settled) is None:
            return f"{method.name} is not linear in its models"
        if odd := sorted(self._searched() - {p.name for p in linear.parameters}):
            return f"{method.name} is not linear in its models where `{odd[0]}` is a gene"
        if self.merge.factors:
            return "A and B of adapters are merged each by itself"
        if not getattr(self.model, "unmerged", False):
            return "only plain language models can be left unmerged"
        size = sum(spec.count * math.prod(spec.shape) for spec in self.sources.specs if is_product(spec))
        part = self.sources.parts[0]
        pool = (self.sources.pool or self.extract) and method.linear
        whole = 1 if pool else len(part.inputs) + (part.base is not None)
        beside = (
            (adapted(self.sources) if self.extract is None else numbers_of(self.sources, self.extract)) if pool else 0
        )
        held = part.checkpoints[0].dtype() if method.linear else "float32"
        stored, made = (NUMPY[DTYPES[name]].itemsize for name in (held, self.merge.dtype))
        return Shared(size, whole * size + beside, stored, made)

    def load(
        self,
        mesh: Mesh | None = None,
        memory: Memory = "device",
        *,
        abstract: bool = False,
        together: bool = False,
    ) -> Merged:
        """Read the sources and prepare the method, or only find shapes."""
        settled = self.merge.method.settled if together else None
        apart = self.sources.pool and ((together and settled is None) or self.merge.factors)
        pool: Any = load_pool(self.sources, mesh, abstract=abstract) if apart else None
        if together and self.extract is not None:
            pool = load_extracted(self.sources, self.extract, mesh, abstract=abstract)
        trees, base, adapters = pool or (*self.sources.load(mesh, memory, abstract=abstract), {})
        arguments = (self.merge, self.sources.specs, trees, base, self.sources.keys())
        kept = self.sources.kept_leaves(abstract=abstract)
        carried = self.sources.load_carried(mesh, abstract=abstract)
        kind = Together if together else Merged
        lazy = memory == "device" and not together  # from elsewhere models are fetched once, not for every pass
        merge = self.merge if settled is None else self.merge._replace(method=settled)
        if not abstract:
            bank = make_bank(*arguments, mesh, kept, adapters)
            bank = bank if settled is None else settle(self.merge, bank, self.sources.coefficients)
            return kind(bank, self.space, merge, carried, lazy)
        assert mesh is not None
        bank, space = abstract_bank(*arguments, mesh, kept, adapters), jax.eval_shape(lambda: self.space)
        return kind(bank if settled is None else abstract_settled(bank), space, merge, carried, lazy)

    def _searched(self) -> set[str]:
        """The parameters that are genes."""
        return {name.rpartition("/")[2] for name in self.names}

    def baselines(self, candidates: Candidates) -> Iterator[Baseline]:
        """Of whole models their average, and each as it lies in the bank; slices are no models.

        Of image pipelines they are the parts that are merged: a source is drawn, as candidates are, with the other
        parts of the result.
        """
        assert isinstance(candidates, Merged)
        if not self.sources.plain:
            return
        bank, changed = candidates.bank, candidates.merge.method is not self.merge.method or self.extract is not None
        yield Baseline(None, self.model, functools.partial(self.plain_average, bank, changed))
        here = candidates.lazy or (candidates.together and not changed)
        for i, name in enumerate(self.sources.names):
            own = functools.partial(bank.source, i) if here else None
            yield Baseline(name, self.model, functools.partial(self.source, name, own, bank.kept))

    def source(self, name: str, leaf: Callable[[str], Array] | None, kept: Mapping[str, Any], mesh: Mesh) -> Params:
        """A source as it lies in the bank (None: read again), with rows that are kept; with its own eyes, if merged."""
        leaf = self.sources.load_one(name, mesh).__getitem__ if leaf is None else leaf
        found = {s.path: leaf(s.path) for s in self.language}
        for path, (rows, values) in kept.items():
            found[path] = found[path].at[rows].set(values.astype(found[path].dtype))
        return unflatten(found | self.eyes_of(name, mesh))

    def plain_average(self, bank: Bank, changed: bool, mesh: Mesh) -> Params:
        """The sources' average; of a bank in which they are not as they were they are read again."""
        if changed:
            bank = dataclasses.replace(bank, sources=tuple(map(flatten, self.sources.load(mesh)[0])), adapters={})
        count = len(self.sources.names)
        equal = {
            s.path: {
                "weight": jnp.ones((*s.leading, count)),
                "normalize": jnp.ones(s.leading),
            }
            for s in self.language
        }
        nothing = dict.fromkeys(equal, ())
        merge = Merge(get_method("linear"), self.merge.dtype)
        where = unflatten(shardings(mesh, self.language))
        make = jax.jit(build, static_argnums=0, out_shardings=where)
        plain = Bank(bank.sources, bank.base, nothing, bank.keys, self.language, bank.kept, bank.adapters)
        averaged = make(merge, plain, equal)
        return averaged | unflatten(self.eyes_of(AVERAGE, mesh))

    @property
    def language(self) -> tuple[ParamSpec, ...]:
        """The table of what is merged of the language part."""
        return language_of(self.model).specs

    def eyes_of(self, baseline: str, mesh: Mesh) -> dict[str, Array]:
        """{path: leaf} of the eyes that a baseline has, for models that look at pictures themselves."""
        if not isinstance(self.model, Sighted):
            return {}
        specs = self.model.eye_specs
        where = shardings(mesh, specs)
        return {p: jax.device_put(x, where[p]) for p, x in eyes_of(self.merge_of(baseline), specs).items()}

    def merge_of(self, baseline: str) -> Sources:
        """All of one source, in its own dtype, or equal parts of all."""
        part, recipe = self.sources.parts[0], self.sources.recipe
        own = [c.dtype() for c in part.checkpoints if c.name == baseline]
        changes: dict[str, Any] = {"merge_method": "linear", "slices": (), **self._shares(baseline)}
        changes |= {"parameters": {}, "out_dtype": own[0] if own else self.sources.dtype}
        changes |= {"adapter": "sum"} if recipe.adapter == "factors" else {}
        return Sources(recipe.model_copy(update=changes), opener=self._opener)

    def _shares(self, baseline: str) -> dict[str, Any]:
        """Of a recipe the models of a baseline; eyes that it has not are those of the carrier."""

        def models(part: Part) -> tuple[RecipeModel, ...]:
            shares = [float(baseline in (AVERAGE, c.name)) for c in part.checkpoints]
            listed = zip(part.inputs, shares, strict=True)
            found = tuple(RecipeModel(model=m.model, parameters={"weight": share}) for m, share in listed)
            return found if any(shares) else (RecipeModel(model=carry, parameters={"weight": 1.0}),)

        eyes, carrier = self.sources.eyes, self.sources.carrier
        if not eyes or carrier is None:
            return {"models": models(self.sources.parts[0]), "modules": {}}
        carry = carrier.reference
        beside = {name: RecipeModule(models=models(eyes[part])) for name, part in EYES.items() if part in eyes}
        language = RecipeModule(models=models(self.sources.parts[0]))
        return {"models": (), "modules": {TEXT: language, **beside}, "carry": carry}

    @property
    def seer(self) -> Source | None:
        """The model whose other parts the merged one has."""
        return self.sources.carrier

    def tokenizer(self) -> Any | None:
        """That of the recipe: one of the sources', or made of theirs; trees and pipelines have none."""
        if isinstance(self.sources.like, InMemory | OrbaxTree) or self.sources.assembly is not None:
            return None
        if self.sources.alignment is None and self.sources.templates is None:
            return load_tokenizer(self.sources.lender.folder)
        with tempfile.TemporaryDirectory(prefix="jevomerge-") as folder:
            write_beside_weights(Path(folder), self.sources)
            frame = self.sources.frame
            for name, values in self.sources.files.items():  # config.json names the tokenizer's class
                values = frame.around(values) if frame else values
                (Path(folder) / name).write_text(json.dumps(values), encoding="utf-8")
            return load_tokenizer(Path(folder))

    def exported(self, hops: int | None = None) -> tuple[Language, str]:
        """Those of the merge."""
        return self.model, self.merge.dtype

    def export(self, genome: np.ndarray, out: Path, **options: Any) -> None:
        """Write the merged model of a genome as a folder; `options` as for `merge_to_folder`."""
        merge_to_folder(self.sources, self.coefficients(genome), out, **options)

    def reopen(self, folder: Path) -> Source:
        """What `export` wrote."""
        if isinstance(self.sources.like, InMemory):
            return InMemory.read(folder, self.model)
        if self.sources.recipe.adapter is not None:
            return open_model(f"{self.sources.parts[0].checkpoints[0].folder}+{folder}")
        found = open_model(folder, parts=self.sources.recipe.parts)
        return with_eyes(found) if self.sources.eyes else found

    def hollow(self, out: Path) -> bool:
        """All but the weights is known."""
        write_hollow(out, self.sources)
        return True


@flax.struct.dataclass
class Merged(Candidates):
    """Parameter space: a genome is the coefficients of a merge."""

    bank: Bank
    space: Space
    merge: Merge = flax.struct.field(pytree_node=False)
    carried: dict[str, Array] = flax.struct.field(default_factory=dict)  # leaves of eyes that are not merged
    lazy: bool = flax.struct.field(pytree_node=False, default=True)
    batched = True

    def make(self, genome: Array) -> Params:
        """(n,) -> merged parameters."""
        return build(self.merge, self.bank, express(self.space, genome))

    def model(self, made: Params | None, genome: Array, slots: int | None = None) -> Instance:
        """The model; if nothing was made, it is merged block by block in the layer scan."""
        if made is not None:
            return Instance(self._whole(made))
        params, layer = in_scan(self.merge, self.bank, express(self.space, genome))
        return Instance(self._whole(params), layer)

    def _whole(self, params: Params) -> Params:
        return unflatten(self.carried | flatten(params)) if self.carried else params

    def held(self) -> tuple[Any, Any]:
        """The bank: models and base, and what the method prepares."""
        bank = self.bank
        return (bank.sources, bank.base, bank.adapters, self.carried), (bank.prepared, bank.keys)

    def over_pop(self) -> Merged:
        """The bank's models may be."""
        parts: dict[str, Any] = {"bank": self.bank.over_pop(), "space": WHOLE, "carried": WHOLE}
        return dataclasses.replace(self, **parts)

    def unrounded(self) -> Merged:
        """The same in float32."""
        merge = self.merge._replace(dtype="float32")
        return Merged(self.bank, self.space, merge, self.carried, self.lazy or self.together)


@flax.struct.dataclass
class Together(Merged):
    """The same of a method that is linear, where nothing is merged that members can share."""

    together = True

    def make(self, genome: Array) -> Params:
        """(n,) -> what is the member's own."""
        return unmerged(self.merge, self.bank, express(self.space, genome))

    def model(self, made: Params | None, genome: Array, slots: int | None = None) -> Instance:
        """The model."""
        assert made is not None
        return Instance(self._whole(together(self.bank, made)))
