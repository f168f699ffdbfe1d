"""A search for a front, as a user runs it: two goals that cannot both be had."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.config import read_run
from jevomerge.reports.heldout import standings, wins_and_losses
from jevomerge.search.archive import read_archive
from jevomerge.search.setup import set_up
from jevomerge.strategies.evosax import METHODS

EVALUATIONS, POPULATION = 48, 8
GOALS = ("stories", "other")


@pytest.fixture(scope="module")
def problem(siblings, tmp_path_factory):
    """The siblings, with a second task: to continue the same stories as no model was taught to."""
    folder = tmp_path_factory.mktemp("pareto") / "siblings"
    shutil.copytree(siblings, folder)
    for split in ("search", "heldout"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        other = [row | {"end": " " + " ".join(reversed(row["end"].strip(" .").split()))} for row in rows]
        (folder / f"other_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    task = (folder / "task.yaml").read_text().replace("name: stories", "name: other\nweight: 2")
    task = task.replace("search.jsonl", "other_search.jsonl").replace("heldout.jsonl", "other_heldout.jsonl")
    (folder / "other.yaml").write_text(task)
    text = (folder / "run.yaml").read_text().replace("tasks: [task.yaml]", "tasks: [task.yaml, other.yaml]")
    search = f"strategy: nsga2, evaluations: {EVALUATIONS}, population: {POPULATION}, finalists: 3, checkpoint_every: 2"
    search += ", start: [sources]"  # else one of them is better than all candidates
    (folder / "run.yaml").write_text(text.split("search:")[0] + f"search: {{{search}}}\n")
    return folder


@pytest.fixture(scope="module")
def run(problem, tmp_path_factory):
    folder = tmp_path_factory.mktemp("front") / "run"
    assert main(["evolve", str(problem / "run.yaml"), "--output", str(folder), "--debug"]) == 0
    return folder


def outcome(folder):
    """All that must not depend on what happened on the way."""
    result = json.loads((folder / "result.json").read_text())
    records = read_archive(folder / "evaluations.jsonl")
    for timed in (result, *records):
        del timed["seconds"]
    del result["ran_on"]
    exported = [p for name in ("best", "front") for p in sorted((folder / name).rglob("*")) if p.is_file()]
    return result, records, {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in exported}


def means(records):
    return np.array([[np.mean(r["scores"][goal]) for goal in GOALS] for r in records])


def test_the_front_is_what_nothing_dominates(run):
    result, records, _ = outcome(run)
    everyone = means(records)
    front = [point["evaluation"] for point in result["front"]]
    assert len(front) > 2  # the goals do conflict
    for point in result["front"]:
        np.testing.assert_allclose([point["search"][g] for g in GOALS], everyone[point["evaluation"]])
        assert point["fitness"] == records[point["evaluation"]]["fitness"]
    beaten = [any((o >= x).all() and (o > x).any() for o in everyone) for x in everyone]
    assert not any(beaten[i] for i in front)
    on_front = {tuple(x) for x, b in zip(everyone, beaten, strict=True) if not b}
    assert on_front == {tuple(everyone[i]) for i in front}


def test_the_search_moves_the_front(run):
    """Both goals are better in the last generation than in the first."""
    everyone = means(read_archive(run / "evaluations.jsonl")).reshape(-1, POPULATION, len(GOALS))
    assert (everyone[-1].mean(0) > everyone[0].mean(0)).all()


def test_exported_points_score_what_was_logged(run, problem):
    result, records, _ = outcome(run)
    exported = {p["export"]: p for p in result["front"] if "export" in p}
    assert len(exported) == 3
    assert {f"front/{p.name}" for p in (run / "front").iterdir()} == set(exported) - {"best"}
    # The best, by the weighted fitness, and the best of each goal, as far as these are not the same.
    best = exported["best"]
    assert best["evaluation"] == result["best"]["evaluation"]
    assert best["fitness"] == max(r["fitness"] for r in records)
    numbers = {p["evaluation"] for p in exported.values()}
    assert {int(i) for i in means(records).argmax(0)} <= numbers
    judge = set_up(read_run(problem / "run.yaml")).judge  # the weights are those of the files
    for name, point in exported.items():
        model = Checkpoint(run / name)
        for split, expected, tolerance in (("search", point["search"], 1e-5), ("heldout", point["heldout"], 1e-6)):
            scores = judge.model(model.load(judge.mesh), split, model.model)
            for goal in GOALS:
                np.testing.assert_allclose(np.mean(scores.fitness[goal]), expected[goal], atol=tolerance)
    assert (run / "best" / "README.md").read_text() != (
        run / next(iter(set(exported) - {"best"})) / "README.md"
    ).read_text()


def test_held_out_examples_are_on_record_for_every_exported_point(run, problem):
    """As the files score them; and the page shows each with its interval, and what it made of the examples."""
    result, heldout = json.loads((run / "result.json").read_text()), json.loads((run / "heldout.json").read_text())
    exported = {p["export"]: p for p in result["front"] if "export" in p}
    points = heldout["front"] | {"best": heldout["best"]}
    assert points.keys() == exported.keys()
    config = read_run(problem / "run.yaml")
    judge = set_up(config).judge
    for name, point in points.items():
        assert point.keys() == heldout["best"].keys()
        model = Checkpoint(run / name)
        scores = judge.model(model.load(judge.mesh), "heldout", model.model)
        for goal in GOALS:
            np.testing.assert_allclose(point["scores"][goal], scores.fitness[goal], atol=1e-6)
        assert point["tasks"]["heldout"] == exported[name]["heldout"]
    assert len({json.dumps(point["scores"]) for point in points.values()}) == len(points)
    rows = standings(heldout, config.tasks)
    assert [row.name for row in rows] == ["front", "back", "plain average", *heldout["front"], "evolved merge"]
    page = (run / "report.html").read_text()
    for row in rows:
        assert f"{row.heldout.low:.3f} to {row.heldout.high:.3f}".replace("-", "−") in page
    case = wins_and_losses(heldout, config.tasks[0]).won[0]
    answers = " · ".join(f"{a.model} {a.score:.3f}" for a in case.answers).replace(" -", " −")
    assert set(heldout["front"]) < {a.model for a in case.answers}
    assert answers in re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))


def test_a_record_without_the_other_points_is_shown(run, tmp_path):
    """As earlier versions wrote it."""
    older = shutil.copytree(run, tmp_path / "older")
    heldout = json.loads((older / "heldout.json").read_text())
    del heldout["front"]
    (older / "heldout.json").write_text(json.dumps(heldout))
    assert main(["report", str(older), "--debug"]) == 0
    assert '<h2 id="the-front">The front</h2>' in (older / "report.html").read_text()


def test_a_killed_run_goes_on_as_if_nothing_had_happened(run, tmp_path, capsys):
    """As kill -9 leaves it in the fifth generation, a line torn; of what is exported later some is there already."""
    killed = shutil.copytree(run, tmp_path / "killed")
    (killed / "result.json").unlink()
    shutil.rmtree(next((killed / "front").iterdir()))
    assert sorted(p.name for p in (killed / "checkpoints").iterdir()) == ["4", "6"]
    log = (killed / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    whole = 4 * POPULATION + 3
    (killed / "evaluations.jsonl").write_bytes(b"".join(log[:whole]) + log[whole][:50])
    capsys.readouterr()
    assert main(["evolve", "--resume", str(killed), "--debug"]) == 0
    assert "checkpoint 4" not in capsys.readouterr().out  # it is used; that of the sixth is ahead of the log
    assert outcome(killed) == outcome(run)
    assert (killed / "heldout.json").read_bytes() == (run / "heldout.json").read_bytes()


def test_the_report_shows_the_front(run):
    page, result = (run / "report.html").read_text(), json.loads((run / "result.json").read_text())
    assert '<h2 id="the-front">The front</h2>' in page
    for point in result["front"]:
        assert f"{point['search']['other']:.4f}".replace("-", "−") in page
        if "export" in point:
            assert f"{point['heldout']['other']:.4f}".replace("-", "−") in page
            assert f"<td>{point['export']}</td>" in page


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[task.yaml, other.yaml]", "[task.yaml]", "give two `tasks` or more, or choose cma_es"),
        ("finalists: 3", "racing: exact", "leave racing out"),
        ("finalists: 3", "examples_per_generation: 4", "leave examples_per_generation out"),
        ("population: 8", "population: 2", "use 4 or more"),
        ("strategy: nsga2", "strategy: nsga", "did you mean 'nsga2'"),
    ],
)
def test_what_does_not_go_together(old, new, expected, problem, tmp_path, capsys):
    text = (problem / "run.yaml").read_text()
    assert old in text
    (problem / "bad.yaml").write_text(text.replace(old, new))
    assert main(["evolve", str(problem / "bad.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert "nsga2" not in METHODS  # which takes one fitness


@pytest.mark.slow
@pytest.mark.parametrize("joint", [False, True])
def test_fronts_of_paths(joint, problem, tmp_path):
    """Paths, and merges with a path, are boxes too."""
    text = (problem / "run.yaml").read_text()
    path = "path: {models: [back], repeats: 1}\n" if joint else "path: {models: [front, back], repeats: 1}\n"
    head, rest = text.split("recipe:")
    recipe, tasks = rest.split("tasks:")
    text = head + (f"recipe:{recipe}" if joint else "") + path + f"tasks:{tasks}"
    text = text.replace(f"evaluations: {EVALUATIONS}", "evaluations: 20")
    (problem / "path.yaml").write_text(text)
    folder = tmp_path / "run"
    assert main(["evolve", str(problem / "path.yaml"), "--output", str(folder), "--debug"]) == 0
    result, records, exported = outcome(folder)
    assert {p["export"] for p in result["front"] if "export" in p} == {n.rpartition("/")[0] for n in exported}
    assert len({r["fitness"] for r in records}) > 10
