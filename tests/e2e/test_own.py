"""Functions of the user's as the fitness of whole runs: searched, killed, resumed, reported."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jevomerge as jm
from jevomerge.cli import main
from jevomerge.models.own import own_model

MODULE = """
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import jevomerge as jm


def first_token(model, params, batch):
    hidden, _ = jm.apply(params, model, batch.tokens, batch.valid)
    return jax.nn.log_softmax(jm.unembed(params, model, hidden[:, -1]))[:, 2]


def small(model, params):
    return -jnp.stack([jnp.mean(jnp.abs(x)) for x in jax.tree.leaves(params)])


def like_words(texts, rows):
    words = [set(row["end"].split()) for row in rows]
    return [len(w & set(t.split())) / len(w) for t, w in zip(texts, words, strict=True)]


def small_files(folder):
    assert {"config.json", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    tensors = load_file(folder / "model.safetensors").values()
    return np.array([-np.abs(x.astype(np.float64)).mean() for x in tensors])
"""
TEXTS = "search: search.jsonl\nheldout: heldout.jsonl\nprompt: '{begin}'\nanswer: '{end}'\nmax_new_tokens: 8\n"
WAYS = {
    "batch": TEXTS + "score: {function: 'own_e2e:first_token', of: params}\n",
    "params": "score: {function: 'own_e2e:small', of: params}\n",
    "texts": TEXTS + "score: own_e2e:like_words\n",
    "folder": "score: {function: 'own_e2e:small_files', of: folder}\n",
}


def lines(folder):
    records = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "crc32")} for r in records]


SELDOM = [way for way in WAYS if way != "params"]


@pytest.fixture(scope="module", params=WAYS)
def run(request, siblings, tmp_path_factory):
    """A finished run of each way."""
    folder, way = tmp_path_factory.mktemp(request.param), request.param
    (siblings / "own_e2e.py").write_text(MODULE)
    (siblings / f"own_{way}.yaml").write_text(f"name: mine\n{WAYS[way]}")
    text = (siblings / "run.yaml").read_text().replace("task.yaml", f"own_{way}.yaml")
    config = siblings / f"run_{way}.yaml"
    config.write_text(text.replace("evaluations: 120", "evaluations: 16, population: 8"))
    assert main(["evolve", str(config), "--output", str(folder / "run"), "--debug"]) == 0
    return way, folder / "run"


@pytest.mark.parametrize("run", ["params", *(pytest.param(w, marks=pytest.mark.slow) for w in SELDOM)], indirect=True)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(run, tmp_path):
    _, folder = run
    records, result = lines(folder), json.loads((folder / "result.json").read_text())
    assert len(records) == 16
    best = records[result["best"]["evaluation"]]
    assert best["fitness"] == max(r["fitness"] for r in records) > min(r["fitness"] for r in records)
    assert best["fitness"] == pytest.approx(np.mean(best["scores"]["mine"]), abs=1e-5)
    np.testing.assert_allclose(result["best"]["search"], best["fitness"], atol=1e-6)  # what is exported scores the same

    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "result.json").unlink()
    for name in ("best", "checkpoints"):
        shutil.rmtree(again / name)
    kept = (again / "evaluations.jsonl").read_text().splitlines(keepends=True)[:11]
    (again / "evaluations.jsonl").write_text("".join(kept))
    assert main(["evolve", "--resume", str(again)]) == 0
    assert lines(again) == records
    resumed = json.loads((again / "result.json").read_text())
    assert (resumed["best"], resumed["sources"]) == (result["best"], result["sources"])


def test_the_page_claims_no_held_out_score_where_nothing_is_held_out(run):
    way, folder = run
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", (folder / "report.html").read_text()))
    apart = way in ("batch", "texts")
    assert ("Of mine nothing is held out." in page) != apart
    for claim in ("held-out split", "Held-out scores", "Won and lost"):
        assert (claim in page) == apart, claim
    card = (folder / "best" / "README.md").read_text()
    assert ("| model | search | heldout (95 % interval) |" in card) == apart
    assert f"what own_e2e:{WAYS[way].split('own_e2e:')[1].split(chr(39))[0].strip()} says of" in page


def test_a_folder_is_scored_as_the_files_of_the_export(run):
    way, folder = run
    if way not in ("folder", "params"):
        return
    tensors = load_file(folder / "best" / "model.safetensors").values()
    expected = np.mean([-np.abs(x.astype(np.float64)).mean() for x in tensors])
    result = json.loads((folder / "result.json").read_text())
    if way == "folder":
        assert result["best"]["search"] == result["best"]["heldout"] == pytest.approx(expected, rel=1e-12)
    assert result["average"]["search"] >= max(row["search"] for row in result["sources"].values())  # of absolute values


def test_evaluate_judges_by_it(run, siblings, capsys):
    way, folder = run
    values = jm.evaluate(folder / "best", siblings / f"own_{way}.yaml")
    result = json.loads((folder / "result.json").read_text())
    [[score]] = [row.values() for row in values["results"].values()]
    np.testing.assert_allclose(score, result["best"]["heldout"], atol=1e-6)


def test_models_and_functions_in_memory(tmp_path):
    """A user's own pytree and functions, without a file."""

    def apply(params, x):
        return jnp.tanh(x @ params["first"]) @ params["second"]

    rng = np.random.default_rng(0)
    a, b = (
        {k: rng.normal(size=s).astype(np.float32) for k, s in (("first", (4, 8)), ("second", (8, 1)))} for _ in "ab"
    )
    x = rng.normal(size=(32, 4)).astype(np.float32)
    y = np.asarray(apply(jax.tree.map(lambda p, q: 0.3 * p + 0.7 * q, a, b), x))
    settings = {
        "models": [a, b],
        "model": own_model(apply, a),
        "recipe": {"merge_method": "linear", "dtype": "float32"},
        "genome": {"weight": [0, 1]},
        "search": {"evaluations": 48, "population": 8},
    }

    def closeness(model, params):
        return -((model.apply(params, x) - y) ** 2)[:, 0]

    whole = jm.evolve(**settings, fitness=closeness, output=tmp_path / "whole")
    np.testing.assert_allclose(
        np.asarray(closeness(settings["model"], whole.params)).mean(), whole.scores["best"]["search"], rtol=1e-4
    )
    assert whole.scores["best"]["search"] > whole.scores["average"]["search"]
    assert whole.archive.fitness.max() > -0.05
    weights = list(whole.genome.values())
    assert weights[0] / sum(weights) == pytest.approx(0.3, abs=0.1)

    # The run folder is enough for its page; going on takes the same arguments.
    assert jm.report(tmp_path / "whole").exists()
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    (part / "result.json").unlink()
    for name in ("best", "checkpoints"):
        shutil.rmtree(part / name)
    (part / "evaluations.jsonl").write_text(
        "".join((part / "evaluations.jsonl").read_text().splitlines(keepends=True)[:21])
    )
    again = jm.evolve(**settings, fitness=closeness, output=part, resume=True)
    assert again.genome == whole.genome
    assert lines(part) == lines(tmp_path / "whole")
