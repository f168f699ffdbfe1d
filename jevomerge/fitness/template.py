"""From the fields of a row to a prompt or an answer: templates such as "Q: {question}\\nA:".

A field is put in as its data file spells it: texts as they are, whatever else as JSON.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from string import Formatter
from typing import Any

FIELD = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")  # question, choices[0], meta[level]


class Number(float):
    """A number of a data file, whose text is its spelling there: 2.50 stays 2.50."""

    spelled: str

    def __new__(cls, spelled: str) -> Number:  # noqa: D102
        self = super().__new__(cls, spelled)
        self.spelled = spelled
        return self

    def __str__(self) -> str:
        return self.spelled


def check_template(template: str) -> str:
    """The template itself.

    Raises:
        ValueError: for braces that name no field.
    """
    try:
        for _, field, form, conversion in Formatter().parse(template):
            if field is not None and (form or conversion or not FIELD.fullmatch(field)):
                raise ValueError(f"{{{field}...}} is no field such as {{question}}, {{choices[0]}} or {{meta[level]}}")
    except ValueError as error:
        raise ValueError(f"not a template: {error}; a brace that is text is written twice") from None
    return template


def render(template: str, row: Mapping[str, Any]) -> str:
    """A template with the fields of a row in it.

    Raises:
        ValueError: for a field that the row does not have, or that has no text.
    """
    text = ""
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        if field is not None:
            try:
                text += as_text(_find(row, field))
            except ValueError as error:
                raise ValueError(f"field `{field}` {error}") from None
    return text


def value_of(template: str, row: Mapping[str, Any]) -> Any:
    """The value of the field that a template is, such as "{image}"; of any other template the text.

    Raises:
        ValueError: as `render`.
    """
    parts = list(Formatter().parse(template))
    if len(parts) == 1 and not parts[0][0] and parts[0][1] is not None:
        try:
            return _find(row, parts[0][1])
        except ValueError as error:
            raise ValueError(f"field `{parts[0][1]}` {error}") from None
    return render(template, row)


def as_text(value: Any) -> str:
    """A value of a row as the text that it has in JSON; a text without its quotes.

    Raises:
        ValueError: for null, NaN, and what JSON has no form for.
    """
    text = value if isinstance(value, str) else str(value) if _is_date(value) else _json(value)
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("has half of a surrogate pair, which is no text")
    return text


def _find(row: Mapping[str, Any], field: str) -> Any:
    found = FIELD.fullmatch(field)
    assert found is not None
    value: Any = row
    for key in (found[1], *re.findall(r"[^\[\]]+", found[2])):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (LookupError, TypeError, ValueError):
            raise ValueError(f"is missing; there are {', '.join(row)}") from None
    return value


def _json(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        if not (spelled := str(value))[-1].isdigit():
            raise ValueError(f"is {spelled}, which is no number in JSON")
        return spelled
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_json(key)}: {_json(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, Decimal):
        return format(value, "f")
    if _is_date(value):
        return f'"{value}"'
    if value is None:
        raise ValueError("is null")
    raise ValueError(f"is a {type(value).__name__}, which can be written in several ways; make it a text")


def _is_date(value: Any) -> bool:
    return isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
