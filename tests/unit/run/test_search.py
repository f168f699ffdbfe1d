"""What a search comes to: the sources and their average compete, and it is said whether anything was gained."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jevomerge as jm
from jevomerge.cli import main
from jevomerge.genome.schema import Gene, PathSearch
from jevomerge.observers.observer import Observer
from jevomerge.observers.terminal import Terminal
from jevomerge.problems.kinds import make_problem
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.to_folder import merge_to_folder
from jevomerge.reports.writer import PageWriter

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
TREES = {name: {"w": np.full((3, 2), value, np.float32)} for name, value in {"base": 0, "a": 1, "b": -0.5}.items()}


class Listener(Observer):
    """Keeps the notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def likeness(wanted):
    """A fitness that is highest where all weights are `wanted`."""
    return lambda model, params: (
        -jnp.sum((model.apply(params, X) - X @ np.full((3, 2), wanted, np.float32)) ** 2, axis=1)
    )


def evolve(folder, wanted, weights, listener=None, **options):
    given = {
        "models": TREES,
        "model": jm.own_model(lambda params, x: x @ params["w"].astype(jnp.float32), TREES["base"]),
        "recipe": {"merge_method": "task_arithmetic", "base_model": "base"},
        "genome": {"weight": weights},
        "fitness": likeness(wanted),
        "search": {"evaluations": 12, "population": 6},
        "observer": listener or Listener(),
        "output": folder / "run",
    }
    return jm.evolve(**(given | options))


def test_a_source_that_no_candidate_beats_is_the_result(tmp_path):
    result = evolve(tmp_path, 1.0, [0.1, 0.4])
    best = result.values["best"]
    assert best["source"] == "a"
    assert {split: best[split] for split in ("search", "heldout")} == result.scores["a"]
    np.testing.assert_array_equal(result.params["w"], TREES["a"]["w"])
    top = int(np.argmax(result.archive.fitness))
    assert best["evaluation"] == top
    assert best["candidate"] == result.archive.fitness[top] < best["search"]
    assert result.genome["model/a/weight"] == pytest.approx(0.1 + 0.3 * result.archive.genome[top, 0], abs=1e-6)
    said = result.values["notes"][0]
    assert said.startswith("Nothing was gained: on the search split the best candidate scores")
    assert said.endswith("so this is a itself.")
    assert said in (result.folder / "best" / "README.md").read_text()
    assert json.loads((result.folder / "heldout.json").read_text())["best"]["source"] == "a"


def test_so_is_their_average(tmp_path):
    result = evolve(tmp_path, 0.25, [0.6, 1])
    assert result.values["best"]["source"] == "plain average"
    np.testing.assert_allclose(result.params["w"], 0.25)
    assert result.scores["best"]["search"] == max(row["search"] for row in result.scores.values())


@pytest.mark.parametrize("seed", range(3))
def test_the_result_is_never_worse_than_what_was_there(seed, tmp_path):
    """A start that is a source, and float16 results of float32 sources, whose rounding may cost what was gained."""
    rng = np.random.default_rng(seed)
    models = {name: {"w": rng.normal(size=(3, 2)).astype(np.float32)} for name in TREES}
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "dtype": "float16"}
    search = {"evaluations": 6, "population": 6, "start": ["sources"]}
    target = X @ models["a"]["w"]
    result = evolve(
        tmp_path, 0, [0, 1], models=models, recipe=recipe, search=search, seed=seed,
        fitness=lambda model, params: -jnp.sum((model.apply(params, X) - target) ** 2, axis=1),
    )  # fmt: skip
    assert result.scores["best"]["search"] == max(row["search"] for row in result.scores.values())
    np.testing.assert_array_equal(result.params["w"], models["a"]["w"])


def test_a_run_that_ends_while_it_exports_a_source_comes_to_the_same(tmp_path):
    whole = evolve(tmp_path, 1.0, [0.1, 0.4])
    killed = tmp_path / "killed"
    shutil.copytree(whole.folder, killed, ignore=shutil.ignore_patterns("result.json"))
    again = evolve(tmp_path, 1.0, [0.1, 0.4], output=killed, resume=True)
    assert again.values | {"seconds": 0} == whole.values | {"seconds": 0}
    assert (killed / "best" / "README.md").read_text() == (whole.folder / "best" / "README.md").read_text()


def test_a_gain_is_said_to_be_one(tmp_path):
    result = evolve(tmp_path, 0.3, [0, 1])
    assert "source" not in result.values["best"]
    assert result.values["notes"][0].startswith("On the search split this scores +")
    assert result.values["notes"][1] == "Nothing is held out: on other examples it may be otherwise."
    assert result.values["ran_on"].keys() >= {"processor", "devices", "jax"}


@pytest.mark.parametrize(
    ("search", "few", "whole"),
    [({"evaluations": 30, "population": 7}, False, True), ({"evaluations": 7, "population": 7}, True, False)],
)
def test_what_the_budget_is_worth_is_said_before_and_after(search, few, whole, tmp_path):
    listener = Listener()
    result = evolve(tmp_path, 0.3, [0, 1], listener, search=search)
    for notes in (listener.notes, result.values["notes"]):
        assert any("7 are few for 2 genes" in note for note in notes) == few
        assert any("30 are 4 whole generations of 7: 28 evaluations" in note for note in notes) == whole
    assert result.values["evaluations"] == search["evaluations"] // 7 * 7


def test_a_front_has_its_points_where_a_source_is_the_best(tmp_path):
    goals = {"much": 1.0, "more": 1.2}
    result = evolve(
        tmp_path, 0, [0.1, 0.4], search={"strategy": "nsga2", "evaluations": 12, "population": 6, "finalists": 2},
        fitness=None, tasks=[{"name": n, "score": {"function": likeness(w), "of": "params"}} for n, w in goals.items()],
    )  # fmt: skip
    assert result.values["best"]["source"] == "a"
    exported = [point["export"] for point in result.values["front"] if "export" in point]
    assert f"front/evaluation_{result.values['best']['evaluation']}" in exported
    assert all((result.folder / name / "model.safetensors").exists() for name in exported)
    assert "best" not in exported


@pytest.mark.parametrize("joint", [False, True])
def test_a_model_of_a_path_is_written_as_it_is(joint, siblings, tmp_path):
    front, back = (str(siblings / name) for name in ("front", "back"))
    path = PathSearch(models=(back,) if joint else (front, back), repeats=1)
    recipe = Recipe.model_validate({"merge_method": "linear", "models": [{"model": front}]}) if joint else None
    problem = make_problem(recipe, {"weight": Gene(range=(0, 1))} if joint else {}, path, 0.5, 1 / 6)
    for name in ("front", "back"):
        merge = problem.merge_of(name)
        merge_to_folder(merge, merge.coefficients, tmp_path / name)
        found, expected = (load_file(f / name / "model.safetensors") for f in (tmp_path, siblings))
        assert all(np.array_equal(found[tensor], values) for tensor, values in expected.items())


def test_export_best_writes_the_source_again(siblings, tmp_path):
    """Of text models: candidates have little of `back`, which alone is the better half; the terminal says so."""
    text = (siblings / "run.yaml").read_text().replace("weight: {range: [0, 1], layers_per_group: 2}", "weight: [0, 1]")
    recipe = text.replace("merge_method: linear", "merge_method: task_arithmetic\n  base_model: front")
    recipe = (
        recipe.replace("    - model: front\n", "")
        .replace("range: [0, 1]", "range: [0, 0.1]")
        .replace("[0, 1]", "[0, 0.1]")
    )
    (siblings / "worse.yaml").write_text(recipe.replace("evaluations: 120", "evaluations: 8, population: 4"))
    run = tmp_path / "run"
    assert main(["evolve", str(siblings / "worse.yaml"), "--output", str(run), "--debug"]) == 0
    best = json.loads((run / "result.json").read_text())["best"]
    assert best["source"] == "back"
    expected = load_file(siblings / "back" / "model.safetensors")
    assert main(["export", str(run), "--genome", "best", str(tmp_path / "again"), "--debug"]) == 0
    for folder in (run / "best", tmp_path / "again"):
        found = load_file(folder / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert "the result: back" in (run / "report.html").read_text()


def test_several_seeds_are_runs_of_their_own_and_one_page(tmp_path, capsys):
    """Each as if it had been asked for alone; what was stopped goes on; mean and spread as NumPy has them."""
    search = {"evaluations": 12, "population": 6}
    results = evolve(tmp_path, 0.3, [0, 1], PageWriter(Terminal()), seeds=3, seed=5, search=search)
    assert list(results) == ["seed_5", "seed_6", "seed_7"]
    alone = evolve(tmp_path, 0.3, [0, 1], seed=6, search=search, output=tmp_path / "alone")
    np.testing.assert_array_equal(results["seed_6"].archive.genome, alone.archive.genome)
    assert not np.array_equal(results["seed_5"].archive.genome, alone.archive.genome)
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text())["seed_7"] == results["seed_7"].values
    scores = [r.scores["best"]["search"] for r in results.values()]
    spread = f"{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f} ({min(scores):.4f} to {max(scores):.4f})"
    line = f"evolve, 3 seeds, mean ± deviation (lowest to highest): search {spread.replace('-', '−')}"
    assert line in " ".join(capsys.readouterr().out.split())
    assert line in (folder / "compare.html").read_text()
    assert 'href="seed_6/report.html"' in (folder / "report.html").read_text()
    shutil.rmtree(folder / "seed_7")
    (folder / "result.json").unlink()
    again = evolve(tmp_path, 0.3, [0, 1], seeds=3, seed=5, search=search, resume=True)
    np.testing.assert_array_equal(again["seed_7"].archive.fitness, results["seed_7"].archive.fitness)
    assert main(["compare", str(folder), str(tmp_path / "alone"), "--output", str(tmp_path / "c.html")]) == 0
    assert "evolve, 4 seeds" in capsys.readouterr().out
    assert main(["export", str(folder), "--genome", "best", str(tmp_path / "out")]) == 2
    assert "name the folder of one, such as seed_5" in capsys.readouterr().err
