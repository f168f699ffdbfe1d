"""The YAML schema of tasks, checked before data or a weight is read."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_serializer,
    field_validator,
    model_validator,
)

from jevomerge.fitness.people import PEOPLE, PeopleScore, of_people
from jevomerge.fitness.template import check_template
from jevomerge.schema import Strict


def _window(value: tuple[int, int]) -> tuple[int, int]:
    start, stop = value
    if not 0 <= start < stop:
        raise ValueError(f"[{start}, {stop}] are no rows: it is [start, stop), and the first row is 0")
    return value


Window = Annotated[tuple[int, int], AfterValidator(_window)]  # [start, stop)
Template = Annotated[str, AfterValidator(check_template)]


class DataSource(Strict):
    """Where examples come from: a local JSONL, JSON, Parquet, TSV or CSV file, or a dataset on the hub."""

    path: str  # of a file, relative to the task's, or owner/dataset
    columns: tuple[str, ...] | None = None  # of a TSV or CSV file whose first line is not their names
    name: str | None = None  # of a hub dataset's configuration
    split: str = "train"  # of a hub dataset
    rows: Window | None = None  # only these rows
    limit: int | None = Field(None, gt=0)  # at most so many of them


Data = Annotated[DataSource, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)]


# --- a function of the user's -------------------------------------------------------------------------------

GROUP = "jevomerge.fitness"  # of entry points
SCORES = ("likelihood", "match", "generation")  # ours
DATA = ("search", "heldout", "prompt", "answer")


class OwnScore(Strict):
    """A function of the user's that judges; `jevomerge.fitness.own` says how it is called."""

    function: str | Callable[..., Any]  # "module:function", or the name of an entry point of `jevomerge.fitness`
    of: Literal["texts", "params", "folder", "pictures"] = "texts"  # what it is given
    bounds: tuple[float, float] | None = None  # the lowest and the highest score, if there are such: racing needs them
    import_from: str | None = None  # a folder where the module may be, too: that of the file which names the function

    answered: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """What the function is called."""
        if isinstance(self.function, str):
            return self.function
        kind = type(self.function)
        parts = (getattr(self.function, key, getattr(kind, key)) for key in ("__module__", "__qualname__"))
        return ":".join(part for part in parts if part)  # what `exec` defined has no module

    def __str__(self) -> str:
        return self.name

    @property
    def meaning(self) -> str:
        """What the score of an example is, in words."""
        return f"what {self} says of {'the generated text' if self.of == 'texts' else 'the model and a batch'}"

    @field_serializer("function", when_used="json")
    def _named(self, _: Any) -> str:
        return self.name

    @field_validator("function")
    @classmethod
    def _known(cls, value: Any) -> Any:
        offered = [entry.name for entry in entry_points(group=GROUP)]
        if not isinstance(value, str) or ":" in value or value in offered:
            return value
        known = [*SCORES, PEOPLE, *offered]
        close = difflib.get_close_matches(value, known, n=1)
        hint = f", did you mean `{close[0]}`?" if close else "; a function of yours is `module:function`"
        raise ValueError(f"`{value}` is none of {', '.join(known)}{hint}")

    @field_validator("bounds")
    @classmethod
    def _apart(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"the lowest score, {value[0]:g}, must be less than the highest, {value[1]:g}")
        return value


def own_score(value: Any, ours: Sequence[str] = SCORES) -> Any:
    """`score: module:function` and `score: people` in full; one of ours stays."""
    if value == PEOPLE:
        return {PEOPLE: {}}
    return {"function": value} if isinstance(value, str) and value not in ours else value


def judge_of(score: Any) -> str:
    """The tag of a `score`: one of ours, a function, people."""
    return "given" if isinstance(score, str) else "PeopleScore" if of_people(score) else "OwnScore"


Score = Annotated[
    Annotated[Literal["likelihood", "match", "generation"], Tag("given")]
    | Annotated[OwnScore, Tag("OwnScore")]
    | Annotated[PeopleScore, Tag("PeopleScore")],
    Discriminator(judge_of),
]


def private_note(task: Any) -> tuple[str, ...]:
    """What is said of a task that is private."""
    return (f"{task.name} is private: it judges, and nothing is kept of what it asks and gets",) if task.private else ()


# --- prompts and answers ------------------------------------------------------------------------------------

Extractor = Literal["exact", "last_number", "sakana"]


class Decode(Strict):
    """How a text is decoded: as transformers' `generate` does it with `num_beams` and `repetition_penalty`.

    In beam search stop strings cut the text that comes out, and do not end a beam.
    """

    beams: int = Field(default=1, gt=0)  # 1: greedily
    repetition_penalty: float = Field(default=1.0, gt=0)  # for tokens that prompt or text have already; 1: none


class Task(Strict):
    """Something a good model does: examples, a prompt, and how an output is judged.

    The score of an example is
      `likelihood`: mean log-probability per token of the reference answer;
      `match`: 1 if the reference answer is what greedy decoding would write, from one forward pass;
      `generation`: 1 if the answer extracted from generated text (see `decode`) equals the reference (or how like it
        that is, see `compare`) and, if there is a `language`, the text is in it;
    or what a function of the user's says of the generated text, or of the model and a batch of the examples; or what
    people say, see PeopleScore.

    Where `prompt` and `answer` are a field that is a chat, as in the files of LLaVA ([{"from", "value"}]) and of
    LLaMA-Factory ([{"role", "content"}]), the assistant's last turn is the answer, and what comes before it goes
    through the tokenizer's chat template.
    """

    name: str  # in tables and figures
    search: Data  # what evolution sees
    heldout: Data  # what it never sees; scored once, at the end
    prompt: Template  # over the example's fields: "Q: {question}\nA:"
    image: Template | tuple[Template, ...] | None = None  # pictures: paths, lists of them, bytes; `<image>` in `prompt`
    answer: Template  # likewise; people need none
    score: Score = "likelihood"  # as above; or `module:function`, or `people`
    extract: Extractor | None = None  # which part of a generated text is the answer
    pattern: str | None = None  # or a regular expression whose first group, at its last match, is the answer
    compare: Literal["equal", "rouge_l_ja"] = "equal"  # rouge_l_ja: F-measure of ROUGE-L over MeCab's words
    language: str | None = None  # such as ja: what fastText's lid.176 must say of the text with more than 1/2
    also: tuple[Extractor, ...] = ()  # by what else the held-out texts are judged and reported; never the fitness
    decode: Decode = Decode()  # how texts are generated, if not greedily
    max_new_tokens: int = Field(256, gt=0)  # of generated text
    expected_new_tokens: int | None = Field(None, gt=0)  # that texts have, for plans
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # generated text ends before the first of these
    weight: float = Field(1.0, gt=0)  # in the mean over tasks
    private: bool = False  # of its texts, prompts, answers and outputs, none is written or shown anywhere: scores alone

    harness: ClassVar[None] = None
    apart: ClassVar[bool] = True  # whether held-out documents are others than those of the search
    searchable: ClassVar[bool] = True  # whether it can be a fitness

    @property
    def kind(self) -> str:
        """Of which it is one."""
        return "tasks of our own" if self.answered else "tasks that people judge"

    @property
    def answered(self) -> bool:
        """Whether each document is one example that has a reference answer."""
        return isinstance(self.score, str) or self.score.answered

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing and needs no change."""
        return private_note(self)

    @property
    def differentiable(self) -> bool:
        """Whether its score has a gradient in the parameters."""
        return not isinstance(self.score, str) and self.score.of == "params"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest score of an example; None: not known."""
        if not isinstance(self.score, str):
            return self.score.bounds
        return (-math.inf, 0.0) if self.score == "likelihood" else (0.0, 1.0)

    @property
    def criterion(self) -> str:
        """By what a text is judged, in a word."""
        return self.extract or "pattern"

    @property
    def meaning(self) -> str:
        """What the score of an example is, in words."""
        if not isinstance(self.score, str):
            return self.score.meaning
        if self.score == "likelihood":
            return "the log-probability per token of the reference answer"
        if self.score == "match":
            return "1 if greedy decoding writes the reference answer, else 0"
        if self.compare != "equal":
            otherwise = f", 0 if not in {self.language}" if self.language else ""
            return f"ROUGE-L of the generated text with the reference{otherwise}"
        also = f" and the text is in {self.language}" if self.language else ""
        return f"1 if the answer in the generated text is the reference's{also}, else 0"

    @property
    def right_or_wrong(self) -> bool | None:
        """Whether a score says that an answer is right or wrong; None: only its values tell."""
        if not isinstance(self.score, str):
            return None
        return self.score != "likelihood" and self.compare == "equal"

    @field_validator("score", mode="before")
    @classmethod
    def _own(cls, value: Any) -> Any:
        return own_score(value)

    @field_validator("score")
    @classmethod
    def _writes(cls, value: Any) -> Any:
        if isinstance(value, OwnScore) and value.of == "pictures":
            raise ValueError("`of: pictures` judges what is drawn for `prompts`, and a task of `prompt` is about texts")
        return value

    @model_validator(mode="before")
    @classmethod
    def _needs_no_answer(cls, data: Any) -> Any:
        return {"answer": "", **data} if isinstance(data, dict) and of_people(data.get("score")) else data

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if value is not None and re.search(r"(?<!\\)\{[a-z]", value):
            raise ValueError("write \\{ for a brace before a letter: `regex`, which bounds the time, has a use for it")
        return value

    @model_validator(mode="after")
    def _decodes(self) -> Task:
        texts = self.score == "generation" if isinstance(self.score, str) else self.score.of == "texts"
        if self.decode != Decode() and not texts:
            raise ValueError(f"`decode` is about generated text; score: {self.score} generates none")
        return self

    @model_validator(mode="after")
    def _shown(self) -> Task:
        if self.image and isinstance(self.score, PeopleScore):
            raise ValueError("`image`: the page where people judge shows no pictures yet; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _extractor(self) -> Task:
        if not isinstance(self.score, str):
            if self.extract or self.pattern or self.language or self.also or self.compare != "equal":
                raise ValueError(
                    f"`extract`, `pattern`, `language`, `also` and `compare` are for score: generation; {self.score} "
                    "judges by itself"
                )
            return self
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
    rows: Window | None = None  # only these documents
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
    harness: Harness  # which task, and how it is asked
    search: HarnessRows | None = None  # what evolution sees
    heldout: HarnessRows | None = None  # what it never sees
    weight: float = Field(1.0, gt=0)  # in the mean over tasks

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("harness"), dict):
            return data | {"name": data["harness"].get("task", "")}
        return data

    @property
    def score(self) -> str:
        """How documents are judged, in a word."""
        return self.harness.metric or "harness"

    kind: ClassVar[str] = "tasks of lm-evaluation-harness"
    answered: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    apart: ClassVar[bool] = True
    private: ClassVar[bool] = False
    notes: ClassVar[tuple[str, ...]] = ()
    bounds: ClassVar[None] = None  # of a metric nobody knows
    criterion = score
    right_or_wrong: ClassVar[None] = None

    @property
    def searchable(self) -> bool:
        """Whether it says which documents a search is on."""
        return self.search is not None

    @property
    def meaning(self) -> str:
        """What the score of a document is, in words."""
        metric = self.harness.metric or "the task's first metric"
        negated = {True: ", negated", False: "", "auto": ", negated where lower is better"}
        return f"{metric} in lm-evaluation-harness{negated[self.harness.lower_is_better]}"


# --- whole models -------------------------------------------------------------------------------------------


class FunctionTask(Strict):
    """A function of the user's that judges whole models, without data: of their parameters, or of their folders.

    What is called held-out is then the same function.
    """

    name: str  # in tables and figures
    score: OwnScore  # with `of: params` or `of: folder`
    weight: float = Field(1.0, gt=0)  # in the mean over tasks

    kind: ClassVar[str] = "functions of whole models"
    harness: ClassVar[None] = None
    answered: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    private: ClassVar[bool] = False
    searchable: ClassVar[bool] = True
    right_or_wrong: ClassVar[None] = None

    @property
    def differentiable(self) -> bool:
        """Whether its score has a gradient in the parameters."""
        return self.score.of == "params"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest score; None: not known."""
        return self.score.bounds

    @property
    def criterion(self) -> str:
        """Who judges."""
        return self.score.name

    @property
    def meaning(self) -> str:
        """What a score is, in words."""
        return f"what {self.score} says of the {'parameters' if self.score.of == 'params' else 'folder'}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing and needs no change."""
        same = f"{self.name} has no held-out data: what is called held-out is the same score again"
        slow = f"{self.name}: each candidate is written as a folder for {self.score}, which is the slow way"
        return (same, slow) if self.score.of == "folder" else (same,)

    @model_validator(mode="before")
    @classmethod
    def _no_data(cls, data: Any) -> Any:
        if given := [key for key in DATA if isinstance(data, dict) and data.get(key) is not None]:
            raise ValueError(f"a function of a folder is given no data: leave out {', '.join(given)}")
        return data
