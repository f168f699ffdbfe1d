"""What a run folder's files must hold to be read back; more keys may be there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, RootModel

from jevomerge.checkpoint.files import read_json
from jevomerge.schema import Count, Part, check

DRAWN = "drawn.json"


class Evaluation(Part):
    """A line of evaluations.jsonl."""

    generation: Count
    member: Count
    genome: list[float]
    fitness: float | None
    tie_break: float | None
    seconds: float


class Environment(Part):
    """environment.json: what a run began with."""

    genes: list[str]
    population: Annotated[int, Field(gt=0)]
    sources: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Splits(Part):
    """What a model scores."""

    search: float
    heldout: float


class Best(Splits):
    """The outcome."""

    genome: dict[str, Any]
    evaluation: Count


class Spent(Part):
    """Tokens that models were run on."""

    prompt: Count
    answer: Count


class Result(Part):
    """result.json."""

    sources: dict[str, Splits]
    average: Splits | None
    best: Best
    tokens: dict[str, Spent] = Field(default_factory=dict)
    seconds: float


class Texts(Splits):
    """What a model scores on each held-out example, by task."""

    scores: dict[str, list[float | None]]
    texts: dict[str, Any]
    drawn: dict[str, list[str]] = Field(default_factory=dict)  # as `Pictures` has it


class Shown(Part):
    """A held-out example as people read it."""

    prompt: str
    answer: str
    pictures: list[str] = Field(default_factory=list)


class Written(Part):
    """New tokens of texts."""

    mean: float
    longest: float


class Heldout(Part):
    """heldout.json."""

    examples: dict[str, list[Shown]]
    sources: dict[str, Texts]
    average: Texts | None
    best: Texts | None
    front: dict[str, Texts] = Field(default_factory=dict)
    new_tokens: dict[str, Written] = Field(default_factory=dict)  # of what the sources wrote, by task


class Pictures(Part):
    """What a model drew of the first examples, JPEGs in base64, and what it scores on each, by task."""

    scores: dict[str, list[float | None]]
    drawn: dict[str, list[str]]


class DrawnFile(Part):
    """drawn.json: of the search split, while it is searched."""

    examples: dict[str, list[Shown]]
    sources: dict[str, Pictures]
    average: Pictures | None
    best: Pictures | None


class TaskAnchors(Part):
    """Of a task in anchors.json: which examples stand for all of them."""

    examples: list[Count]
    weights: list[float]
    discrimination: list[float] = Field(default_factory=list)
    difficulty: list[float] = Field(default_factory=list)


class AnchorsFile(RootModel[dict[str, TaskAnchors]]):
    """anchors.json, by task."""


def read_environment(folder: Path) -> dict[str, Any]:
    """What was written down when a run began."""
    path = folder / "environment.json"
    remedy = "it is damaged; bring it back or start a new run"
    return check(Environment, read_json(path, "the folder of a run"), path, remedy)


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """What came out of a run; None: it is not finished."""
    path = folder / "result.json"
    remedy = "it is damaged; remove it and resume the run, which writes it again"
    return check(Result, read_json(path), path, remedy) if path.exists() else None


def read_heldout(folder: Path) -> dict[str, Any] | None:
    """What whole models score and write of the held-out examples; None: not known yet, or of an old version."""
    path = folder / "heldout.json"
    remedy = "it is damaged; remove it"
    return check(Heldout, read_json(path), path, remedy) if path.exists() else None


def read_drawn(folder: Path) -> dict[str, Any] | None:
    """What the best candidate so far, and sources, draw of the search's first prompts; None: they draw nothing."""
    path = folder / DRAWN
    return check(DrawnFile, read_json(path), path, "it is damaged; remove it") if path.exists() else None
