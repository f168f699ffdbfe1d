"""The YAML schema of tasks for which image pipelines draw pictures, checked before data or a weight is read."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from jevomerge.fitness.people import PEOPLE, PeopleScore, of_people
from jevomerge.fitness.schema import Data, OwnScore, Template, judge_of, own_score, private_note
from jevomerge.models.diffusion.schema import Rule
from jevomerge.schema import Count, Strict

SCORERS = ("clip", "aesthetic", "pickscore", "hpsv2")
PictureScore = Annotated[
    Annotated[Literal["clip", "aesthetic", "pickscore", "hpsv2"], Tag("given")]
    | Annotated[OwnScore, Tag("OwnScore")]
    | Annotated[PeopleScore, Tag("PeopleScore")],
    Discriminator(judge_of),
]
Side = Annotated[int, Field(gt=0)]


class PictureTask(Strict):
    """Pictures that a good model draws of prompts; its noise depends on prompt and seed alone, whoever draws.

    A document is a prompt, and its score the mean over its pictures, one for each seed. The held-out prompts are drawn
    from as many other seeds, those after the highest of the search. A picture that is not finite, or all of one colour,
    gets the lowest score, or none where no lowest is known; a candidate without a score is the worst. Where people
    judge, a document is one picture, and a question about those of two candidates, from the same noise.
    """

    name: str  # in tables and figures
    search: Data  # prompts that evolution sees
    heldout: Data  # prompts that it never sees; drawn once, at the end
    prompts: Template  # over the fields of a row: "{ja}"
    judged_by: Template | None = None  # what the judge is told of the picture instead, such as a translation: "{en}"
    negative: str | None = None  # what no picture shall be of; it takes guidance
    steps: int = Field(gt=0)  # of the scheduler
    guidance: float = Field(ge=0)  # above 1 a step takes two passes; distilled models take 0
    size: Side | tuple[Side, Side] | None = None  # in pixels, or [height, width]; None: what the U-Net was trained on
    seeds: int | tuple[Count, ...] = 1  # of each prompt's pictures; a number: so many, from 0 on
    # By which rule noise becomes a picture, with the numbers of the pipeline's scheduler; None: by that one's own.
    # Lightning's is Euler's from the very end of the noise, for models distilled to few steps.
    scheduler: Rule | None = None
    # or `module:f`: f(pictures, rows) gives a score for each, see `jevomerge.fitness.drawn`; or `people`
    score: PictureScore
    weights: str | None = None  # of a scorer: a folder, a file or a hub name; None: those that are published
    clip: str | None = None  # what weights in one file lack: aesthetic's CLIP, others' tokenizer
    weight: float = Field(1.0, gt=0)  # in the mean over tasks
    private: bool = False  # of its prompts and pictures none is written or shown anywhere: scores alone

    kind: ClassVar[str] = "picture tasks"
    harness: ClassVar[None] = None
    answered: ClassVar[bool] = False
    apart: ClassVar[bool] = True
    searchable: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    right_or_wrong: ClassVar[None] = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing and needs no change."""
        return private_note(self)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest score of a picture, if a function says so; None: not known."""
        return None if isinstance(self.score, str) else self.score.bounds

    @property
    def criterion(self) -> str:
        """Who judges."""
        return str(self.score)

    @property
    def meaning(self) -> str:
        """What a score is, in words."""
        if isinstance(self.score, PeopleScore):
            return self.score.meaning
        return f"what {self.score} says of the pictures drawn of a prompt"

    @property
    def guided(self) -> bool:
        """Whether each step looks also at what the picture shall not be; as in diffusers."""
        return self.guidance > 1

    def seeds_of(self, split: str) -> tuple[int, ...]:
        """Those of the pictures of a prompt."""
        seeds = tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds
        behind = max(seeds) + 1
        return seeds if split == "search" else tuple(range(behind, behind + len(seeds)))

    @field_validator("seeds")
    @classmethod
    def _several(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if value == () or (isinstance(value, int) and value < 1):
            raise ValueError("a prompt needs a picture: give one seed or more, or how many there are")
        if not isinstance(value, int) and len(set(value)) < len(value):
            raise ValueError("give each seed once: the same noise makes the same picture")
        if max([0] if isinstance(value, int) else value) >= 2**32:
            raise ValueError("a seed is less than 2^32")
        return value

    @field_validator("score", mode="before")
    @classmethod
    def _own(cls, value: Any) -> Any:
        value = own_score(value, SCORERS)
        if not isinstance(value, dict) or of_people(value):
            return value
        if close := difflib.get_close_matches(str(value.get("function")), known := (*SCORERS, PEOPLE), n=1):
            raise ValueError(f"`{value['function']}` is none of {', '.join(known)}; did you mean `{close[0]}`?")
        return {"of": "pictures", **value}

    @field_validator("score")
    @classmethod
    def _of_pictures(cls, value: Any) -> Any:
        if isinstance(value, OwnScore) and value.of != "pictures":
            raise ValueError(f"`of: {value.of}` judges no pictures, which `prompts` are drawn for; leave `of` out")
        return value

    @model_validator(mode="after")
    def _judges(self) -> PictureTask:
        if not isinstance(self.score, str) and (given := [k for k in ("weights", "clip") if getattr(self, k)]):
            raise ValueError(f"`{given[0]}` is of a scorer, one of {', '.join(SCORERS)}; {self.score} needs none")
        return self

    @model_validator(mode="after")
    def _leads_away(self) -> PictureTask:
        if self.negative is not None and not self.guided:
            raise ValueError(f"`negative` takes `guidance` above 1, not {self.guidance:g}, at which nobody looks at it")
        return self
