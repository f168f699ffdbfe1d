"""YAML files as typed, frozen values: every problem of a file reported at once, each with its line."""

from __future__ import annotations

import dataclasses
import difflib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from jevomerge.errors import InputError

without_torch = BeforeValidator(lambda name: name.removeprefix("torch.") if isinstance(name, str) else name)
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], without_torch]
Location = tuple[Any, ...]  # of a value in a file: ("models", 0, "parameters")
Given = str | Path | Mapping[str, Any]  # a YAML file, or what one would hold
LARGEST = 1 << 27  # bytes of a text file: several times the largest tokenizers'
ENTRIES = 200_000  # of a YAML file, each as often as aliases repeat it: more than anybody writes


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Part(BaseModel):
    """What others wrote, of which some keys are used: these must be right, whatever else is there."""

    model_config = ConfigDict(strict=True)


Schema = TypeVar("Schema", bound=Strict)
Count = Annotated[int, Field(ge=0)]


@dataclasses.dataclass(frozen=True)
class Origin:
    """The file and the lines that something was read from; without a file, messages just name the key."""

    path: Path | None = None
    lines: Mapping[Location, int] = dataclasses.field(default_factory=dict)
    prefix: Location = ()
    holders: frozenset[str] = frozenset()  # top-level keys whose values define anchors

    def inside(self, *where: Any) -> Origin:
        """The origin of what stands at `where`."""
        return dataclasses.replace(self, prefix=(*self.prefix, *where))

    def at(self, *where: Any) -> str:
        """How a message about `where` begins: "run.yaml:7: `recipe.models.0`: "."""
        full = (*self.prefix, *where)
        name = f"`{'.'.join(map(str, full))}`: " if full else ""
        if self.path is None:
            return name
        known = next((full[:n] for n in range(len(full), -1, -1) if full[:n] in self.lines), ())
        return f"{self.path}:{self.lines.get(known, 1)}: {name}"


class Problems:
    """Everything found wrong, to be reported together."""

    def __init__(self, origin: Origin) -> None:
        """Of what was read from `origin`."""
        self.origin, self.found = origin, list[str]()

    def add(self, where: Location | None, message: str) -> None:
        """One more, unless it has been said; `where` None: of no particular place in the file."""
        if (text := ("" if where is None else self.origin.at(*where)) + message) not in self.found:
            self.found.append(text)

    def refuse(self) -> None:
        """Raise an `InputError` with all of them, if there is one."""
        if self.found:
            raise InputError("\n".join(self.found))


class Notes:
    """What a user should hear but need not change; each once, in order."""

    def __init__(self) -> None:
        """None yet."""
        self._texts: dict[str, None] = {}

    def add(self, text: str) -> None:
        """One more, unless it has been said."""
        self._texts[text] = None

    def update(self, others: Iterable[Notes]) -> None:
        """All of others."""
        for text in (text for notes in others for text in notes):
            self.add(text)

    def __iter__(self) -> Iterator[str]:
        """In the order in which they were added."""
        return iter(self._texts)


def read_text(path: Path) -> str:
    """A text file, in UTF-8 whatever the locale says, or an `InputError` that names it and the remedy."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # of a named pipe the reader would wait for ever
            raise InputError(f"{path} is not a file; name the file itself")
        if status.st_size > LARGEST:
            raise InputError(f"{path} is too large to be what it should ({status.st_size} bytes); is it another file?")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); check the name and its permissions") from None


def load_yaml(path: Path) -> list[tuple[dict[str, Any], Origin]]:
    """The mappings in a YAML file, one per document, and the line of every key and item in them."""
    text = read_text(path)
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        lines = [_lines(n, path) for n in nodes]
        documents, held = list(yaml.safe_load_all(text)), _holders(text)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path} is nested too deeply; write it with fewer levels") from None
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # all but the first of PyYAML's
        raise InputError(f"{path} is not valid YAML: {error}") from None  # constructors: `2024-13-45`, `!!bool x`
    found = [(d, Origin(path, where, holders=held)) for d, where in zip(documents, lines, strict=True) if d is not None]
    if not found or not all(isinstance(d, dict) for d, _ in found):
        raise InputError(f"{path} must be a mapping of keys to values")
    return found


def load_one(path: Path) -> tuple[dict[str, Any], Origin]:
    """The mapping in a YAML file of one document."""
    documents = load_yaml(path)
    if len(documents) > 1:
        line = documents[1][1].lines[()]
        raise InputError(f"{path}:{line}: a second document begins here; only one can be used")
    return documents[0]


def load_given(given: Given) -> tuple[dict[str, Any], Origin, Path]:
    """The one mapping that is given, where it was read from, and the folder that its paths are relative to."""
    if isinstance(given, Mapping):
        return plain(given), Origin(), Path()
    return *load_one(Path(given)), Path(given).parent


def plain(value: Any) -> Any:
    """A copy as YAML would have it: tuples as lists, paths as texts."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _lines(node: Any, path: Path) -> dict[Location, int]:
    lines: dict[Location, int] = {}

    def walk(node: Any, where: Location) -> None:
        if len(lines) > ENTRIES:
            line = node.start_mark.line + 1
            raise InputError(f"{path}:{line}: aliases repeat more than {ENTRIES} entries; write out what is meant")
        lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise InputError(f"{path}:{line}: a key must be a word, not a list or a mapping")
                if (*where, key.value) in lines:
                    raise InputError(f"{path}:{line}: `{key.value}` is given twice")
                lines[(*where, key.value)] = line
                walk(value, (*where, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                walk(value, (*where, i))

    walk(node, ())
    return lines


def _holders(text: str) -> frozenset[str]:
    """The top-level keys of YAML documents under which there are anchors (`&name`)."""
    found, depth, key, in_value = set[str](), 0, "", True
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            continue
        if depth == 1 and isinstance(event, yaml.NodeEvent):
            in_value = not in_value
            key = key if in_value else getattr(event, "value", "")
        if in_value and depth and isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.anchor:
            found.add(key)
        if isinstance(event, yaml.CollectionStartEvent):
            depth, in_value = depth + 1, in_value or depth == 0
    return frozenset(found)


def validate(schema: type[Schema], data: Any, origin: Origin) -> Schema:
    """`data` as `schema`, or one `InputError` that lists every problem with its line.

    A key that is not known is none of the schema's where it only holds anchors for others, such as `x-defaults: &x`.
    """
    if isinstance(data, dict) and not origin.prefix:
        data = {k: v for k, v in data.items() if k in schema.model_fields or k not in origin.holders}
    try:
        return schema.model_validate(data)
    except pydantic.ValidationError as error:
        problems: dict[Location, str] = {}
        for e in error.errors():
            # The longest part of the location that the data has: pydantic adds the names of union members.
            where: Location = ()
            value = data
            for part in e["loc"]:
                known = value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list) else ()
                if part in known:
                    where, value = (*where, part), value[part]
            message = e["msg"].removeprefix("Value error, ")
            if e["type"] == "extra_forbidden":
                close = difflib.get_close_matches(str(e["loc"][-1]), _keys(schema, e["loc"][:-1]), n=1)
                message = f"unknown key `{e['loc'][-1]}`" + (f", did you mean `{close[0]}`?" if close else "")
            elif e["type"] == "missing":
                where, message = (*where, e["loc"][-1]), "is required"
            problems.setdefault(where, origin.at(*where) + message)
        raise InputError("\n".join(problems.values())) from None


def _keys(schema: type[BaseModel], where: Location) -> list[str]:
    """The keys known at a location: those of the innermost model on the way there."""
    found = [schema]
    for part in where:
        if any(c.__name__ == part for c in found):  # which member of a union
            found = [c for c in found if c.__name__ == part]
        elif part in found[0].model_fields:
            found = list(_models(found[0].model_fields[part].annotation)) or found
    return list(found[0].model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def check(kind: type[BaseModel], values: Any, where: str | Path, remedy: str) -> Any:
    """The values as they are, if they are of such a kind.

    Raises:
        InputError: with the first thing that is not, and the remedy.
    """
    try:
        kind.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {f'`{key}`: ' if key else ''}{first['msg'].lower()}; {remedy}") from None
    return values


def anchor(value: Any, folder: Path) -> Any:
    """A path that exists, beside the file or from the working directory, made absolute; hub names stay."""
    if isinstance(value, str):
        for path in (folder / value, Path(value)):
            if os.path.exists(path):  # Path.exists has errors of its own, such as for long names
                return str(path.resolve())
    return value
