"""configs/README.md, from the schema: `python -m tests.keys` prints it.

What a key is for stands beside it in the code, as a comment; so there is one place where it is said.
"""

import ast
import inspect
import itertools
import json
import re
import textwrap
from typing import NamedTuple

from jevomerge.config import RunConfig, Stage, StagedConfig
from jevomerge.devices.schema import MeshShape
from jevomerge.fitness.kept import KeepFeatures
from jevomerge.fitness.people import People, PeopleScore
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.fitness.schema import (
    DataSource,
    Decode,
    FunctionTask,
    Harness,
    HarnessRows,
    HarnessTask,
    OwnScore,
    Task,
)
from jevomerge.fitness.tasks import Suite
from jevomerge.genome.schema import BY, Gene, PathSearch, PathSlice
from jevomerge.methods.schema import SEMANTICS
from jevomerge.models.diffusion.schema import MERGEABLE
from jevomerge.recipe.schema import Conditional, Extract, Recipe, RecipeModel, RecipeModule, RecipeSlice
from jevomerge.schema import Strict
from jevomerge.strategies.schema import Anchors, Refine, Search
from jevomerge.tokenizers.schema import ModelToken, TokenizerSpec, TokenSource, ZeroToken

FILES: dict[str, tuple[type[Strict], ...]] = {
    "A run": (RunConfig, Gene, PathSearch, PathSlice, Search, Anchors, Refine, MeshShape, KeepFeatures, Extract),
    "A run of several stages": (StagedConfig, Stage),
    "A task": (
        *(Task, PictureTask, DataSource, Decode, OwnScore, PeopleScore, People),
        *(FunctionTask, HarnessTask, Harness, HarnessRows, Suite),
    ),
    "A recipe": (
        *(Recipe, RecipeModel, RecipeSlice, RecipeModule, Conditional),
        *(TokenizerSpec, TokenSource, ModelToken, ZeroToken),
    ),
}


class Key(NamedTuple):
    """One that a user may write."""

    name: str
    values: str  # the annotation, as in the code
    meaning: str


def keys(schema: type[Strict]) -> dict[str, Key]:
    """Those of a class and of what it inherits."""
    return {key.name: key for part in reversed(schema.__mro__) if issubclass(part, Strict) for key in _own(part)}


def _own(schema: type[Strict]) -> list[Key]:
    source = textwrap.dedent(inspect.getsource(schema))
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = []
    for item in body.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            last = item.end_lineno or item.lineno
            beside = re.sub(r"type: ignore\[[\w-]+\]( *#)?", "", lines[last - 1].partition("  #")[2]).strip()
            above, below = _comments(lines[: item.lineno - 1][::-1])[::-1], _comments(lines[last:])
            goes_on = [line for line in below if not line[:1].isupper()]  # what begins anew is of the next
            said = [beside, *goes_on] if beside else above or goes_on
            found.append(Key(item.target.id, ast.unparse(item.annotation), " ".join(said).strip()))
    return found


def _comments(lines: list[str]) -> list[str]:
    """The comments that come before anything else."""
    comments = itertools.takewhile(lambda line: line.startswith("#"), map(str.strip, lines))
    return [line.lstrip("# ") for line in comments]


# --- as Markdown --------------------------------------------------------------------------------------------

SCHEMAS = {schema.__name__: schema for schemas in FILES.values() for schema in schemas}
WORDS = {
    **{"str": "text", "int": "whole number", "float": "number", "bool": "true or false"},
    **{"AnyTask": "file or Task", "Dtype": "`float32`, `bfloat16`, `float16`", "RecipeDtype": "Dtype or `float64`"},
    **{
        "Name": "text",
        "Reference": "folder or hub name",
        "Data": "file or DataSource",
        "Template": "text with {fields}",
        "Window": "[first, one past the last]",
    },
    **{
        "Extractor": "`exact`, `last_number`, `sakana`",
        "Callable[..., Any]": "function",
        "PictureScore": "`clip`, `aesthetic`, `pickscore`, `hpsv2` or OwnScore",
        "Rule": "`euler`, `lightning`, `lcm`",
        "Side": "whole number",
        "Count": "whole number",
        "Score": "`likelihood`, `match`, `generation`, OwnScore or PeopleScore",
    },
    **{"Value": "number, or list of numbers over depth", "Parameters": "{name: Value, or list of Conditional}"},
}


def page() -> str:
    """All of it."""
    parts = [INTRODUCTION]
    for title, schemas in FILES.items():
        parts.append(f"## {title}")
        for schema in schemas:
            shown = {name: key for name, key in keys(schema).items() if name in schema.model_fields}
            parts.append(f"### {schema.__name__}\n\n{inspect.cleandoc(schema.__doc__ or '')}")
            parts.append(
                "\n".join(["| key | value | default | |", "|---|---|---|---|", *map(_row(schema), shown.values())])
            )
    return "\n\n".join(parts) + "\n"


def _row(schema: type[Strict]):
    def row(key: Key) -> str:
        field = schema.model_fields[key.name]
        default = "required" if field.is_required() else _yaml(field.get_default(call_default_factory=True))
        cells = [f"`{key.name}`", _values(key.values), default, key.meaning.replace("None: ", "left out: ")]
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return row


def _yaml(value: object) -> str:
    """A default as one would write it; none, and what is all defaults: nothing."""
    return "" if value is None or value in ((), {}, "") or isinstance(value, Strict) else f"`{json.dumps(value)}`"


def _values(annotation: str) -> str:
    """What may be written, in words."""
    text = annotation.removesuffix(" | None")
    text = re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", text)
    for name, words in LISTS.items():
        text = text.replace(f"Literal[{name}]", f"Literal[{', '.join(words)}]")
    text = re.sub(r"Literal\[([^]]*)\]", lambda m: ", ".join(f"`{w.strip(QUOTES)}`" for w in m[1].split(", ")), text)
    text = re.sub(r"tuple\[(.*), \.\.\.\]", r"list of \1", text)
    text = re.sub(r"tuple\[(\w+), \1\]", r"[\1, \1]", text)
    text = re.sub(r"dict\[str, (\w+)\]", r"{name: \1}", text)
    for _ in range(2):  # words are made of words
        text = re.sub(r"(?<![\w`])(" + "|".join(map(re.escape, WORDS)) + r")(?![\w`])", lambda m: WORDS[m[1]], text)
    text = re.sub(r"\b(" + "|".join(SCHEMAS) + r")\b", lambda m: f"[{m[1]}](#{m[1].lower()})", text)
    return text.replace(" | ", " or ")


LISTS = {"SEMANTICS": SEMANTICS, "MERGEABLE": MERGEABLE, "BY": BY}  # named in the code
QUOTES = "\"'"
INTRODUCTION = """# Every key

Configs, tasks and recipes are YAML; a key that is not here is refused, with its line. This page is written from the
code by `python -m tests.keys`; what a run needs at least is in the [README](../README.md#your-own-models)."""

if __name__ == "__main__":
    print(page(), end="")
