"""Racing in a whole run: less is scored, and the search is the same."""

import json

import numpy as np
import pytest
import yaml

import jevomerge as jm
from jevomerge.cli import main
from jevomerge.observers.observer import SILENT
from tests.e2e.test_hosts import done, finish, launch, lines


@pytest.fixture(scope="module")
def runs(siblings, tmp_path_factory):
    """One search of a single device without and with racing, compiled as users have it, for speed."""
    folder, found = tmp_path_factory.mktemp("racing"), {}
    text = (siblings / "run.yaml").read_text().split("search:")[0]
    text = text.replace("range: [0, 1]", "range: [0, 2]").replace(
        "  dtype:", "  parameters: {normalize: false}\n  dtype:"
    )
    for rule in ("null", "exact"):
        config = siblings / f"racing-{rule}.yaml"
        config.write_text(f"{text}search: {{strategy: snes, evaluations: 72, population: 12, racing: {rule}}}\n")
        done(
            finish(launch([config, "--output", folder / rule], 1, lambda _: {"XLA_FLAGS": ""}, devices=1, flags=False))
        )
        found[rule] = folder / rule
    return found


@pytest.mark.slow  # compiled for speed, as for users: the last bits of both must be the same
def test_exact_racing_leaves_the_search_as_it_was(runs):
    whole, raced = (lines(runs[rule]) for rule in ("null", "exact"))
    stopped = [r for r in raced if "stopped" in r]
    assert len(stopped) > 5
    # More batches, each smaller: that rounds differently, and moves the search by as much.
    np.testing.assert_allclose([r["genome"] for r in raced], [r["genome"] for r in whole], atol=1e-4)
    fitness = np.array([[r["fitness"] for r in rows] for rows in (whole, raced)])
    untouched = np.array(["stopped" not in r for r in raced])
    np.testing.assert_allclose(fitness[1, untouched], fitness[0, untouched], atol=1e-4)
    assert (fitness[1, ~untouched] >= fitness[0, ~untouched] - 1e-4).all()  # a bound is what it says
    results = [json.loads((runs[rule] / "result.json").read_text())["best"] for rule in ("null", "exact")]
    assert results[0]["evaluation"] == results[1]["evaluation"]
    # What was not scored is not there.
    for record in stopped:
        scored = [x for x in record["scores"]["stories"] if x is not None]
        assert len(scored) == record["stopped"] < 16
        assert record["tokens"]["prompt"] < whole[0]["tokens"]["prompt"]  # nor does it cost anything


def test_strategies_that_need_every_rank_refuse_it(siblings, tmp_path, capsys):
    text = (siblings / "run.yaml").read_text().replace("search: {", "search: {racing: exact, ")
    (siblings / "refused.yaml").write_text(text)
    assert main(["evolve", str(siblings / "refused.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert "cma_es learns from the rank of every candidate" in capsys.readouterr().err


@pytest.mark.slow
def test_texts_by_beams_race(siblings, tmp_path):
    """What stops a candidate are bounds of its scores, however its texts come about."""
    config = yaml.safe_load((siblings / "run.yaml").read_text())
    task = yaml.safe_load((siblings / "task.yaml").read_text())
    written = {"score": "generation", "pattern": "^( ?[a-z]+)", "max_new_tokens": 6}
    written["decode"] = {"beams": 3, "repetition_penalty": 1.2}
    files = {split: str(siblings / f"{split}.jsonl") for split in ("search", "heldout")}
    models = [{"model": str(siblings / name)} for name in ("front", "back")]
    config |= {"recipe": {**config["recipe"], "models": models}, "tasks": [{**task, **written, **files}]}
    found = []
    for rule in (None, "exact"):
        config["search"] = {"strategy": "snes", "evaluations": 24, "population": 6, "racing": rule}
        run = tmp_path / str(rule)
        jm.evolve(config, output=run, observer=SILENT)
        found.append((lines(run), json.loads((run / "result.json").read_text())["best"]))
    (whole, best), (raced, same) = found
    np.testing.assert_allclose([r["genome"] for r in raced], [r["genome"] for r in whole], atol=1e-4)
    assert best["evaluation"] == same["evaluation"]
    assert best["heldout"] == same["heldout"]
