"""Searches in data-flow space as a user runs them: alone, after the weights, and together with them."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.config import read_run
from jevomerge.genome.route import describe, express_path
from jevomerge.reports.record import path_space, read_paths, read_record
from jevomerge.search.setup import set_up

PATH = """
name: flow
path: {models: [back, front], repeats: 2, scaling: per_hop}
tasks: [task.yaml]
search: {evaluations: 48, population: 16, sigma: 0.15, strategy: STRATEGY}
"""


def lines(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", [pytest.param("snes", marks=pytest.mark.slow), "mixed"])
def test_a_path_is_searched_and_exported(strategy, siblings, tmp_path):
    (siblings / "flow.yaml").write_text(PATH.replace("STRATEGY", strategy))
    folder = tmp_path / "run"
    assert main(["evolve", str(siblings / "flow.yaml"), "--output", str(folder), "--debug"]) == 0
    result = json.loads((folder / "result.json").read_text())
    record = lines(folder)[result["best"]["evaluation"]]
    # What was scored along the path is what the ordinary folder scores.
    np.testing.assert_allclose(result["best"]["search"], record["fitness"], atol=1e-4)
    first, best = lines(folder)[0]["fitness"], max(r["fitness"] for r in lines(folder))
    assert record["fitness"] == best
    # The first candidate is model A itself, so nothing worse is ever the outcome.
    np.testing.assert_allclose(first, result["sources"]["back"]["search"], atol=1e-4)
    problem = set_up(read_run(folder / "config.yaml")).problem
    hops = describe(problem.space, express_path(problem.space, jnp.asarray(record["genome"], jnp.float32)))
    assert (hops[0].model, hops[0].layer) == ("back", 0)
    assert (hops[-1].model, hops[-1].layer) == ("back", 4)
    assert Checkpoint(folder / "best").model.config.num_hidden_layers == len(hops)
    assert len((folder / "best" / "path.txt").read_text().splitlines()) == len(hops)
    # The report draws this path, from the run folder alone.
    report = read_record(folder, read_run(folder / "config.yaml"))
    assert path_space(report) == problem.space
    assert read_paths(report).hops(report.best) == hops
    assert "How paths changed" in (folder / "report.html").read_text()
    assert (folder / "path.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert result["sources"].keys() == {"front", "back"}


def test_a_path_that_was_scored_is_not_scored_again(siblings, tmp_path):
    text = PATH.replace("STRATEGY", "path_program").replace("repeats: 2, scaling: per_hop", "repeats: 1, scaling: none")
    (siblings / "again.yaml").write_text(text)
    folder = tmp_path / "run"
    assert main(["evolve", str(siblings / "again.yaml"), "--output", str(folder), "--debug"]) == 0
    records = {(r["generation"], r["member"]): r for r in lines(folder)}
    copies = [r for r in records.values() if "copy_of" in r]
    assert len(copies) >= 2  # this strategy asks for its best again
    space = set_up(read_run(folder / "config.yaml")).problem.space
    for copy in copies:
        first = records[tuple(copy["copy_of"])]
        assert first["generation"] < copy["generation"]
        assert (first["fitness"], first["scores"], copy["seconds"]) == (copy["fitness"], copy["scores"], 0)
        assert copy["tokens"] == {"prompt": 0, "answer": 0}
        paths = [describe(space, express_path(space, jnp.asarray(r["genome"], jnp.float32))) for r in (first, copy)]
        assert paths[0] == paths[1]
    # Killed after the second generation, it copies the same.
    whole = (folder / "evaluations.jsonl").read_bytes()
    (folder / "evaluations.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:33]))
    (folder / "result.json").unlink()
    assert main(["evolve", "--resume", str(folder)]) == 0
    assert [r.get("copy_of") for r in lines(folder)] == [r.get("copy_of") for r in records.values()]


FRANKENMERGE = """
merge_method: passthrough
dtype: float32
slices:
  - sources: [{model: back, layer_range: [0, 3]}]
  - sources: [{model: front, layer_range: [2, 4]}]
  - sources: [{model: back, layer_range: [4, 5]}]
"""
FROM_IT = PATH.replace("models: [back, front]", "models: [back, front], start: franken.yaml, others_on: 0.1")


def test_a_search_begins_at_a_frankenmerge(siblings, tmp_path):
    (siblings / "franken.yaml").write_text(FRANKENMERGE)
    (siblings / "from_it.yaml").write_text(FROM_IT.replace("STRATEGY", "mixed"))
    folder = tmp_path / "run"
    assert main(["evolve", str(siblings / "from_it.yaml"), "--output", str(folder), "--debug"]) == 0
    assert main(["merge", str(siblings / "franken.yaml"), str(tmp_path / "stacked")]) == 0
    scores = tmp_path / "scores.json"
    task = str(siblings / "task.yaml")
    assert (
        main(["evaluate", str(tmp_path / "stacked"), "--task", task, "--split", "search", "--json", str(scores)]) == 0
    )
    first = lines(folder)[0]
    np.testing.assert_allclose(
        first["fitness"], json.loads(scores.read_text())["results"]["stories"]["likelihood"], atol=1e-4
    )
    # The rest of the first generation is drawn around it: its slots mostly on, others in one of ten.
    slots = np.array([r["genome"][:20] for r in lines(folder) if r["generation"] == 0])[1:] > 0.5
    start = np.array(first["genome"][:20]) > 0.5
    assert start.sum() == 6
    assert slots[:, start].mean() > 0.9
    assert 0.02 < slots[:, ~start].mean() < 0.25


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("merge_method: passthrough", "merge_method: linear", "franken.yaml:2: not a path"),
        ("layer_range: [4, 5]", "layer_range: [3, 4]", "path.start: a path must begin with layer 0 and end with"),
        ("{model: front, ", "{model: base, ", "base is not among the path's models"),
        ("model: back, layer_range: [4, 5]", "model: back", "`layer_range` of "),
        ("layer_range: [2, 4]", "layer_range: [2, 9]", "path.start: a path through front:5"),
    ],
)
def test_a_start_that_is_no_path_is_refused(old, new, expected, siblings, tmp_path, capsys):
    (siblings / "franken.yaml").write_text(FRANKENMERGE.replace(old, new))
    (siblings / "from_it.yaml").write_text(FROM_IT.replace("STRATEGY", "mixed"))
    assert main(["evolve", str(siblings / "from_it.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


BOTH = """
name: both
recipe:
  merge_method: linear
  models: [{model: front}, {model: back}]
  dtype: float32
genome:
  weight: {range: [0, 1], layers_per_group: 2}
path: {models: [base], repeats: 1, scaling: none}
tasks: [task.yaml]
search: {evaluations: 24, population: 12, strategy: STRATEGY}
"""


@pytest.mark.parametrize("strategy", [pytest.param("snes", marks=pytest.mark.slow), "mixed"])
def test_both_spaces_at_once(strategy, siblings, tmp_path):
    (siblings / "both.yaml").write_text(BOTH.replace("STRATEGY", strategy))
    folder = tmp_path / "run"
    assert main(["evolve", str(siblings / "both.yaml"), "--output", str(folder), "--debug"]) == 0
    result = json.loads((folder / "result.json").read_text())
    record = lines(folder)[result["best"]["evaluation"]]
    np.testing.assert_allclose(result["best"]["search"], record["fitness"], atol=1e-4)
    assert {"layers 0-1/front/weight", "slot 0 = merged:0", "slot 5 = base:0"} <= result["best"]["genome"].keys()
    # The models that are merged and those a path leads through besides are scored as what they are.
    assert result["sources"].keys() == {"front", "back", "base"}
    assert (
        main(
            [
                "evaluate",
                str(siblings / "base"),
                "--task",
                str(siblings / "task.yaml"),
                "--json",
                str(tmp_path / "base.json"),
            ]
        )
        == 0
    )
    alone = json.loads((tmp_path / "base.json").read_text())["results"]["stories"]["likelihood"]
    np.testing.assert_allclose(result["sources"]["base"]["heldout"], alone, atol=1e-5)
    assert max(row["heldout"] for row in result["sources"].values()) == result["sources"]["base"]["heldout"]
    charts = set(re.findall(r'class="chart" id="([a-z]+)', (folder / "report.html").read_text()))
    assert charts == {"fitness", "coefficients", "genes", "parallel", "slots"}
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == [".lock"]


STAGED = """
name: staged
stages:
  - name: weights
    recipe:
      merge_method: linear
      models: [{model: front}, {model: back}]
      dtype: float32
    genome:
      weight: {range: [0, 1], layers_per_group: 2}
    search: {evaluations: 24, population: 12}
  - name: flow
    path: {models: [weights, front], repeats: 1, scaling: none}
    search: {evaluations: 24, population: 12, strategy: snes}
tasks: [task.yaml]
"""


@pytest.mark.slow
def test_a_path_through_the_winner_of_the_weights(siblings, tmp_path):
    (siblings / "staged.yaml").write_text(STAGED)
    folder = tmp_path / "run"
    assert main(["evolve", str(siblings / "staged.yaml"), "--output", str(folder), "--debug"]) == 0
    results = json.loads((folder / "result.json").read_text())
    weights, flow = results["weights"]["best"], results["flow"]
    # Model A of the second stage is the first one's winner, and its first generation is drawn around that.
    np.testing.assert_allclose(flow["sources"]["weights"]["heldout"], weights["heldout"], atol=1e-5)
    assert Checkpoint(folder / "flow" / "best").model.config.num_hidden_layers >= 2
    index = (folder / "report.html").read_text()
    for name in ("weights", "flow"):
        assert f'href="{name}/report.html"' in index
        assert f"{results[name]['best']['heldout']:.4f}".replace("-", "−") in index
        assert (folder / name / "path.png").exists() == (name == "flow")
    before = (folder / "flow" / "evaluations.jsonl").read_bytes()
    for path in (folder / "result.json", folder / "flow" / "result.json"):
        path.unlink()  # as if it had been killed at the very end
    assert main(["evolve", "--resume", str(folder)]) == 0
    assert (folder / "flow" / "evaluations.jsonl").read_bytes() == before
    again = json.loads((folder / "result.json").read_text())["flow"]["best"]
    assert again["genome"] == flow["best"]["genome"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("models: [weights, front]", "models: [wieghts, front]", "wieghts is neither a folder nor a hub name"),
        ("scaling: none", "scaling: nothing", "`stages.1.path.scaling`"),
        ("strategy: snes", "strategy: sness", "did you mean"),
        ("name: flow", "name: weights", "each its own"),
        ("    path: {models: [weights, front], repeats: 1, scaling: none}\n", "", "give a `recipe` with a `genome`"),
    ],
)
def test_mistakes_of_any_stage_are_found_before_the_first_begins(old, new, expected, siblings, tmp_path, capsys):
    (siblings / "bad.yaml").write_text(STAGED.replace(old, new))
    assert main(["evolve", str(siblings / "bad.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
