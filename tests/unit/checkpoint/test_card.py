"""A model card shows names as they are and says nothing about this machine."""

import pytest

from jevomerge.checkpoint.card import DRAWING, PICTURES, TEXT, escaped, model_card, usage, verbatim
from jevomerge.checkpoint.lineage import Origin
from jevomerge.checkpoint.scoring import Judge, Score, Scoring


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
    card = model_card(name, "a: 1", [Named(Origin(name, None))], scoring=Scoring({name: {"search": Score(1.0)}}))
    assert card.count(shown) >= 1
    table = [line for line in card.splitlines() if line.startswith("| ") and "not stated" in line]
    assert len(table) == 1
    assert table[0].replace("\\|", "").count("|") == 3


def test_nothing_in_a_sentence_is_markup():
    assert escaped("It beats [x](y)_z_, by 0.5 (95 % interval +0.4 to +0.6).") == (
        r"It beats \[x\](y)\_z\_, by 0.5 (95 % interval +0.4 to +0.6)."
    )


def test_a_recipe_cannot_end_its_block():
    card = model_card("x", "a: |\n  ```\n  # not a title", [Named(Origin("m", "mit"))])
    assert "````yaml\n" in card
    assert card.rstrip().endswith("\n````")


def test_it_says_who_judged_what_is_asked_for_and_how_it_is_opened(tmp_path):
    base, other = Origin("base", None), Origin("other", "mit")
    sources = [Named(Origin("tuned", "cc-by-nc-4.0", (base,))), Named(other), Named(other)]
    card = model_card(
        "ours", "a: 1", sources, scoring=Scoring(judges=[Judge("sums", 10, 20, private=True)]), opened=TEXT
    )
    drawn = [
        "ours", "├─ made of tuned (cc-by-nc-4.0)", "│  └─ made of base (licence not stated)", "├─ made of other (mit)",
        "└─ judged by sums: 10 examples chose, 20 held out, private data",
    ]  # fmt: skip
    assert "\n".join(drawn) in card
    assert "- no commercial use: cc-by-nc-4.0" in card
    assert "- keep the copyright notices and a copy of the licence: mit" in card
    assert card.startswith("---\nlicense: cc-by-nc-4.0\nbase_model:\n- tuned\n- other\n")
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["config.json", "tokenizer_config.json"], TEXT),
        (["config.json", "tokenizer_config.json", "preprocessor_config.json"], PICTURES),
        (["model_index.json"], DRAWING),
        (["config.json"], None),
    ],
)
def test_the_files_of_a_folder_say_how_it_is_opened(tmp_path, files, expected):
    for name in files:
        (tmp_path / name).write_text("{}")
    assert usage(tmp_path) == expected
