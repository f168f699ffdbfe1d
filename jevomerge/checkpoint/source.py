"""Reading Hugging Face checkpoints: a folder, or a repository on the hub, of safetensors files."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jevomerge.checkpoint.files import SUFFIX, digest, expanded, is_here, read_json, resolve, split_adapter
from jevomerge.checkpoint.frame import Frame, frame_of, predictors_of
from jevomerge.checkpoint.lineage import Origin, front_matter, licence_of, parents_of
from jevomerge.checkpoint.lora import ADAPTER_CONFIG, Adapter, PeftAdapter
from jevomerge.checkpoint.mxfp4 import Packed, unpacked
from jevomerge.checkpoint.safetensors_file import (
    DTYPES,
    FLOATING,
    StoredTensor,
    aligned_empty,
    all_finite,
    digest_tensors,
    read_metadata,
)
from jevomerge.checkpoint.tokenizer_file import read_tokenizer
from jevomerge.checkpoint.weights import read_weights
from jevomerge.devices.schema import Memory
from jevomerge.errors import InputError
from jevomerge.models.families import nesting_of, read_model, read_seeing
from jevomerge.models.fields import QUANTISED, SIXTEEN_BITS
from jevomerge.models.model import Language
from jevomerge.models.specs import ParamSpec, shardings, unflatten, waiting
from jevomerge.models.vision.seeing import ByViews
from jevomerge.models.vision.sighted import Sighted
from jevomerge.schema import Notes

# Buffers that old checkpoints carry and every reader recomputes.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq|.*\.masked_bias|.*\.attn\.bias")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
MORE_TEMPLATES = "additional_chat_templates"  # a folder of them, beside chat_template.jinja


class Source(Protocol):
    """A model that is merged: its table and where its tensors lie. In a folder (`Checkpoint`) or in memory."""

    reference: str  # by which a recipe names it
    name: str  # by which genomes, recipes and random masks know it
    folder: Path  # for messages
    notes: Notes  # what was found odd and needs no change
    model: Any
    specs: tuple[ParamSpec, ...]
    frame: Frame | None  # the other parts of its folder; None: it has none

    @property
    def tensors(self) -> Mapping[str, Any]:
        """{name: what has the `dtype` and the `shape` of a tensor}."""

    def tensor(self, name: str, out: np.ndarray | None = None, index: tuple[slice, ...] = ()) -> np.ndarray:
        """One tensor or a part of it, into `out` if given; NaN or infinity in it is an InputError."""

    def check_head(self) -> None:
        """Raise InputError if a tensor that is another one (`Model.tied`) is stored and differs from it."""

    def load(self, mesh: Mesh | None = None) -> dict[str, Any]:
        """The whole model as the nested pytree that a forward pass takes, in the stored dtypes."""

    def dtype(self) -> str:
        """That of its first matrix: float32, bfloat16 or float16."""

    def vocabulary(self) -> dict[str, int] | None:
        """Token -> id; None without a tokenizer."""

    def beside(self) -> Iterator[Path]:
        """Files that go with it: those of its tokenizer."""

    def origins(self) -> list[Origin]:
        """What it is made of, for a reader on another machine."""

    def fingerprint(self) -> dict[str, str]:
        """{part: digest of its content}, by which a resumed run knows that it is the same."""


class Stored:
    """A model in files, of which no weight has been read. What it is made of is told by who opens it.

    Attributes:
        reference: what a recipe calls it, perhaps `model+adapter`.
        parts: {model or adapter: where that is on this machine}.
        folder: the model's.
        name: by which genomes, recipes and random masks know it: the last components of the reference.
    """

    model: Any
    specs: tuple[ParamSpec, ...]
    tensors: dict[str, Any]  # `StoredTensor`s, and what is read like them
    adapter: Adapter | None
    frame: Frame | None = None

    def __init__(self, reference: str | Path | Stored):
        """Find `reference`: a folder, a file, a hub name `owner/name[@revision]`, or two of them as `model+adapter`."""
        if isinstance(reference, Stored):
            vars(self).update(vars(reference))
            return
        self.reference, self.notes = str(reference), Notes()
        model, self.behind = split_adapter(self.reference)
        self.parts = {part: resolve(part) for part in (model, self.behind) if part is not None}
        self.folder = self.parts[model]
        self.name = "+".join(map(short_name, self.parts))

    def _check_names(self) -> None:
        """Every tensor the architecture has is there once with the right shape, and nothing else is."""
        wanted = {name: spec for spec in self.specs for name in spec.names()}
        found = {name for name in self.tensors if not IGNORED.fullmatch(name)}
        found -= self.model.tied.keys() - wanted.keys()
        if packed := [name for name in found - wanted.keys() if name.endswith(QUANTISED)]:
            raise InputError(f"{self.folder}: {min(packed)} belongs to a quantised model; {SIXTEEN_BITS}")
        for problem, names in (
            ("is missing", wanted.keys() - found),
            ("is not expected", found - wanted.keys()),
        ):
            if names:
                first, more = min(names), f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                raise InputError(f"{self.folder}: tensor {first}{more} {problem}; config.json and the weights disagree")
        for name, spec in wanted.items():
            stored = self.tensors[name]
            if stored.code not in FLOATING:
                raise InputError(f"{self.folder}: {name} is stored as {stored.code}; {SIXTEEN_BITS}")
            if stored.shape != spec.shape:
                raise InputError(f"{self.folder}: {name} has shape {stored.shape}, but config.json says {spec.shape}")

    def tensor(self, name: str, out: np.ndarray | None = None, index: tuple[slice, ...] = ()) -> np.ndarray:
        """One tensor or a part of it, read now (into `out` if given); NaN or infinity in it is an error."""
        if self.adapter and index:
            part = self.tensor(name)[index]
            if out is not None:
                out[...] = part
            return part
        array = self.tensors[name].read(out, index)
        if self.adapter:
            self.adapter.apply(name, array)
        if not all_finite(array):
            raise InputError(
                f"{self.folder}: {name} contains NaN or infinity; the checkpoint is broken, "
                "leave it out or download it again"
            )
        return array

    def check_head(self) -> None:
        """An lm_head that is stored although it is tied must be the embeddings.

        Raises:
            InputError: if it is not.
        """
        for head, embedding in self.model.tied.items():
            if self.tensors[head] == self.tensors[embedding]:
                continue  # stored once
            if not np.array_equal(self.tensor(head), self.tensor(embedding)):
                raise InputError(
                    f"{self.folder}: config.json says tie_word_embeddings, but {head} differs from "
                    "the embeddings; set tie_word_embeddings to false"
                )

    def load(
        self, mesh: Mesh | None = None, specs: Sequence[ParamSpec] | None = None, memory: Memory = "device"
    ) -> dict[str, Any]:
        """The whole model, or `specs` of it, as the nested pytree that a forward pass takes, in the stored dtypes.

        `memory`: in which blocks are.
        """
        self.check_head()
        specs = self.specs if specs is None else specs
        where, source = shardings(mesh, specs), cast(Source, self)
        where |= {s.path: waiting(where[s.path], s, memory) for s in specs if s.block}
        return unflatten({s.path: read_leaf(s, [(source, n) for n in s.names()], where[s.path]) for s in specs})

    def dtype(self) -> str:
        """That of its first matrix: float32, bfloat16 or float16.

        Raises:
            InputError: if it is stored in another one.
        """
        code = next(self.tensors[name].code for s in self.specs if len(s.shape) == 2 for name in s.names())
        if code not in DTYPES.values():
            raise InputError(f"{self.folder} is stored as {code}; say which `dtype` to write: {', '.join(DTYPES)}")
        return next(name for name, known in DTYPES.items() if known == code)

    def origins(self) -> list[Origin]:
        """What it is made of, the model and its adapter, for a reader on another machine."""
        return [_origin(short_name(part) if is_here(part) else part, place) for part, place in self.parts.items()]


class Checkpoint(Stored):
    """A checkpoint that has been opened and checked, of which no weight has been read.

    The model may have a LoRA adapter, which is applied to every tensor that is read.
    """

    def __init__(self, reference: str | Path | Stored):
        """Open `reference`, a folder or a hub name `owner/name[@revision]`, or two of them as `model+adapter`.

        Raises:
            InputError: naming the file and the remedy if the checkpoint cannot be merged as it is.
        """
        super().__init__(reference)
        config = self.folder / "config.json"
        if (self.folder / ADAPTER_CONFIG).exists() and not config.exists():
            base = read_json(self.folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "MODEL"
            raise InputError(f"{self.folder} is an adapter; write it behind its model: {base}+{next(iter(self.parts))}")
        values = read_json(config)
        nesting = nesting_of(values)
        alone = values if nesting is None else nesting.alone(values, str(config))
        self.model: Language = read_model(alone, str(config), self.notes)
        self.tensors = unpacked(read_weights(self.folder, self.notes))
        if nesting is not None:
            self.frame, self.tensors = frame_of(values, nesting, self.folder, self.tensors)
        else:
            self.frame, self.tensors = predictors_of(values, len(self.model.kinds), self.folder, self.tensors)
        self.specs = self.model.specs
        self._check_names()
        for head, embedding in self.model.tied.items():  # models with a head of their own ask for it
            self.tensors.setdefault(head, self.tensors[embedding])
        self.adapter = None if self.behind is None else PeftAdapter(self.parts[self.behind], self.model)

    def beside(self) -> Iterator[Path]:
        """Files that go with its weights: those of its tokenizer, and generation_config.json with ids of that."""
        names = (*TOKENIZER_FILES, "generation_config.json")
        yield from (p for name in names if (p := self.folder / name).exists())
        yield from sorted(self.folder.glob(f"{MORE_TEMPLATES}/*.jinja"))

    def fingerprint(self) -> dict[str, str]:
        """Of its weights, wherever they lie, config.json and the files that go with them, and of its adapter."""
        carried = self.frame.tensors if self.frame else {}
        files = [self.folder / "config.json", *self.beside(), *(self.frame.files if self.frame else ())]
        found = {"weights": digest_tensors({**_as_stored(self.tensors), **carried})}
        found |= {str(p.relative_to(self.folder)): digest(p) for p in files}
        return found if self.adapter is None else found | self.adapter.fingerprint()

    def vocabulary(self) -> dict[str, int] | None:
        """Token -> id from `tokenizer.json`, or None without one."""
        path = self.folder / "tokenizer.json"
        if not path.exists():
            return None
        data = read_tokenizer(path)
        vocab = data["model"].get("vocab", {})
        if isinstance(vocab, list):  # unigram models list (token, score)
            vocab = {token: i for i, (token, _) in enumerate(vocab)}
        return vocab | {t["content"]: t["id"] for t in data.get("added_tokens", [])}


def with_eyes(source: Source) -> Source:
    """The same model with its eyes: their tensors are in its table too, by the names that new files have for them.

    Raises:
        InputError: if it has none, they cannot look at one view after another, or some are missing.
    """
    assert isinstance(source, Checkpoint)
    frame, where = source.frame, str(source.folder / "config.json")
    if frame is None:
        raise InputError(f"{source.name} has no eyes; only vision-language models have")
    eyes = read_seeing(frame.json, where)
    if not isinstance(eyes, ByViews):
        raise InputError(f"{where}: the tower of `{frame.json['model_type']}` cannot be merged, only carried along")
    whole, found = copy.copy(source), eyes.stored_as([*frame.tensors, frame.name("model.norm.weight")])
    whole.model = sighted = Sighted(source.model, eyes)
    whole.specs = sighted.specs
    called = {s.path: s for s in found.specs}
    names = {s.name(at): called[s.path].name(at) for s in sighted.eye_specs for at in s.indices()}
    whole.frame = dataclasses.replace(frame, eyes=names)
    held = {name: frame.tensors[own] for name, own in names.items() if own in frame.tensors}
    whole.tensors = {**source.tensors, **held}
    whole._check_names()
    return whole


def _as_stored(tensors: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Those of four bits as the two that they are stored as."""
    found: dict[str, StoredTensor] = {}
    for name, stored in tensors.items():
        if isinstance(stored, Packed):
            found |= {f"{name}.blocks": stored.blocks, f"{name}.scales": stored.scales}
        else:
            found[name] = stored
    return found


def short_name(reference: str) -> str:
    """The last component of a reference; the winner of a run, RUN/best, is called after the run."""
    *_, parent, name = ("", *reference.rstrip("/").split("/"))
    name = name.removesuffix(SUFFIX)
    if name != "best":
        return name
    return parent if (expanded(reference.rstrip("/")).parent / "evaluations.jsonl").exists() else name


def _origin(name: str, place: Path) -> Origin:
    """What a folder's card says of it, or a single file of itself."""
    if place.is_file():
        return Origin(name, read_metadata(place).get("modelspec.license", "").strip().lower() or None)
    card = front_matter(place)
    return Origin(name, licence_of(card), parents_of(card))


def read_leaf(spec: ParamSpec, places: Sequence[tuple[Source, str]], where: NamedSharding | None = None) -> jax.Array:
    """One leaf of a pytree, its layers the named tensors of checkpoints; of a sharded one, this process's shards."""
    if where is None or where.num_devices == 1:  # an aligned array is taken over without a copy; jnp.asarray copies
        return jax.device_put(_read_part(spec, places, ()), where)
    parts: dict[str, np.ndarray] = {}  # what several devices hold is read once

    def part(index: Any) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = _read_part(spec, places, index)
        return parts[str(index)]

    return jax.make_array_from_callback(spec.leaf_shape, where, part)


def abstract_leaf(
    spec: ParamSpec, places: Sequence[tuple[Source, str]], where: NamedSharding | None = None
) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of what `read_leaf` returns; reads nothing."""
    return jax.ShapeDtypeStruct(spec.leaf_shape, jax.dtypes.canonicalize_dtype(_leaf_dtype(places)), sharding=where)


def blank_leaf(spec: ParamSpec, dtype: np.dtype[Any]) -> np.ndarray:
    """Zeros in the shape of a leaf, which take no room."""
    return np.broadcast_to(np.zeros((), dtype), spec.leaf_shape)


def _leaf_dtype(places: Sequence[tuple[Source, str]]) -> np.dtype[Any]:
    found = {checkpoint.tensors[name].dtype for checkpoint, name in places}
    return found.pop() if len(found) == 1 else functools.reduce(np.promote_types, found, np.dtype(np.float32))


def _read_part(spec: ParamSpec, places: Sequence[tuple[Source, str]], index: tuple[slice, ...]) -> np.ndarray:
    """`leaf[index]` of a leaf, whose tensors lie at `places`, in the order of `spec.indices()`."""
    index = index or (slice(None),) * len(spec.leaf_shape)
    leading = len(spec.stack)
    numbers = np.arange(spec.count).reshape(spec.leading)[index[:leading]]
    chosen, inside = [places[i] for i in numbers.ravel().tolist()], index[leading:]
    shape = tuple(len(range(n)[s]) for n, s in zip(spec.shape, inside, strict=True))
    inside = () if shape == spec.shape else inside
    leaf = aligned_empty((len(chosen), *shape), _leaf_dtype(places))
    for i, (checkpoint, name) in enumerate(chosen):
        row = leaf[i, ...]  # a view, of numbers too
        if checkpoint.tensors[name].dtype == leaf.dtype:  # read into place: never two copies of a leaf
            checkpoint.tensor(name, row, inside)
        else:
            row[...] = checkpoint.tensor(name, index=inside)
    return leaf.reshape((*numbers.shape, *shape))
