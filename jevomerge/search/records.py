"""What a run folder's files must hold to be read back; more keys may be there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from jevomerge.checkpoint.files import read_json
from jevomerge.errors import InputError

Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)


class Evaluation(_Record):
    """A line of evaluations.jsonl."""

    generation: Count
    member: Count
    genome: list[float]
    fitness: float | None
    tie_break: float | None
    seconds: float


class Environment(_Record):
    """environment.json: what a run began with."""

    genes: list[str]
    population: Annotated[int, Field(gt=0)]
    sources: dict[str, Any] = {}
    data: dict[str, dict[str, Any]] = {}


class Splits(_Record):
    """What a model scores."""

    search: float
    heldout: float


class Best(Splits):
    """The outcome."""

    genome: dict[str, Any]
    evaluation: Count


class Spent(_Record):
    """Tokens that models were run on."""

    prompt: Count
    answer: Count


class Result(_Record):
    """result.json."""

    sources: dict[str, Splits]
    average: Splits | None
    best: Best
    tokens: dict[str, Spent] = {}
    seconds: float


class Texts(Splits):
    """What a model scores on each held-out example, by task."""

    scores: dict[str, list[float | None]]
    texts: dict[str, Any]


class Heldout(_Record):
    """heldout.json."""

    examples: dict[str, list[dict[str, Any]]]
    sources: dict[str, Texts]
    average: Texts | None
    best: Texts | None
    front: dict[str, Texts] = {}


class TaskAnchors(_Record):
    """Of a task in anchors.json: which examples stand for all of them."""

    examples: list[Count]
    weights: list[float]
    discrimination: list[float] = []
    difficulty: list[float] = []


class AnchorsFile(RootModel[dict[str, TaskAnchors]]):
    """anchors.json, by task."""


def check(kind: type[BaseModel], values: Any, where: str, remedy: str) -> Any:
    """The values as they are, if they are of such a kind.

    Raises:
        InputError: with the first thing that is not.
    """
    try:
        kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: `{key}`: {first['msg'].lower()}; {remedy}") from None
    return values


def read_environment(folder: Path) -> dict[str, Any]:
    """What was written down when a run began."""
    path = folder / "environment.json"
    remedy = "it is damaged; bring it back or start a new run"
    return check(Environment, read_json(path, "the folder of a run"), str(path), remedy)


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """What came out of a run; None: it is not finished."""
    path = folder / "result.json"
    remedy = "it is damaged; remove it and resume the run, which writes it again"
    return check(Result, read_json(path), str(path), remedy) if path.exists() else None


def read_heldout(folder: Path) -> dict[str, Any] | None:
    """What whole models score and write of the held-out examples; None: not known yet, or of an old version."""
    path = folder / "heldout.json"
    remedy = "it is damaged; remove it"
    return check(Heldout, read_json(path), str(path), remedy) if path.exists() else None
