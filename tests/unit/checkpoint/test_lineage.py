"""What was made of what, as far as cards on this machine say."""

import pytest

from jevomerge.checkpoint.lineage import Origin, drawing, front_matter, licence_of, parents_of


def write(folder, front):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{front}\n---\n# license: other\n")


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: MIT", "mit"),
        ("license: 'apache-2.0'  # as is", "apache-2.0"),
        ("license:\nlanguage: en", None),
        ("license:\n- mit\n- cc-by-4.0", "mit, cc-by-4.0"),
        ("license: [mit]", "mit"),
        ("license: other\nlicense_name: my-own", "my-own"),
        ("tags: [a]", None),
        ("license: {a: b", None),
    ],
)
def test_front_matter_is_yaml(tmp_path, front, expected):
    write(tmp_path, front)
    assert licence_of(front_matter(tmp_path)) == expected


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache in which a fine-tune, its base and two cards that name each other have been downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cards = {
        "o/tuned": "license: mit\nbase_model: o/base",
        "o/base": "license: apache-2.0",
        "o/egg": "base_model: [o/hen]",
        "o/hen": "base_model: [o/egg]",
    }
    for name, front in cards.items():
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        write(folder / "snapshots" / ("a" * 40), front)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("a" * 40)
    return tmp_path


def test_cards_are_followed_as_far_as_they_are_here(hub):
    found = parents_of({"base_model": ["o/tuned", "not/here", "../folder", 3]})
    base = Origin("o/base", "apache-2.0")
    assert found == (Origin("o/tuned", "mit", (base,)), Origin("not/here", None), Origin("../folder", None))
    assert [origin.name for origin in found[0].all()] == ["o/tuned", "o/base"]
    assert parents_of({"base_model": "o/egg"}) == (Origin("o/egg", None, (Origin("o/hen", None),)),)
    assert parents_of({}) == ()


def test_a_name_cannot_draw_lines_of_its_own():
    drawn = drawing("a\n└─ b", [Origin("c\n├─ d", "mit")], ["e\nf"])
    assert drawn.splitlines() == ["a └─ b", "├─ made of c ├─ d (mit)", "└─ judged by e f"]
