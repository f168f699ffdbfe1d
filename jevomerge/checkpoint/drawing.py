"""Image models that can draw: all their parts, those that a model lacks lent by another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.pipeline import INDEX, Pipeline, is_pipeline
from jevomerge.checkpoint.single_file import ZERO_SNR
from jevomerge.checkpoint.source import Stored, read_leaf
from jevomerge.errors import InputError
from jevomerge.models.diffusion import pipeline
from jevomerge.models.diffusion.deduce import deduced
from jevomerge.models.diffusion.parts import read_config, shapes
from jevomerge.models.diffusion.scheduler import RULES
from jevomerge.models.diffusion.schema import MERGEABLE, Rule
from jevomerge.models.layers import Params
from jevomerge.models.specs import unflatten
from jevomerge.schema import Notes

TOKENIZER, SCHEDULER = "tokenizer", "scheduler"


class Drawable:
    """An image model that has been opened and checked, of which no weight has been read.

    Attributes:
        model: what it computes.
        tokenizers: {"tokenizer": its folder, ...}.
        notes: what a user should hear but need not change.
    """

    def __init__(
        self,
        reference: str | Path,
        like: str | Path | None = None,
        *,
        rule: Rule | None = None,
        pooled_from: int | None = None,
    ):
        """Open `reference`: a folder, a file or a hub name, or one of them and a LoRA as `model+lora`.

        Args:
            reference: the model.
            like: another one, which lends the parts that the model lacks: of a single file its tokenizers.
            rule: how noise becomes a picture, instead of as its scheduler_config.json says.
            pooled_from: see `models.diffusion.pipeline.Pipeline.read`.

        Raises:
            InputError: if it cannot draw, or a part is missing.
        """
        own = _open(reference)
        models = [own, *([] if like is None else [_open(like)])]
        index = next((m.index for m in models if m.index), None)
        remedy = f"{'' if like is None else f', nor has {like}'}; name a folder that has with --like"
        if index is None:
            raise InputError(f"{own.folder} has no {INDEX}, no tokenizers and no scheduler{remedy}")
        self._whose: dict[str, Pipeline] = {}
        for name, value in index.items():
            needed = name in (*MERGEABLE, SCHEDULER) or name.startswith(TOKENIZER)
            if not needed or not isinstance(value, list) or not any(value):
                continue
            whose = next((m for m in models if name in m.components), None)
            if whose is None:
                raise InputError(f"{own.folder} has no {name}{remedy}")
            self._whose[name] = whose
        self.notes = Notes()
        self.notes.update(m.notes for m in models)
        files: dict[str, Any] = {INDEX: index}
        files |= {f"{p}/config.json": self._config(p, models) for p in self._whose if p in MERGEABLE}
        if SCHEDULER in self._whose:
            files[pipeline.SCHEDULER] = self._scheduler(own) | (RULES[rule] if rule else {})
        self.model = pipeline.Pipeline.read(files, pooled_from, self.notes)
        if (channels := self.model.vae.out_channels if self.model.vae else self.model.unet.in_channels) not in (1, 3):
            raise InputError(f"{own.folder} draws pictures with {channels} channels: not grey, and no colours")
        folders = {n: m.components[n].folder for n, m in self._whose.items() if n.startswith(TOKENIZER)}
        self.tokenizers = {name: folder for name, folder in folders.items() if folder is not None}

    def load(self, parts: Sequence[str]) -> Params:
        """The parameters of some parts, in the dtypes in which they are stored."""
        leaves: dict[str, Any] = {}
        for part in parts:
            source: Any = self._whose[part]
            own = [spec for spec in source.specs if spec.path.startswith(f"{part}.")]
            leaves |= {s.path: read_leaf(s, [(source, name) for name in s.names()]) for s in own}
        return unflatten(leaves)

    def _config(self, part: str, models: Sequence[Pipeline]) -> Mapping[str, Any]:
        """The config.json of a part; of a single file's that of the lender, if it has one, which must fit."""
        whose = self._whose[part]
        there = {name: stored.shape for name, stored in whose.components[part].tensors.items()}
        components = (m.components[part] for m in (whose, *models) if part in m.components)
        found = next((c for c in components if c.config is not None), None)
        if found is None:
            every = {p: {n: s.shape for n, s in c.tensors.items()} for p, c in whose.components.items()}
            return deduced(part, every)
        config: Mapping[str, Any] = found.config or {}
        wanted, where = shapes(read_config(part, config, f"{found.folder}/config.json")), f"{found.folder}/config.json"
        for name in sorted(wanted.keys() | there.keys()):
            if wanted.get(name) != there.get(name):
                raise InputError(
                    f"{whose.folder}: {part}: {name} has shape {there.get(name)}, but {where} says {wanted.get(name)}"
                )
        return config

    def _scheduler(self, own: Pipeline) -> dict[str, Any]:
        """The scheduler_config.json, which takes for what the U-Net says that which the U-Net's file says it is."""
        config = dict(self._whose[SCHEDULER].components[SCHEDULER].config or {})
        told, taken = own.model.prediction, config.get("prediction_type", "epsilon")
        if own.folder.is_file() and told != taken:
            self.notes.add(f"{own.folder} predicts {told}; the scheduler of {self._whose[SCHEDULER].folder} is told so")
            config |= {"prediction_type": told, "rescale_betas_zero_snr": ZERO_SNR in own.markers}
        return config


def _open(reference: str | Path) -> Pipeline:
    found = Stored(reference)
    if not is_pipeline(found.folder):
        raise InputError(f"{reference} is no image model: neither a folder with {INDEX} nor a file of a pipeline")
    return Pipeline(found, parts=None)
