"""Private tasks: whatever a run leaves or says, none of their texts is in it."""

import json

import pytest
import yaml

from jevomerge.cli import main
from jevomerge.config import read_config
from jevomerge.errors import InputError

ROWS = [
    {"begin": f"Once upon a time, there was a {who} called {name}. One", "end": f" day {name} went to the {place}."}
    for who, name, place in (
        ("girl", "Lily", "park"), ("boy", "Timmy", "shop"), ("dog", "Spot", "beach"), ("cat", "Tom", "garden"),
        ("bird", "Sue", "forest"), ("bear", "Ben", "river"),
    )
]  # fmt: skip
GENERATION = {"score": "generation", "pattern": "(?s)(.*)", "max_new_tokens": 12}


@pytest.fixture
def run(stories260k, tmp_path, capfd):
    """A run whose only task is private or not: its folder, and all that was said."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    data = {split: {"path": str(tmp_path / "rows.jsonl"), "rows": rows} for split, rows in
            {"search": [0, 3], "heldout": [3, 6]}.items()}  # fmt: skip
    models = [{"model": str(stories260k)}]
    base = {
        "recipe": {"merge_method": "passthrough", "models": models}, "genome": {"scale": [0.5, 1]},
        "search": {"strategy": "random", "evaluations": 2, "population": 2},
    }  # fmt: skip

    def made(name, **changes):
        task = {"name": "diary", "prompt": "{begin}", "answer": "{end}", **GENERATION, **data} | changes
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "tasks": [task], **base}))
        status = main(["evolve", str(tmp_path / f"{name}.yaml"), "--output", str(tmp_path / name)])
        out = capfd.readouterr()
        return tmp_path / name, status, out.out + out.err

    return made


def everything(folder, said):
    return "".join([said, *(p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file())])


def spellings(text):
    """A text as files may have it."""
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], text.encode().decode("latin-1")}


def test_nothing_of_a_private_task_is_left(run):
    folder, status, said = run("open")
    heldout = json.loads((folder / "heldout.json").read_text())
    models = [*heldout["sources"].values(), heldout["best"]]
    texts = [t for row in ROWS for t in row.values()]
    texts += [text.strip() for model in models for text in model["texts"]["diary"] if text.strip()]
    assert len(texts) > 2 * len(ROWS)
    assert status == 0
    there = everything(folder, said)
    assert sum(any(s in there for s in spellings(t)) for t in texts) > len(texts) / 2  # so they can be found

    hidden, status, said = run("hidden", private=True)
    assert status == 0
    there = everything(hidden, said)
    assert [t for t in texts if any(s in there for s in spellings(t))] == []
    private = json.loads((hidden / "heldout.json").read_text())
    for name, source in heldout["sources"].items():
        assert private["sources"][name]["scores"] == source["scores"]
    assert "diary is private" in (hidden / "best" / "README.md").read_text()
    assert "diary is private" in (hidden / "report.html").read_text()
    assert main(["report", str(hidden)]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": None, "extract": "last_number"}, "the answer (private) has no number"),
        ({"search": {"path": "owner/diaries"}}, "private: owner/diaries is not a file here"),
    ],
)
def test_messages_quote_nothing(changes, message, run):
    _, status, said = run("refused", private=True, **changes)
    assert (status, message in said) == (2, True), said
    assert not any(text in said for row in ROWS for text in row.values())


def test_what_is_seen_in_private_pictures_is_not_kept_in_files():
    task = {
        "name": "t", "search": "s.jsonl", "heldout": "h.jsonl", "prompt": "<image>", "image": "{x}", "answer": "{a}",
        "private": True,
    }  # fmt: skip
    recipe = {"merge_method": "linear", "models": [{"model": "a"}]}
    given = {"name": "r", "recipe": recipe, "genome": {"weight": [0, 1]}, "tasks": [task]}
    read_config(given)
    with pytest.raises(InputError, match="private pictures is not written; leave `folder` out"):
        read_config(given | {"features": {"folder": "seen"}})
