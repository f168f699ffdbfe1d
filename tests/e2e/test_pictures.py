"""Whole runs whose candidates draw: searched, killed, resumed, evaluated, planned."""

import base64
import io
import json
import shutil
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from jevomerge.cli import main
from tests.pipelines import write_minis, write_siblings

JUDGE = """
import numpy as np


def dark(pictures, rows):
    assert pictures.dtype == np.uint8 and pictures.shape[1:] == (8, 8, 3) and len(rows) == len(pictures)
    return 1 - pictures.mean(axis=(1, 2, 3)) / 255 - 0.1 * np.array([row["en"] == "a cat" for row in rows])


def bright(pictures, rows):
    return pictures.mean(axis=(1, 2, 3)) / 255
"""
TASK = {
    "name": "dark", "search": {"path": "prompts.jsonl", "rows": [0, 2]},
    "heldout": {"path": "prompts.jsonl", "rows": [2, 3]}, "prompts": "{ja}", "judged_by": "{en}", "steps": 2,
    "guidance": 2, "seeds": 2, "scheduler": "euler", "score": "judge_of_pictures:dark",
}  # fmt: skip
RUN = {
    "name": "pictures",
    "recipe": {
        "merge_method": "linear", "dtype": "float32",
        "models": [{"model": name} for name in ("base", "a", "b")], "parameters": {"normalize": True},
    },
    "genome": {"weight": {"range": [0, 1]}},
    "search": {"evaluations": 16, "population": 8, "checkpoint_every": 1},
    "tasks": ["task.yaml"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_minis(tmp_path_factory.mktemp("drawn"))
    (folder / "judge_of_pictures.py").write_text(JUDGE)
    prompts = [("柴犬", "a shiba"), ("猫", "a cat"), ("山", "a mountain")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"ja": a, "en": b}) + "\n" for a, b in prompts))
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    yield folder
    sys.modules.pop("judge_of_pictures", None)


@pytest.fixture(scope="module")
def run(folder):
    assert main(["evolve", str(folder / "run.yaml"), "--output", str(folder / "run"), "--debug"]) == 0
    return folder / "run"


def lines(folder):
    records = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "crc32")} for r in records]


def test_a_run_of_pictures(run):
    result = json.loads((run / "result.json").read_text())
    assert len(lines(run)) == 16
    assert len({r["fitness"] for r in lines(run)}) > 4
    assert result["best"]["search"] >= max(r["fitness"] for r in lines(run)) - 1e-6
    heldout = json.loads((run / "heldout.json").read_text())
    assert heldout["examples"]["dark"] == [{"prompt": "山", "answer": "a mountain"}]
    assert (run / "best" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert heldout["sources"].keys() == {"base", "a", "b"}


def test_a_killed_run_goes_on_to_the_same_end(run):
    copy = shutil.copytree(run, run.with_name("killed"))
    kept = (copy / "evaluations.jsonl").read_bytes().splitlines(keepends=True)[:11]
    (copy / "evaluations.jsonl").write_bytes(b"".join(kept))
    (copy / "result.json").unlink()
    for name in ("best", "checkpoints"):
        shutil.rmtree(copy / name)
    assert main(["evolve", "--resume", str(copy), "--debug"]) == 0
    assert lines(copy) == lines(run)
    weights = "best/unet/diffusion_pytorch_model.safetensors"
    assert (copy / weights).read_bytes() == (run / weights).read_bytes()


def test_evaluate_scores_a_folder_as_the_run_did(folder, run, capsys):
    heldout = json.loads((run / "heldout.json").read_text())
    for name in ("base", "run/best"):  # source a is drawn with the texts of base, as the result is
        out = run.with_name(f"{name.replace('/', '_')}.json")
        task = str(folder / "task.yaml")
        assert main(["evaluate", str(folder / name), "--task", task, "--json", str(out), "--debug"]) == 0
        scored = heldout["sources"]["base"] if name == "base" else heldout["best"]
        assert json.loads(out.read_text())["examples"]["dark"] == pytest.approx(scored["scores"]["dark"], abs=1e-6)


def test_whose_pooled_vector_is_asked_only_of_pipelines_that_have_two(folder, capsys):
    task, more = str(folder / "task.yaml"), ["--pooled-from", "2"]
    assert main(["evaluate", str(folder / "base"), "--task", task, *more]) == 2
    assert "`pooled_from`: the pipeline has not two text encoders; leave it out" in capsys.readouterr().err
    assert main(["evaluate", "../shared/models/none", "--task", task, *more]) == 2


@pytest.mark.slow
def test_evaluate_is_told_whose_pooled_vector_counts(folder, tmp_path, capsys):
    write_siblings(tmp_path, names=("base",), first_projected=True)
    task = yaml.safe_dump(TASK | {"size": [64, 64], "score": "judge_of_pictures:bright", "guidance": 0})
    (folder / "large.yaml").write_text(task)

    def evaluated(*more):
        out = tmp_path / f"{len([*tmp_path.iterdir()])}.json"
        given = ["--task", str(folder / "large.yaml"), "--json", str(out), *more]
        code = main(["evaluate", str(tmp_path / "base"), *given])
        return json.loads(out.read_text())["examples"]["dark"] if code == 0 else code

    assert evaluated() == 2
    assert "pooled_from" in capsys.readouterr().err
    assert evaluated("--pooled-from", "1") != evaluated("--pooled-from", "2")


def test_two_judges_of_pictures_make_a_front(folder):
    second = TASK | {"name": "bright", "score": "judge_of_pictures:bright"}
    config = RUN | {
        "name": "front", "tasks": ["task.yaml", "second.yaml"],
        "search": {"evaluations": 16, "population": 8, "strategy": "nsga2"},
    }  # fmt: skip
    (folder / "second.yaml").write_text(yaml.safe_dump(second))
    (folder / "front.yaml").write_text(yaml.safe_dump(config))
    assert main(["evolve", str(folder / "front.yaml"), "--output", str(folder / "front"), "--debug"]) == 0
    scores = np.array([[np.mean(r["scores"][name]) for name in ("dark", "bright")] for r in lines(folder / "front")])
    beaten = (scores[:, None] <= scores).all(-1) & (scores[:, None] < scores).any(-1)
    nobody = {tuple(row) for row in scores[~beaten.any(1)].round(5).tolist()}
    front = json.loads((folder / "front" / "result.json").read_text())["front"]
    found = {(m["search"]["dark"], m["search"]["bright"]) for m in front}
    assert len(found) > 1
    assert {tuple(np.round(row, 5)) for row in found} == nobody


def test_what_is_drawn_is_kept_for_people(run):
    heldout, drawn = (json.loads((run / f"{name}.json").read_text()) for name in ("heldout", "drawn"))
    for rows, count in ((heldout, 1), (drawn, 2)):
        models = [*rows["sources"].values(), rows["average"], rows["best"]]
        pictures = [model["drawn"]["dark"] for model in models]
        assert all(len(p) == count == len(model["scores"]["dark"]) for p, model in zip(pictures, models, strict=True))
        assert len({p[0] for p in pictures}) >= 4
    found = Image.open(io.BytesIO(base64.b64decode(drawn["best"]["drawn"]["dark"][0])))
    assert (found.format, found.size) == ("JPEG", (240, 240))  # 8 x 8, each pixel a square
    best = max(lines(run), key=lambda r: r["fitness"])
    assert drawn["best"]["evaluation"] == best["generation"] * 8 + best["member"]
    assert drawn["best"]["scores"]["dark"] == pytest.approx(best["scores"]["dark"], abs=1e-5)
