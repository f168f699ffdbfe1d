"""What stands in for models and data that are not on this machine: a small JSON file beside a config, NAME.shapes.json.

    {"models": {"owner/name": {"config.json": {...}, "preprocessor_config.json": {...}, "tokens": 32000,
                               "added": ["<image>"], "dtype": "bfloat16"}},
     "tasks": {"name": [{"rows": 400, "prompt": 110, "answer": 8, "picture": [480, 640]}, ...]}}

A task whose two splits are not rows of one file has {"search": [...], "heldout": [...]}.

Image pipelines, and CLIPs that judge, have `files` instead, {"model_index.json": {...}, "unet/config.json": {...}},
and a LoRA a `rank` and whose U-Net it is `of`. A name that ends in .safetensors is a single file's. Trees of Orbax have
`leaves`, {"params.norm": [128]}. A model that is shaped as another is that one's name.

`tokens` are those of the vocabulary, behind which `added` come; `prompt` and `answer` count tokens without what stands
for a picture, of which a row has one of so many rows and columns, or none. All that a plan looks at is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Discriminator, Field, Tag, field_validator

from jevomerge.checkpoint.export import write_model
from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.frame import Frame
from jevomerge.checkpoint.orbax_tree import write_tree
from jevomerge.config import RunConfig, StagedConfig
from jevomerge.errors import InputError
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.fitness.pictures import MARK
from jevomerge.fitness.schema import DataSource, Task
from jevomerge.fitness.scorers.clip import ClipScore
from jevomerge.fitness.scorers.pickscore import PickScore
from jevomerge.models.families import SEEING, nesting_of, read_model, read_seeing
from jevomerge.models.specs import unflatten
from jevomerge.models.vision.pictures import pillow
from jevomerge.planning.pipelines import LoraShape, PipelineShape, write_lora, write_pipeline
from jevomerge.schema import Dtype, Origin, Strict, validate

SPECIAL = {"<unk>": "unk_token", "<s>": "bos_token", "</s>": "eos_token"}  # the first tokens
ROWS = 1000  # of which each has a word of its own
Some = Annotated[int, Field(gt=0)]


class Alike(Strict):
    """Rows of a task that are as long as each other."""

    rows: Some
    prompt: Some
    answer: Some
    picture: tuple[Some, Some] | None = None


class Apart(Strict):
    """Rows of a task's splits that come from different places."""

    search: tuple[Alike, ...]
    heldout: tuple[Alike, ...]


class Shape(Strict):
    """A model without its weights."""

    config: dict[str, Any] = Field(alias="config.json")
    processor: dict[str, Any] | None = Field(None, alias="preprocessor_config.json")
    tokens: int = Field(gt=len(SPECIAL))
    added: tuple[str, ...] = ()
    dtype: Dtype = "bfloat16"


class TreeShape(Strict):
    """A tree of Orbax without its numbers: what of it is merged."""

    leaves: dict[str, tuple[Some, ...]] = Field(min_length=1)
    dtype: Dtype = "float32"


def _kind(given: Any) -> str:
    return next(
        (kind for kind in ("files", "of", "leaves") if isinstance(given, dict) and kind in given), "config.json"
    )


AnyShape = Annotated[
    Annotated[Shape, Tag("config.json")]
    | Annotated[PipelineShape, Tag("files")]
    | Annotated[LoraShape, Tag("of")]
    | Annotated[TreeShape, Tag("leaves")],
    Discriminator(_kind),
]


class Shapes(Strict):
    """The file."""

    models: dict[str, AnyShape]
    tasks: dict[str, tuple[Alike, ...] | Apart] = Field(default_factory=dict)

    @field_validator("models", mode="before")
    @classmethod
    def _like_others(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: given.get(shape, shape) if isinstance(shape, str) else shape for name, shape in given.items()}


def shapes_beside(config: Path) -> Path:
    """Where a config's file is, if it has one."""
    return config.with_name(f"{config.stem}.shapes.json")


def stand_in(config: RunConfig | StagedConfig, shapes: Path, work: Path) -> Any:
    """The config with what is in `shapes` in place of hub names; the stand-ins are written into `work`.

    Raises:
        InputError: for a file that is not as it must be.
    """
    known, paths = stand_ins(shapes, work)
    tasks = [_task(t, known.tasks[t.name], work) if t.name in known.tasks else _judge(t, paths) for t in config.tasks]

    def placed(stage: Any) -> Any:
        changes: dict[str, Any] = {}
        if stage.recipe is not None:
            changes["recipe"] = stage.recipe.with_models(paths)
        if stage.path is not None:
            models = tuple(paths.get(m, m) for m in stage.path.models)
            changes["path"] = stage.path.model_copy(update={"models": models})
        return stage.model_copy(update=changes)

    config = config.model_copy(update={"tasks": tuple(tasks)})
    if isinstance(config, RunConfig):
        return placed(config)
    return config.model_copy(update={"stages": tuple(map(placed, config.stages))})


def stand_ins(shapes: Path, work: Path) -> tuple[Shapes, dict[str, str]]:
    """The file, and where its models are written, by the names that are no folders here."""
    known = validate(Shapes, read_json(shapes), Origin(shapes))
    paths = {}
    for name, shape in known.models.items():
        place = work.joinpath(*(part for part in Path(name).parts if part not in ("..", "/")))
        if isinstance(shape, Shape):
            paths[name] = str(_model(shape, place))
        elif isinstance(shape, PipelineShape):
            paths[name] = str(write_pipeline(shape, place))
        elif isinstance(shape, TreeShape):
            holes = {leaf: np.broadcast_to(np.zeros((), shape.dtype), dims) for leaf, dims in shape.leaves.items()}
            paths[name] = str(write_tree(place, unflatten(holes)))
        else:
            unet = known.models.get(shape.of)
            if not isinstance(unet, PipelineShape):
                raise InputError(f"{shapes}: {name} is a LoRA of {shape.of}, which is no image pipeline there")
            paths[name] = str(write_lora(shape, unet, place))
    return known, {name: path for name, path in paths.items() if not Path(name).exists()}


def _model(shape: Shape, folder: Path) -> Path:
    """A folder whose weights are holes, with a vocabulary of words that mean nothing."""
    folder.mkdir(parents=True)
    values = dict(shape.config)
    frame = None
    if values.get("model_type") in SEEING:
        model: Any = read_seeing(values)
    else:
        if (nesting := nesting_of(values)) is not None:
            frame = Frame(folder, values, nesting, "model.language_model.", {})
            values = nesting.alone(values, "config.json")
        model = read_model(values)
    write_model(folder, {"config.json": values}, model.specs, shape.dtype, None, frame=frame)
    if shape.processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(shape.processor), encoding="utf-8")
    words = [*SPECIAL, *(f"w{i}" for i in range(shape.tokens - len(SPECIAL)))]
    # Added tokens are tokens to whatever class transformers takes for a family, and for some it takes no other.
    ids = {token: i for i, token in enumerate(words[: len(SPECIAL) + ROWS])}
    ids |= {token: len(words) + i for i, token in enumerate(shape.added)}
    added = [
        {"id": i, "content": token, "special": token in SPECIAL or token in shape.added}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token, i in ids.items()
    ]
    model_of_words = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<unk>"}
    tokenizer = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    roles = {role: token for token, role in SPECIAL.items()} | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"model": model_of_words}), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    return folder


def _judge(task: Any, paths: Mapping[str, str]) -> Any:
    """The task of prompts with a stand-in for its scorer, if there is one."""
    if not isinstance(task, PictureTask):
        return task
    weights = task.weights or {kind.kind: kind.published for kind in (ClipScore, PickScore)}.get(str(task.score))
    found = {"weights": paths.get(str(weights), task.weights), "clip": paths.get(str(task.clip), task.clip)}
    return task.model_copy(update=found)


def _task(task: Any, groups: Sequence[Alike] | Apart, work: Path) -> Any:
    """The task with rows of the same lengths, and pictures of the same sizes, that say nothing."""
    if not isinstance(task, Task):
        return task
    splits, first = {}, 0
    for split in ("search", "heldout"):
        source: DataSource = getattr(task, split)
        path = work / f"{task.name}.jsonl"
        if isinstance(groups, Apart):
            path = work / f"{task.name}.{split}.jsonl"
            first += _write(path, getattr(groups, split), first)
        elif not path.exists():
            _write(path, groups, 0)
        splits[split] = source.model_copy(update={"path": str(path), "name": None})
    own = {"prompt": "{prompt}", "answer": "{answer}", "image": "{image}" if task.image else None}
    return task.model_copy(update={**splits, **own, "language": None, "compare": "equal"})


def _write(path: Path, groups: Sequence[Alike], first: int) -> int:
    """Rows in a mixed order, numbered from `first` on; returns how many there are."""
    rows = [group for group in groups for _ in range(group.rows)]
    mixed = np.random.default_rng(0).permutation(len(rows))
    lines = [json.dumps(_row(i, rows[k], path.with_suffix(f".{i}.png"))) for i, k in enumerate(mixed, first)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(rows)


def _row(number: int, row: Alike, picture: Path) -> Mapping[str, str]:
    own = [f"w{number % ROWS}", f"w{1 + number // ROWS}"]  # each its own
    words = {"prompt": " ".join([*own, *["w1"] * row.prompt][: row.prompt]), "answer": "w2 " * row.answer}
    if row.picture is None:
        return words
    height, width = row.picture
    colour = (number % 256, number // 256 % 256, 128)
    pillow()[0].new("RGB", (width, height), colour).save(picture, compress_level=1)
    return words | {"image": picture.name, "prompt": f"{MARK} {words['prompt']}"}
