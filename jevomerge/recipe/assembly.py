"""The whole image pipeline that merged parts go into: whose its other parts are, and how it is written.

A U-Net of SDXL is told a vector of the whole prompt, the pooled output of the second text encoder. diffusers takes it
from the first encoder that has a projection (since 2025; before, from the last encoder), so that a first encoder with a
projection of its own would change what the U-Net hears: whose it is has to be said, with `pooled_from`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jevomerge.checkpoint.files import SUFFIX, parse_json
from jevomerge.checkpoint.licences import merged_licence
from jevomerge.checkpoint.pipeline import INDEX, SCHEDULER, STEMS, Component, Pipeline
from jevomerge.checkpoint.safetensors_file import DTYPES, Planned, stream_safetensors
from jevomerge.checkpoint.single_file import PROJECTION, V_PREDICTION, ZERO_SNR, Piece, kind_of, lay_out_file
from jevomerge.checkpoint.source import Source
from jevomerge.checkpoint.weights import check_room, write_weights
from jevomerge.errors import InputError
from jevomerge.models.specs import tensor_names
from jevomerge.recipe.schema import Recipe
from jevomerge.schema import Notes, Problems, read_text

SHARD_BYTES = 10**10  # as diffusers has it
FIRST, SECOND = "text_encoder", "text_encoder_2"
TOKENIZERS = {FIRST: "tokenizer", SECOND: "tokenizer_2"}  # a text encoder reads no other one's ids
PLAIN = "CLIPTextModel"  # which has no projection
PREDICTION = ("prediction_type", "epsilon")  # of a scheduler, and what is meant where nothing is said

Tensor = Callable[[str], Any]


class Assembly:
    """A pipeline some of whose parts are merged.

    Attributes:
        like: the pipeline whose configs the merged parts have.
        lenders: {part that is not merged: whose it is}.
        notes: what a user should hear but need not change.
    """

    def __init__(
        self,
        recipe: Recipe,
        like: Pipeline,
        models: Sequence[Pipeline],
        taken: Mapping[str, Pipeline],
        problems: Problems,
    ):
        """Find whose each part is.

        Args:
            recipe: which names them.
            like: see above.
            models: all that are merged, the base before the others.
            taken: {part: the pipeline that `take` names}.
            problems: where what is wrong goes.
        """
        self.like, self.notes, self._models = like, Notes(), [*models, *taken.values()]
        self.index = next((m.index for m in self._models if m.index), {})
        names = list(self.index) or [name for m in self._models for name in m.components]
        have = {name for m in self._models for name in m.components}
        self.lenders: dict[str, Pipeline] = {}
        for name in sorted({*names, *taken} & {*have, *taken} - {*like.merged}):
            followed = [taken[first] for first, second in TOKENIZERS.items() if second == name and first in taken]
            lender = taken.get(name) or next(m for m in [*followed, *self._models] if name in m.components)
            if name not in lender.components:
                problems.add(("take", name), f"{lender.folder} has no {name}, but {', '.join(lender.components)}")
                continue
            self.lenders[name] = lender
        self._check_vocabularies(models, problems)
        scheduler, prediction = self._part("scheduler"), like.model.prediction
        if scheduler is not None and prediction not in (None, told := (scheduler.config or {}).get(*PREDICTION)):
            whose = self.lenders["scheduler"].folder
            problems.add(("take",), f"the U-Net predicts {prediction}, the scheduler of {whose} takes it for {told}")
        self.pooled = self._pooled(recipe.pooled_from, problems)
        for lender in dict.fromkeys(self.lenders.values()):
            own = ", ".join(name for name, whose in self.lenders.items() if whose is lender)
            self.notes.add(f"{own}: as in {lender.name}, unchanged")

    def _check_vocabularies(self, models: Sequence[Pipeline], problems: Problems) -> None:
        """Text encoders that are merged must mean the same by a token."""
        for encoder, tokenizer in TOKENIZERS.items():
            if encoder not in self.like.merged:
                continue
            having = [m for m in models if tokenizer in m.components]
            known = [(m, found) for m in having if (found := _vocabulary(m.components[tokenizer])) is not None]
            for other, vocabulary in known[1:]:
                if vocabulary != known[0][1]:
                    problems.add(
                        ("parts",),
                        f"{encoder} cannot be merged, for {other.folder} and {known[0][0].folder} have different "
                        "tokenizers; say whose with `take` instead",
                    )

    def _part(self, name: str) -> Component | None:
        """A part of the result, merged or not; None: it has none of the name."""
        return self._component(name) if name in (*self.like.merged, *self.lenders) else None

    def _pooled(self, wanted: int | None, problems: Problems) -> int | None:
        """From which text encoder the pooled vector comes; None with less than two."""
        first, second = self._part(FIRST), self._part(SECOND)
        if first is None or second is None:
            if wanted is not None:
                problems.add(("pooled_from",), "the pipeline has not two text encoders; leave it out")
            return None
        projected = PROJECTION in first.tensors
        if wanted is None and projected:
            problems.add(
                None,
                f"{FIRST} of {(self.lenders.get(FIRST) or self.like).folder} has a projection of its own; say whose "
                "pooled vector the U-Net is told with `pooled_from`: 2, as SDXL's are trained and as diffusers did "
                "before 2025, or 1, as it does since",
            )
        if wanted == 1:
            told = [part.tensors[PROJECTION].shape[0] for part in (first, second) if PROJECTION in part.tensors]
            if len(told) < 2 or len(set(told)) > 1:
                problems.add(("pooled_from",), f"{FIRST} has no projection to what the U-Net is told; only 2 will do")
        return wanted or 2

    # --- writing -----------------------------------------------------------------------------------------------

    def check(self, out: Path) -> None:
        """Raise InputError for what cannot be written as `out`, a folder or a single file."""
        if out.suffix == SUFFIX:
            if self.pooled == 1:
                raise InputError(f"{out}: what reads single files takes the pooled vector of encoder 2: write a folder")
            self._pieces()
            return
        for name in (*self.like.merged, *self.lenders):
            if self._config(name) is None and self._component(name).tensors:
                raise InputError(
                    f"{out}: {name} is from a single file, which has no config.json; let OUT end in {SUFFIX}, or "
                    "`take` a part from a folder"
                )
        if not self.index and self.lenders:
            raise InputError(f"{out}: no model has {INDEX}; let OUT end in {SUFFIX}, or `take` a part of one that has")

    def write(self, out: Path, dtype: str, tensor: Tensor | None, recipe: str, **more: Any) -> None:
        """Write the pipeline, as a folder that exists already or as a single file, by what `out` ends in.

        Args:
            out: where to.
            dtype: of the merged tensors.
            tensor: "unet.conv_in.weight" -> that tensor, called in the order of the table; None: holes.
            recipe: its text, which files keep.
            more: `title` of the model, `shard_bytes` of a file of a folder.
        """
        if out.suffix == SUFFIX:
            self._write_file(out, dtype, tensor, recipe, more.get("title") or out.stem)
        else:
            self._write_folder(out, dtype, tensor, recipe, more.get("shard_bytes") or SHARD_BYTES)

    @property
    def files(self) -> dict[str, Any]:
        """{name from the folder on: JSON object} of what says how the pipeline computes."""
        found: dict[str, Any] = {INDEX: dict(self.index)} if self.index else {}
        for part in (*self.like.merged, *self.lenders):
            if (config := self._config(part)) is not None:
                found[f"{part}/{SCHEDULER if part == 'scheduler' else 'config.json'}"] = dict(config)
        for values in found.values():
            values.pop("_name_or_path", None)
        if self._plain(FIRST):
            found[f"{FIRST}/config.json"]["architectures"] = [PLAIN]
            if self.index:
                found[INDEX][FIRST] = ["transformers", PLAIN]
        return found

    def _config(self, name: str) -> Mapping[str, Any] | None:
        """The config.json of a part; of a single file's that of another model's such part, if any has one."""
        own = self._component(name).config
        others = (m.components[name].config for m in self._models if name in m.components)
        return next((config for config in (own, *others) if config is not None), None)

    def _component(self, name: str) -> Component:
        return self.lenders.get(name, self.like).components[name]

    def _write_folder(self, folder: Path, dtype: str, tensor: Tensor | None, recipe: str, shard_bytes: int) -> None:
        planned: dict[str, dict[str, Planned]] = {name: {} for name in self.like.merged}
        for name, spec, _ in tensor_names(self.like.specs):
            part, _, inside = name.partition(".")
            if self._used(part, inside):
                planned[part][inside] = Planned(DTYPES[dtype], spec.shape)
        for part, lender in self.lenders.items():
            stored = lender.components[part].tensors
            planned[part] = {n: Planned(s.code, s.shape) for n, s in stored.items() if self._used(part, n)}
        if tensor is not None:
            check_room(folder, {f"{part}.{n}": plan for part, inside in planned.items() for n, plan in inside.items()})
        files = self.files
        for part, tensors in sorted(planned.items()):
            (folder / part).mkdir()
            for path in self._component(part).files:
                shutil.copyfile(path, folder / part / path.name)
            if part not in self.lenders:
                config = files[f"{part}/config.json"]
                config |= {key: dtype for key in ("dtype", "torch_dtype") if key in config}
            if tensors:
                about = {} if part in self.lenders else {"recipe": recipe}
                write_weights(
                    folder / part, tensors, self._made(part, tensor), shard_bytes, STEMS.get(part, "model"), about
                )
        for name, values in files.items():
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def _made(self, part: str, tensor: Tensor | None) -> Tensor:
        """`tensor` of a part's names without the part's; None stays None."""
        if tensor is None:
            return lambda name: None
        return lambda name: self._read(f"{part}.{name}", tensor)

    def _read(self, name: str, tensor: Tensor) -> Any:
        part, _, inside = name.partition(".")
        return self.lenders[part].components[part].tensors[inside].read() if part in self.lenders else tensor(name)

    def _plain(self, part: str) -> bool:
        """Whether it is the first text encoder, and its projection is not to be seen."""
        found = self._part(part)
        return part == FIRST and self.pooled == 2 and found is not None and PROJECTION in found.tensors

    def _used(self, part: str, name: str) -> bool:
        return not (self._plain(part) and name == PROJECTION)

    def _pieces(self) -> dict[str, Piece]:
        """All tensors of a single file.

        Raises:
            InputError: for one that has no name there, and if a part is missing.
        """
        shapes: dict[str, dict[str, tuple[int, ...]]] = {part: {} for part in self.like.merged}
        for name, spec, _ in tensor_names(self.like.specs):
            part, _, inside = name.partition(".")
            shapes[part][inside] = spec.shape
        for part, lender in self.lenders.items():
            shapes[part] = {n: s.shape for n, s in lender.components[part].tensors.items()}
        shapes[FIRST] = {n: s for n, s in shapes.get(FIRST, {}).items() if n.startswith("text_model.")}
        kind = kind_of(f"{part}.{name}" for part, inside in shapes.items() for name in inside)
        pieces: dict[str, Piece] = {}
        for part, prefix in sorted(kind.prefixes.items()):
            if not shapes.get(part):
                raise InputError(
                    f"no model has a {part}, and programs open no single file without one; say whose with `take`, or "
                    "write a folder"
                )
            pieces |= lay_out_file(part, prefix, shapes[part])
        return pieces

    def _write_file(self, path: Path, dtype: str, tensor: Tensor | None, recipe: str, title: str) -> None:
        pieces, markers = self._pieces(), self._markers()
        planned = {name: Planned(self._code(piece.names[0], dtype), piece.shape) for name, piece in pieces.items()}
        if tensor is not None:
            check_room(path.parent, planned)
        licences = [origin.licence for source in self.sources for origin in source.origins()]
        about = {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": kind_of(name for piece in pieces.values() for name in piece.names).architecture,
            "modelspec.title": title,
            "modelspec.license": merged_licence(licences),
            "modelspec.prediction_type": "v" if markers else "epsilon",
            "recipe": recipe,
        }

        def made(name: str) -> Any:
            if tensor is None:
                return None
            if name in markers:
                return np.zeros(0, np.float32)
            return pieces[name].made([self._read(inside, tensor) for inside in pieces[name].names])

        planned |= {name: Planned("F32", (0,)) for name in markers}
        stream_safetensors(path, planned, made, about)

    def _code(self, name: str, dtype: str) -> str:
        part, _, inside = name.partition(".")
        return self.lenders[part].components[part].tensors[inside].code if part in self.lenders else DTYPES[dtype]

    def _markers(self) -> list[str]:
        """The tensors without elements by which programs know that a single file's U-Net predicts velocities."""
        if self.like.model.prediction != "v_prediction":
            return []
        scheduler = self._part("scheduler")
        zero = scheduler is not None and (scheduler.config or {}).get("rescale_betas_zero_snr")
        return [V_PREDICTION, ZERO_SNR] if zero or ZERO_SNR in self.like.markers else [V_PREDICTION]

    @property
    def sources(self) -> list[Source]:
        """All pipelines of which something is in the result."""
        return list(dict.fromkeys(self._models))


def _vocabulary(tokenizer: Component) -> Any:
    """Token -> id of a tokenizer's files, whichever of the two forms they have; None without."""
    if tokenizer.folder is None:
        return None
    for name in ("vocab.json", "tokenizer.json"):
        if (path := tokenizer.folder / name).exists():
            values = parse_json(read_text(path))
            return values if name == "vocab.json" else values.get("model", {}).get("vocab")
    return None
