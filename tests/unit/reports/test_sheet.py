"""Contact sheets: whose pictures are shown, in which order, of which prompts; the page and sheet.png."""

import base64
import io
import itertools
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from jevomerge.fitness.schema import Task
from jevomerge.reports.heldout import AVERAGE, BEST
from jevomerge.reports.page import write_report
from jevomerge.reports.sheet import sheets
from jevomerge.search.archive import Archive
from tests.unit.reports.test_page import model, outside

PROMPTS = [("柴犬", "a shiba"), ("<b>猫</b>", "a cat"), ("山", "a mountain")]
COLOURS = {"a": (200, 30, 30), "b": (30, 30, 200), AVERAGE: (210, 210, 30), BEST: (30, 160, 30)}


def task(name="dogs"):
    return Task(name=name, score="likelihood", search="s.jsonl", heldout="h.jsonl", prompt="{q}", answer="{a}")


def jpeg(colour, side=48):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "JPEG", quality=95)
    return base64.b64encode(buffer.getvalue()).decode()


def drawing(name, count=2, **more):
    """A model that drew the first two of three pictures that it is scored by."""
    scores = {"dogs": [0.25, None, 0.75]}
    return {**model(0.5, scores), "drawn": {"dogs": [jpeg(COLOURS[name])] * count}, **more}


def models():
    return {
        "examples": {"dogs": [{"prompt": p, "answer": a} for p, a in PROMPTS]},
        "sources": {name: drawing(name) for name in ("a", "b")},
        "average": drawing(AVERAGE),
        "best": drawing(BEST),
    }


@pytest.fixture
def run(tmp_path):
    """A finished run that drew pictures; its models do not exist."""
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    recipe = {"merge_method": "linear", "models": [{"model": "/gone/a"}, {"model": "/gone/b"}]}
    config = {"name": "drawn", "recipe": recipe, "genome": {"weight": [0, 1]}, "search": {"evaluations": 2}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"tasks": [task().model_dump(mode="json")]}))
    genes = ["model/a/weight", "model/b/weight"]
    (folder / "environment.json").write_text(json.dumps({"genes": genes, "population": 2, "packages": {}}))
    with Archive(folder / "evaluations.jsonl") as archive:
        rows = [{"generation": 0, "member": m, "genome": [0.5, 0.5], "fitness": 0.5, "tie_break": 0.0} for m in (0, 1)]
        archive.append([row | {"seconds": 0.5, "scores": {}} for row in rows])
    (folder / "heldout.json").write_text(json.dumps(models()))
    scored = {"search": 0.5, "heldout": 0.5}
    result = {"sources": {"a": scored, "b": scored}, "average": scored, "seconds": 1.0, "export": "best"}
    best = scored | {"genome": {}, "evaluation": 0}
    (folder / "result.json").write_text(json.dumps(result | {"best": best, "evaluations": 2}))
    return folder


def test_the_result_comes_first_and_scores_stand_with_their_pictures():
    (sheet,) = sheets(models(), [task()])
    assert sheet.prompts == PROMPTS[:2]
    assert [name for name, _ in sheet.rows] == [BEST, "a", "b", AVERAGE]
    assert [picture.score for picture in sheet.rows[0][1]] == [0.25, None]
    assert sheets(models() | {"best": None}, [task()])[0].rows[0][0] == "a"
    assert sheets({**models(), "average": model(0, {"dogs": []})}, [task()])[0].rows[-1][0] == "b"
    assert sheets({"examples": {}, "sources": {}, "average": None, "best": None}, [task()]) == []


def test_judges_of_the_same_pictures_share_a_sheet():
    found = models()
    for row in (*found["sources"].values(), found["average"], found["best"]):
        row["drawn"]["cats"] = row["drawn"]["dogs"]
        row["scores"]["cats"] = [9, 9, 9]
    found["examples"]["cats"] = found["examples"]["dogs"]
    assert [sheet.task for sheet in sheets(found, [task(), task("cats")])] == ["dogs"]
    found["best"]["drawn"]["cats"] = [jpeg((1, 2, 3))] * 2
    assert [sheet.task for sheet in sheets(found, [task(), task("cats")])] == ["dogs", "cats"]


def test_the_page_and_the_picture_show_them(run):
    page = write_report(run).read_text()
    assert not outside(page)
    shown = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]*)">', page)
    assert [alt for _, alt in shown[:3]] == [f"{BEST}: 柴犬", f"{BEST}: &lt;b&gt;猫&lt;/b&gt;", "a: 柴犬"]
    assert [data for data, _ in shown] == [
        jpeg(c) for c in (COLOURS[n] for n in (BEST, "a", "b", AVERAGE)) for _ in "12"
    ]
    assert "The first held-out prompts" in page
    assert "0.250" in page
    picture = np.asarray(Image.open(run / "sheet.png").convert("RGB")).astype(int)
    rows = [np.abs(picture - COLOURS[name]).max(axis=-1) < 12 for name in (BEST, "a", "b", AVERAGE)]
    heights = [np.flatnonzero(found.any(axis=1)) for found in rows]
    assert all(found.sum() > 2 * 150**2 for found in rows)  # two pictures each
    assert all(above[-1] < below[0] for above, below in itertools.pairwise(heights))


def test_during_the_run_the_best_so_far_is_shown(run):
    (run / "result.json").unlink()
    (run / "heldout.json").write_text(json.dumps(models() | {"best": None}))
    assert "<img" not in write_report(run).read_text()
    assert not (run / "sheet.png").exists()
    (run / "drawn.json").write_text(json.dumps(models()))
    page = write_report(run).read_text()
    assert "The first prompts of the search, by the best so far" in page
    assert page.count("<img") == 8
    assert (run / "sheet.png").exists()
