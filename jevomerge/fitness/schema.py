"""The YAML schema of tasks, checked before data or a weight is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from jevomerge.errors import InputError
from jevomerge.strict import Strict, anchor, load_one, validate


class DataSource(Strict):
    """Where examples come from: a local JSONL, JSON, Parquet, TSV or CSV file, or a dataset on the hub."""

    path: str
    columns: tuple[str, ...] | None = None  # of a TSV or CSV file whose first line is not their names
    name: str | None = None  # of a hub dataset's configuration
    split: str = "train"  # of a hub dataset
    rows: tuple[int, int] | None = None  # [start, stop): only these rows
    limit: int | None = Field(None, gt=0)  # at most so many of them


Extractor = Literal["exact", "last_number", "sakana"]


class Task(Strict):
    """Something a good model does: examples, a prompt, and how an output is judged.

    The score of an example is
      `likelihood`: mean log-probability per token of the reference answer;
      `match`: 1 if the reference answer is what greedy decoding would write, from one forward pass;
      `generation`: 1 if the answer extracted from greedily generated text equals the reference (or how like it
        that is, see `compare`) and, if there is a `language`, the text is in it.
    """

    name: str
    search: DataSource  # what evolution sees
    heldout: DataSource  # what it never sees; scored once, at the end
    prompt: str  # a template over the example's fields: "Q: {question}\nA:"
    answer: str  # likewise
    score: Literal["likelihood", "match", "generation"] = "likelihood"
    extract: Extractor | None = None
    pattern: str | None = None  # or a regular expression whose first group, at its last match, is the answer
    compare: Literal["equal", "rouge_l_ja"] = "equal"  # rouge_l_ja: F-measure of ROUGE-L over MeCab's words
    language: str | None = None  # such as ja: what fastText's lid.176 must say of the text with more than 1/2
    also: tuple[Extractor, ...] = ()  # by what else the held-out texts are judged and reported; never the fitness
    max_new_tokens: int = Field(256, gt=0)
    stop: tuple[str, ...] = ()  # generated text ends before the first of these
    weight: float = Field(1.0, gt=0)

    @field_validator("search", "heldout", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _extractor(self) -> Task:
        if self.score == "generation" and (self.extract is None) == (self.pattern is None):
            raise ValueError("score: generation needs either `extract` (exact, last_number, sakana) or `pattern`")
        if self.score != "generation" and (self.extract or self.pattern):
            raise ValueError(f"`extract` and `pattern` judge generated text; score: {self.score} generates none")
        if self.score != "generation" and (self.language or self.also or self.compare != "equal"):
            raise ValueError(
                f"`language`, `also` and `compare` judge generated text; score: {self.score} generates none"
            )
        if self.compare != "equal" and (self.extract in ("last_number", "sakana") or self.also):
            raise ValueError(f"compare: {self.compare} compares texts: it needs extract: exact or a pattern, no `also`")
        if len({self.extract, *self.also}) <= len(self.also):
            raise ValueError("`also` names other extractors than `extract`, each once")
        return self


class HarnessRows(Strict):
    """Documents of a task of lm-evaluation-harness."""

    split: str | None = None  # of its data set; None: the one that the harness scores
    rows: tuple[int, int] | None = None  # [start, stop): only these documents
    limit: int | None = Field(None, gt=0)  # at most so many of them


class Harness(Strict):
    """A task of lm-evaluation-harness (`pip install 'jevomerge[harness]'`), and which of its metrics is the fitness."""

    task: str  # its name; in `evaluate` also that of a group
    include_path: str | None = None  # a folder of task files besides those that the harness ships
    num_fewshot: int | None = Field(None, ge=0)  # None: as the task says
    metric: str | None = None  # whose mean over documents is the score; None: the task's first
    filter: str | None = None  # that texts go through before; None: the task's first
    lower_is_better: bool | Literal["auto"] = "auto"  # the metric is then negated; auto: as the task says
    chat_template: bool = False  # whether prompts are chats, by the tokenizer's template
    system: str | None = None  # message in front of them


class HarnessTask(Strict):
    """A task of lm-evaluation-harness that judges; its documents are scored as the harness scores them.

    To be a fitness it needs `search` and `heldout`; without, it is for `jevomerge evaluate` alone, and a run that names
    a file of several tasks goes without it.
    """

    name: str = ""  # "": the harness's name for it
    harness: Harness
    search: HarnessRows | None = None
    heldout: HarnessRows | None = None
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("harness"), dict):
            return data | {"name": data["harness"].get("task", "")}
        return data

    @property
    def score(self) -> str:
        """How documents are judged, in words."""
        return self.harness.metric or "harness"


def _kind(task: Any) -> str:
    given = "harness" in task if isinstance(task, dict) else isinstance(task, HarnessTask)
    return "HarnessTask" if given else "Task"


AnyTask = Annotated[Annotated[Task, Tag("Task")] | Annotated[HarnessTask, Tag("HarnessTask")], Discriminator(_kind)]


class Suite(Strict):
    """Several tasks in one file."""

    name: str
    tasks: tuple[AnyTask, ...] = Field(min_length=1)


# --- reading ---------------------------------------------------------------------------------------------------


def read_tasks(path: str | Path) -> tuple[Task | HarnessTask, ...]:
    """The YAML of a task or of a suite of them; data paths are relative to it."""
    path = Path(path)
    data, origin = load_one(path)
    if "tasks" in data:
        for task in data["tasks"] if isinstance(data["tasks"], list) else ():
            _anchor_task(task, path.parent)
        return validate(Suite, data, origin).tasks
    _anchor_task(data, path.parent)
    schema: type[Task] | type[HarnessTask] = HarnessTask if "harness" in data else Task
    return (validate(schema, data, origin),)


def read_task(path: str | Path) -> Task:
    """The YAML of one task of our own.

    Raises:
        InputError: also for a task of the harness, or several.
    """
    tasks = read_tasks(path)
    if len(tasks) > 1 or not isinstance(tasks[0], Task):
        raise InputError(f"{path} is not one task with a prompt and an answer")
    return tasks[0]


def tasks_of(task: Any, folder: Path) -> list[Any]:
    """An item of a run's `tasks`: the tasks of a file, or one given here."""
    if isinstance(task, str):
        tasks = read_tasks(folder / task)
        # Of a suite, those that can be a fitness.
        return [t.model_dump() for t in tasks if len(tasks) == 1 or t.search is not None]
    _anchor_task(task, folder)
    return [task]


def _anchor_task(data: Any, folder: Path) -> None:
    if isinstance(data, dict) and isinstance(harness := data.get("harness"), dict):
        if "include_path" in harness:
            harness["include_path"] = anchor(harness["include_path"], folder)
        return
    for key in ("search", "heldout") if isinstance(data, dict) else ():
        if isinstance(data.get(key), str):
            data[key] = anchor(data[key], folder)
        elif isinstance(data.get(key), dict):
            data[key]["path"] = anchor(data[key].get("path"), folder)
