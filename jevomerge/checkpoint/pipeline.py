"""Image pipelines: diffusers' folders, parts of them alone, and single files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jevomerge.checkpoint.files import digest, read_json
from jevomerge.checkpoint.lora_file import open_adapter
from jevomerge.checkpoint.orbax_tree import OrbaxTree, is_orbax
from jevomerge.checkpoint.safetensors_file import digest_tensors, read_header, read_metadata
from jevomerge.checkpoint.single_file import V_PREDICTION, split_file
from jevomerge.checkpoint.source import Checkpoint, Source, Stored
from jevomerge.checkpoint.weights import read_weights
from jevomerge.errors import InputError
from jevomerge.models.diffusion.deduce import Shapes, deduced
from jevomerge.models.diffusion.parts import Config, read_config
from jevomerge.models.diffusion.schema import MERGEABLE, MERGED
from jevomerge.models.diffusion.table import PipelineModel

INDEX = "model_index.json"  # which parts there are, and which classes they have
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # of weights' files; others': model
ALONE = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}  # classes that have repositories of their own
SCHEDULER = "scheduler_config.json"


class Component(NamedTuple):
    """A part of a pipeline: its folder, if it has one, and its tensors, if it has any."""

    folder: Path | None  # None: it is in a single file
    config: Mapping[str, Any] | None  # None: there is none
    tensors: Mapping[str, Any]  # by diffusers' names

    @property
    def files(self) -> list[Path]:
        """Its small files: configs, vocabularies."""
        names = ("*.json", "*.txt", "*.model") if self.folder is not None else ()
        found = (p for pattern in names for p in self.folder.glob(pattern))  # type: ignore[union-attr]
        return sorted(p for p in found if ".safetensors.index" not in p.name)


def open_model(reference: str | Path, *, parts: Sequence[str] = MERGED, variant: str | None = None) -> Source:
    """Open a model of whichever kind a reference is.

    Args:
        reference: a folder, a file, a hub name, or one of them and an adapter as `model+adapter`.
        parts: of a pipeline, which are merged.
        variant: of a pipeline, which of several files of the same weights are read, if there are such: fp16.

    Raises:
        InputError: if it cannot be merged as it is.
    """
    found = Stored(reference)
    if is_pipeline(found.folder):
        return Pipeline(found, parts=parts, variant=variant)
    if is_orbax(found.folder):
        return OrbaxTree(found)
    if tuple(parts) != MERGED or variant is not None:
        raise InputError(f"{reference} is no image pipeline, and has no `parts` and no `variant`; leave these out")
    return Checkpoint(found)


def is_pipeline(where: Path) -> bool:
    """Whether a folder or file is of an image pipeline, or of a part of one."""
    return where.is_file() or (where / INDEX).exists() or (where / "unet").is_dir() or _alone(where) is not None


class Pipeline(Stored):
    """An image pipeline that has been opened and checked, of which no weight has been read.

    Attributes:
        components: all that it is made of, by diffusers' names: unet, vae, text_encoder, tokenizer, scheduler, ...
        index: its model_index.json; {} without one.
        tensors: those of the parts that are merged, "unet.conv_in.weight".
    """

    def __init__(
        self, reference: str | Path | Stored, *, parts: Sequence[str] | None = MERGED, variant: str | None = None
    ):
        """Open `reference`; arguments and errors as of `open_model`. `parts` None: all that it has."""
        super().__init__(reference)
        self.index: Mapping[str, Any] = {}
        self.components: dict[str, Component] = {}
        if self.folder.is_file():
            self._open_file()
        else:
            self._open_folder(variant)
        parts = [part for part in MERGEABLE if part in self.components] if parts is None else parts
        if lacking := [part for part in parts if part not in self.components]:
            raise InputError(f"{self.folder} has no {lacking[0]}, which is to be merged; see `parts`")
        self.merged = tuple(sorted(parts))
        shapes = {part: {n: s.shape for n, s in c.tensors.items()} for part, c in self.components.items()}
        self.tensors = {f"{p}.{n}": s for p in self.merged for n, s in self.components[p].tensors.items()}
        try:
            configs = tuple((part, self._config(part, shapes)) for part in self.merged)
        except KeyError as error:
            raise InputError(f"{self.folder}: tensor {error.args[0]} is missing; download it again") from None
        self.model = PipelineModel(configs, self._prediction(), self.folder.is_dir())
        self.specs = self.model.specs
        self._check_names()
        every = {f"{part}.{name}": shape for part, inside in shapes.items() for name, shape in inside.items()}
        self.adapter = None if self.behind is None else open_adapter(self.parts[self.behind], self.model, every)
        if self.adapter is not None:
            self.notes.update([self.adapter.notes])

    def _open_file(self) -> None:
        header = read_header(self.folder)
        self.metadata, self.markers = read_metadata(self.folder), {n: s for n, s in header.items() if s.shape == (0,)}
        parts, rest = split_file(header, self.folder)
        self.components = {part: Component(None, None, tensors) for part, tensors in parts.items()}
        if rest:
            more = f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""
            self.notes.add(f"{self.folder}: {rest[0]}{more} is of no part of the model and left out")

    def _open_folder(self, variant: str | None) -> None:
        self.metadata, self.markers = {}, {}
        if (part := _alone(self.folder)) is not None:
            self.components[part] = self._component(part, self.folder, variant)
            return
        if (self.folder / INDEX).exists():
            self.index = read_json(self.folder / INDEX)
        listed = [name for name, value in self.index.items() if isinstance(value, list) and value[:1] != [None]]
        for name in listed or sorted(p.name for p in self.folder.iterdir() if p.is_dir() and p.name in MERGEABLE):
            if not (self.folder / name).is_dir():
                raise InputError(f"{self.folder}: {INDEX} lists {name}, which is missing; download it again")
            self.components[name] = self._component(name, self.folder / name, variant)

    def _component(self, name: str, folder: Path, variant: str | None) -> Component:
        if not (folder / "config.json").exists():  # of tokenizers, schedulers
            config = folder / SCHEDULER
            return Component(folder, read_json(config) if config.exists() else None, {})
        choices = [_files(STEMS.get(name, "model"), wanted) for wanted in (variant, None, "fp16")]
        there = (files for files in choices if any((folder / file).exists() for file in files))
        weights, index = next(there, choices[1])
        if (folder / weights).exists() and (folder / index).exists():  # diffusers reads one, transformers the other
            raise InputError(f"{folder} has both {weights} and {index}; remove the one that is not meant")
        tensors = read_weights(folder, self.notes, weights, index)
        if name.startswith("text_encoder"):  # transformers 5 writes one of its two classes without the prefix
            bare = not any(n.startswith("text_model.") for n in tensors)
            tensors = {
                n if not bare or n.startswith("text_projection.") else f"text_model.{n}": s
                for n, s in tensors.items()
                if not n.endswith(".position_ids")
            }
        return Component(folder, read_json(folder / "config.json"), tensors)

    def _config(self, part: str, shapes: Mapping[str, Shapes]) -> Config:
        """What decides what a part computes: as its config.json says, or else as its tensors' shapes do."""
        component = self.components[part]
        if component.config is None:
            return read_config(part, deduced(part, shapes), f"{self.folder}: {part}")
        return read_config(part, component.config, f"{component.folder}/config.json", self.notes)

    def _prediction(self) -> str | None:
        """What its U-Net predicts, as far as its files say; single files that say nothing predict epsilon."""
        if self.folder.is_file():
            told = self.metadata.get("modelspec.prediction_type") or self.metadata.get("modelspec.predict_key") or ""
            return "v_prediction" if V_PREDICTION in self.markers or told.lower().startswith("v") else "epsilon"
        scheduler = self.components.get("scheduler")
        return None if scheduler is None else (scheduler.config or {}).get("prediction_type", "epsilon")

    def vocabulary(self) -> None:
        """Its text encoders are merged as they are, token by token."""

    def beside(self) -> Iterator[Path]:
        """Nothing goes with its tensors alone."""
        return iter(())

    def fingerprint(self) -> dict[str, str]:
        """Of all its weights, of the small files of its parts, and of its adapter."""
        every = {f"{part}.{n}": s for part, c in self.components.items() for n, s in c.tensors.items()}
        found = {"weights": digest_tensors(every)}
        found |= {f"{part}/{p.name}": digest(p) for part, c in self.components.items() for p in c.files}
        return found if self.adapter is None else found | self.adapter.fingerprint()


def _alone(folder: Path) -> str | None:
    """Which part a folder is that has only one; None: it is another model's."""
    config = folder / "config.json"
    return ALONE.get(str(read_json(config).get("_class_name"))) if config.exists() else None


def _files(stem: str, variant: str | None) -> tuple[str, str]:
    """What a variant's weights and their index are called."""
    infix = f".{variant}" if variant else ""
    return f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"
