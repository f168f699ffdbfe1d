"""A model card shows names as they are and says nothing about this machine."""

import pytest

from jevomerge.checkpoint.card import escaped, model_card, verbatim
from jevomerge.checkpoint.source import licence


class Named:
    """A source of which a card knows the origins."""

    def __init__(self, *origins):
        self._origins = list(origins)

    def origins(self):
        return self._origins


@pytest.mark.parametrize("name", ["SmolLM2-135M", "owner/my_model", "a+b", "Ein Modell", "日本語-7B"])
def test_ordinary_names_stay(name):
    assert verbatim(name) == name


@pytest.mark.parametrize(
    "name",
    ["<b>x</b>", "[x](http://y)", "*x*", "_x_", "a|b", "www.x.com", "http://x", "`x", "a\n\n# b", "x@y.z", "$x$"],
)
def test_nothing_in_a_name_is_markup(name):
    shown = verbatim(name)
    ticks = len(shown) - len(shown.lstrip("`"))
    assert ticks
    assert shown.endswith("`" * ticks)
    assert "`" * ticks not in shown[ticks:-ticks]
    assert "\n" not in shown
    card = model_card(name, "a: 1", [Named((name, None))], {name: {"search": 1.0}})
    assert card.count(shown) >= 1
    table = [line for line in card.splitlines() if line.startswith("| ") and "not stated" in line]
    assert len(table) == 1
    assert table[0].replace("\\|", "").count("|") == 3


def test_nothing_in_a_sentence_is_markup():
    assert escaped("It beats [x](y)_z_, by 0.5 (95 % interval +0.4 to +0.6).") == (
        r"It beats \[x\](y)\_z\_, by 0.5 (95 % interval +0.4 to +0.6)."
    )


def test_a_recipe_cannot_end_its_block():
    card = model_card("x", "a: |\n  ```\n  # not a title", [Named(("m", "mit"))])
    assert "````yaml\n" in card
    assert card.rstrip().endswith("\n````")


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: MIT", "mit"),
        ("license: 'apache-2.0'  # as is", "apache-2.0"),
        ("license:\nlanguage: en", None),
        ("license:\n- mit\n- cc-by-4.0", "mit, cc-by-4.0"),
        ("license: [mit]", "mit"),
        ("tags: [a]", None),
        ("license: {a: b", None),
    ],
)
def test_front_matter_is_yaml(tmp_path, front, expected):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# license: other\n")
    assert licence(tmp_path) == expected
