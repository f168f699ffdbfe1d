"""Evolution on tasks of lm-evaluation-harness: what it reports is what the harness says of the exported folder."""

import json
import shutil

import numpy as np
import pytest
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from jevomerge.cli import main

BEGUN = [
    "Once upon a time, there was a",
    "Tom and Lily went to the",
    "The big dog was very",
    "Mom said to",
    "One day, a",
]
RIGHT = [
    " little girl named Lily",
    " park to play with their friends",
    " happy and wanted to play",
    " her, Lily",
    " boy",
]
WRONG = [" girl the named of was", " was to park a said", " seven the of under", " of the the go", " the was it"]
SHARED = """
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
training_split: train
test_split: {split}
fewshot_split: train
num_fewshot: 1
doc_to_text: "{{{{begin}}}}"
"""
CHOOSE = """
output_type: multiple_choice
doc_to_choice: "{{ [wrong, right, ' and'] }}"
doc_to_target: 1
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITE = """
output_type: generate_until
doc_to_target: "{{right}}"
target_delimiter: ""
generation_kwargs: {until: ['.'], max_gen_toks: 8}
process_results: !function distance.distance
metric_list: [{metric: distance, aggregation: mean, higher_is_better: false}]
"""
DISTANCE = """
def distance(doc, results):
    return {"distance": sum(a != b for a, b in zip(results[0], doc["right"])) / len(doc["right"])}
"""


@pytest.fixture(scope="module")
def run(siblings, tmp_path_factory):
    """A run of two generations on minibatches; the folder of its tasks, which also exist with the search split."""
    folder = tmp_path_factory.mktemp("harness")
    rows = [
        {"begin": b if k == 0 else f"{r}. {b}", "right": r, "wrong": w}
        for k in range(3)
        for b, r, w in zip(BEGUN, np.roll(RIGHT, k), np.roll(WRONG, k), strict=True)
    ]
    for split, part in (("train", rows[:9]), ("test", rows[9:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    (folder / "distance.py").write_text(DISTANCE)
    for name, text in (("choose", CHOOSE), ("write", WRITE)):
        for split, suffix in (("test", ""), ("train", "_search")):
            shared = SHARED.format(folder=folder, split=split)
            (folder / f"{name}{suffix}.yaml").write_text(f"task: {name}{suffix}{shared}{text}")
    task = {"search": {"split": "train"}, "heldout": {"split": "test"}}
    shutil.copytree(siblings, folder / "siblings")
    config = yaml.safe_load((siblings / "run.yaml").read_text())
    config["tasks"] = [
        {**task, "harness": {"task": "choose", "include_path": str(folder), "metric": "acc_norm"}, "weight": 3},
        {**task, "harness": {"task": "write", "include_path": str(folder)}, "heldout": {"rows": [1, 5]}},
    ]
    config["search"] = {"evaluations": 18, "population": 9, "examples_per_generation": 6, "finalists": 2}
    (folder / "siblings" / "run.yaml").write_text(yaml.safe_dump(config))
    command = ["evolve", str(folder / "siblings" / "run.yaml"), "--output", str(folder / "run"), "--debug"]
    assert main(command) == 0
    return folder


@pytest.fixture(scope="module")
def said(run):
    """What the harness and its own backend say of the exported folder: {task: [metrics of each document]}."""
    model = HFLM(pretrained=str(run / "run" / "best"), dtype="float32", batch_size=4, device="cpu")
    manager = TaskManager(include_path=str(run), include_defaults=False)
    names = ["choose", "write", "choose_search", "write_search"]
    # Of `write`, the documents of its held-out rows: few-shot examples are drawn document by document.
    rows = {"write": [1, 2, 3, 4]}
    samples = simple_evaluate(model, tasks=names, task_manager=manager, samples=rows, bootstrap_iters=0)["samples"]
    return {name: sorted(found, key=lambda s: s["doc_id"]) for name, found in samples.items()}


@pytest.mark.slow
def test_heldout_scores_are_what_the_harness_says_of_the_folder(run, said):
    result, heldout = (json.loads((run / "run" / f"{name}.json").read_text()) for name in ("result", "heldout"))
    accuracy = [s["acc_norm"] for s in said["choose"]]
    distance = [s["distance"] for s in said["write"]]
    assert heldout["best"]["scores"]["choose"] == accuracy
    np.testing.assert_allclose(heldout["best"]["scores"]["write"], [-d for d in distance])  # lower is better
    assert result["best"]["heldout"] == pytest.approx((3 * np.mean(accuracy) - np.mean(distance)) / 4)
    assert 0 < np.mean(distance) < 1
    # What it wrote is kept as the device wrote it, before stop strings; documents as people read them.
    for text, sample in zip(heldout["best"]["texts"]["write"], said["write"], strict=True):
        assert text.split(".")[0] == sample["resps"][0][0]
    assert heldout["examples"]["choose"][0] == {
        "prompt": said["choose"][0]["doc"]["begin"],
        "answer": said["choose"][0]["doc"]["right"],
    }
    assert 0 < np.mean([a for m in heldout["sources"].values() for a in m["scores"]["choose"]]) < 1


def test_minibatches_are_of_documents(run, said):
    lines = [json.loads(line) for line in (run / "run" / "evaluations.jsonl").read_text().splitlines()]
    result = json.loads((run / "run" / "result.json").read_text())
    best = lines[result["best"]["evaluation"]]
    assert len(lines) == 18
    for name, metric, sign in (("choose", "acc_norm", 1), ("write", "distance", -1)):
        documents = best["examples"][name]
        assert len(documents) == 6
        expected = [sign * said[f"{name}_search"][d][metric] for d in documents]
        np.testing.assert_allclose(best["scores"][name], expected, atol=1e-6)
    whole = 3 * np.mean([s["acc_norm"] for s in said["choose_search"]])
    whole -= np.mean([s["distance"] for s in said["write_search"]])
    assert result["best"]["search"] == pytest.approx(whole / 4)
    assert len({r["fitness"] for r in lines}) > 3


def test_ties_are_broken_by_how_likely_the_right_choice_is(run, said):
    lines = [json.loads(line) for line in (run / "run" / "evaluations.jsonl").read_text().splitlines()]
    best = lines[json.loads((run / "run" / "result.json").read_text())["best"]["evaluation"]]
    right = []
    for d in best["examples"]["choose"]:
        totals = np.array([r[0][0] for r in said["choose_search"][d]["resps"]])
        right.append(totals[1] - np.logaddexp.reduce(totals))
    assert best["tie_break"] == pytest.approx(3 * np.mean(right) / 4, abs=1e-4)


def test_a_run_is_shown(run):
    page = (run / "run" / "report.html").read_text()
    assert "choose" in page
    assert f"{json.loads((run / 'run' / 'result.json').read_text())['best']['heldout']:.4f}".lstrip("-") in page
