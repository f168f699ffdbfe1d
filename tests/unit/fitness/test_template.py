"""Templates over the fields of a row."""

import datetime
import math

import pytest

from jevomerge.fitness.template import Number, as_text, check_template, render

ROW = {
    "q": "{braces}",
    "n": 5,
    "choices": ["a", 2, [True]],
    "meta": {"level": Number("2.50")},
    "a.b": "d",
    "none": None,
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Q: {q}\nA:", "Q: {braces}\nA:"),
        ("{n}{n}", "55"),
        ("{choices[0]} {choices[2]}", "a [true]"),
        ("{choices}", '["a", 2, [true]]'),
        ("{meta} {meta[level]}", '{"level": 2.50} 2.50'),
        ("{{{a.b}}}", "{d}"),
        ("7", "7"),
    ],
)
def test_fields_are_put_in_as_they_are_spelled(template, text):
    assert render(check_template(template), ROW) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{answer}", "field `answer` is missing; there are q, n, choices, meta, a.b, none"),
        ("{none}", "field `none` is null"),
        ("{choices[3]}", r"field `choices\[3\]` is missing"),
        ("{meta[a]}", "is missing"),
        ("{q[0]}", "is missing"),
        ("{n[0]}", "is missing"),
        ("{q.__class__}", "is missing"),
    ],
)
def test_fields_that_are_missing_or_null(template, message):
    with pytest.raises(ValueError, match=message):
        render(check_template(template), ROW)


@pytest.mark.parametrize("template", ["{", "}", "{}", "{q:.2f}", "{q!r}", '{"a": 1}', "{a[}", "{a[]}", "{a]b}"])
def test_what_is_no_template(template):
    with pytest.raises(ValueError, match=r"not a template.*a brace that is text is written twice"):
        check_template(template)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        -math.inf,
        [None],
        {"a": [math.nan]},
        b"x",
        datetime.datetime(2024, 5, 1),
        "\ud800",
        ["\udc00"],
    ],
)
def test_what_has_no_text(value):
    with pytest.raises(ValueError, match=r"is|has"):
        as_text(value)
