"""People judge pictures: a rater who likes what is dark, and the search then finds that."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from jevomerge.cli import main
from jevomerge.observers.observer import SILENT
from jevomerge.run.evolve import evolve
from tests.pipelines import write_minis
from tests.raters import Rater, dark, votes_of

PROMPTS = [("柴犬", "a secret shiba"), ("猫", "a secret cat"), ("山", "a secret mountain")]


def darkness(pictures, rows):
    return -pictures.mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_minis(tmp_path_factory.mktemp("seen"))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"ja": a, "en": b}) + "\n" for a, b in PROMPTS))
    return folder


def config(folder, score, **changes):
    """Eight merges, then eight others, whatever they score."""
    rows = {s: {"path": str(folder / "rows.jsonl"), "rows": r} for s, r in (("search", [0, 2]), ("heldout", [2, 3]))}
    task = {"name": "dark", "prompts": "{ja}", "judged_by": "{en}", "steps": 2, "guidance": 2, "seeds": 2, **rows}
    return {
        "name": "seen",
        "recipe": {
            "merge_method": "linear", "dtype": "float32", "parameters": {"normalize": True},
            "models": [{"model": str(folder / name)} for name in ("base", "a", "b")],
        },
        "genome": {"weight": {"range": [0, 1]}},
        "search": {"strategy": "random", "evaluations": 16, "population": 8},
        "tasks": [{**task, "scheduler": "euler", "score": score, **changes}],
    }  # fmt: skip


@pytest.mark.slow  # three searches, the first of which is stopped
def test_the_search_finds_what_a_rater_likes_also_after_a_restart(folder):
    run, before, after = folder / "run", Rater(after=9, taste=dark), Rater(taste=dark)
    asked = config(folder, {"people": {"votes": 40, "enough": 0.95, "question": "Which is darker?"}})
    with pytest.raises(KeyboardInterrupt):
        evolve(asked, output=run, observer=before)
    kept = votes_of(run)
    found = evolve(asked, output=run, observer=after, resume=True).values
    votes = votes_of(run)
    assert votes[: len(kept)] == kept
    assert len(votes) == len(before.asked) + len(after.asked)  # drawn again, pictures are the same, and not asked for
    keys = [(v["split"], v["prompt"], frozenset((v["left"]["digest"], v["right"]["digest"]))) for v in votes]
    assert len(set(keys)) == len(keys)
    assert {a["prompt"]["text"] for a in after.asked} == {english for _, english in PROMPTS}

    # What was shown, to the bit, is there as files; each of two seeds was asked about for itself.
    sent = {a[side]["picture"].partition(",")[2] for a in (*before.asked, *after.asked) for side in ("left", "right")}
    assert {base64.b64encode(p.read_bytes()).decode() for p in (run / "pictures").iterdir()} == sent
    assert {v["prompt"] for v in votes if v["split"] == "search"} == {0, 1, 2, 3}
    for vote in votes:
        left, right = (np.asarray(Image.open(run / vote[side]["picture"])) for side in ("left", "right"))
        assert left.shape == right.shape == (8, 8, 3)
        assert vote["choice"] == ("tie", "left", "right")[int(np.sign(right.mean() - left.mean()))]

    # The same candidates by darkness itself: the rater's best is their best, or next to it.
    evolve(config(folder, {"function": darkness}), output=folder / "truth", observer=SILENT)
    records = [json.loads(line) for line in (folder / "truth" / "evaluations.jsonl").read_text().splitlines()]
    truth = np.array([record["fitness"] for record in records])
    assert np.sum(truth > truth[found["best"]["evaluation"]]) <= 1
    assert len([v for v in votes if v["round"].startswith("generation")]) <= 80  # of 2 x 28 x 4, and of the best so far
    heldout, drawn = (json.loads((run / f"{name}.json").read_text()) for name in ("heldout", "drawn"))
    models = {**heldout["sources"], "average": heldout["average"], "best": heldout["best"]}
    assert all(len(m["scores"]["dark"]) == len(m["drawn"]["dark"]) == 2 for m in models.values())
    assert len(drawn["best"]["scores"]["dark"]) == 4
    assert main(["report", str(run)]) == 0


@pytest.mark.slow
def test_of_a_private_task_no_picture_and_no_prompt_is_left(folder, capfd):
    rater, run = Rater(taste=dark), folder / "private"
    task = {"private": True, "prompts": "{ja} " + "and so on " * 30}  # is cut, which is noted
    evolve(config(folder, {"people": {"votes": 8}}, **task), output=run, observer=rater)
    assert rater.asked
    assert not (run / "pictures").exists()
    assert not (run / "drawn.json").exists()
    assert json.loads((run / "heldout.json").read_text())["best"]["scores"]["dark"]
    assert main(["report", str(run)]) == 0
    said = capfd.readouterr()
    there = "".join([said.out, said.err, *(p.read_text("latin-1") for p in run.rglob("*") if p.is_file())])
    for prompt in PROMPTS:
        for text in prompt:
            assert text not in there
            assert json.dumps(text)[1:-1] not in there
            assert text.encode().decode("latin-1") not in there
    for jpeg_or_png in ("/9j/", "iVBORw0K", "\x89PNG"):
        assert jpeg_or_png not in there
