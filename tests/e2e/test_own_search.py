"""Whole runs with a strategy of the user's own, and with sources as members of the first generation."""

import json
import shutil
import sys

import numpy as np
import pytest

from jevomerge.cli import main
from jevomerge.search.archive import read_archive

OWN = """
import cma

class Pycma:
    def __init__(self, num_genes, population_size, mean, sigma, seed):
        self.search = cma.CMAEvolutionStrategy(
            mean, sigma, {"bounds": [0, 1], "popsize": population_size, "seed": seed + 1, "verbose": -9}
        )
    def ask(self):
        return self.search.ask()
    def tell(self, population, fitness):
        self.search.tell(list(population), list(-fitness))
"""


@pytest.fixture
def problem(siblings, tmp_path, monkeypatch):
    """The siblings, with a module beside them."""
    shutil.copytree(siblings, tmp_path / "siblings")
    (tmp_path / "own_search.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "siblings"
    sys.modules.pop("own_search", None)


def evolved(problem, name, search, *, seed=0, old="", new=""):
    """The folder of a finished run."""
    text = (problem / "run.yaml").read_text().replace("{evaluations: 120, checkpoint_every: 2}", search)
    assert search in text
    (problem / "other.yaml").write_text(text.replace(old, new) + f"seed: {seed}\n")
    folder = problem.parent / name
    assert main(["evolve", str(problem / "other.yaml"), "--output", str(folder), "--debug"]) == 0
    return folder


def interrupted(folder, evaluations):
    """A copy of a run as if it had been killed after so many evaluations, and its snapshots lost."""
    copy = shutil.copytree(folder, folder.with_name(f"{folder.name}_killed"))
    lines = (copy / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "evaluations.jsonl").write_bytes(b"".join(lines[:evaluations]))
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "best")
    shutil.rmtree(copy / "checkpoints", ignore_errors=True)
    return copy


def records(folder):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_archive(folder / "evaluations.jsonl")]


def test_a_search_of_another_package_resumes_exactly_without_snapshots(problem):
    search = '{evaluations: 30, population: 10, strategy: "own_search:Pycma", checkpoint_every: 1}'
    folder = evolved(problem, "own", search)
    assert not (folder / "checkpoints").exists()
    assert len(records(folder)) == 30
    copy = interrupted(folder, 15)
    assert main(["evolve", "--resume", str(copy), "--debug"]) == 0
    assert records(copy) == records(folder)
    assert (copy / "best" / "model.safetensors").read_bytes() == (folder / "best" / "model.safetensors").read_bytes()
    other = evolved(problem, "seed", search, seed=1)
    assert records(other)[0]["genome"] != records(folder)[0]["genome"]


def test_sources_that_are_members_score_as_the_sources_do(problem):
    """Also with CMA-ES, which learns from what it would have drawn in their direction; the run resumes exactly."""
    search = "{evaluations: 30, population: 10, start: [sources, average], checkpoint_every: 1}"
    folder = evolved(problem, "start", search)
    result, found = json.loads((folder / "result.json").read_text()), records(folder)
    expected = [*(s["search"] for s in result["sources"].values()), result["average"]["search"]]
    assert len(set(expected)) == 3
    np.testing.assert_allclose([r["fitness"] for r in found[7:10]], expected, rtol=1e-6)
    names = json.loads((folder / "environment.json").read_text())["genes"]
    for record, chosen in zip(found[7:9], ("front", "back"), strict=True):
        assert record["genome"] == [float(name.split("/")[1] == chosen) for name in names]
    plain = records(evolved(problem, "plain", "{evaluations: 30, population: 10, checkpoint_every: 1}"))
    assert [r["genome"] for r in plain[:7]] == [r["genome"] for r in found[:7]]  # the others are drawn as always
    copy = interrupted(folder, 15)
    assert main(["evolve", "--resume", str(copy), "--debug"]) == 0
    assert records(copy) == found


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("{evaluations: 30, population: 4, start: [sources, average, sparsified]}", "needs a gene `density`"),
        ("{evaluations: 30, population: 4, start: [sources, sources]}", "give each kind of start once"),
        ("{evaluations: 30, population: 4, start: [source]}", "search.start.0"),
        ('{evaluations: 30, strategy: "own_search:None"}', "cannot be imported"),
        ("{evaluations: 30, strategy: GuidedES}", "wants the gradient"),
        ('{evaluations: 30, strategy: "own_search:Pycma", examples_per_generation: 4}', "says `remembers = False`"),
        ('{evaluations: 30, strategy: "own_search:Pycma", racing: exact}', "leave racing out"),
    ],
)
def test_what_cannot_work_is_refused_before_a_weight_is_read(problem, search, message, capsys):
    text = (problem / "run.yaml").read_text().replace("{evaluations: 120, checkpoint_every: 2}", search)
    (problem / "other.yaml").write_text(text)
    assert main(["evolve", str(problem / "other.yaml"), "--output", str(problem / "run")]) != 0
    assert message in capsys.readouterr().err
    assert not (problem / "run").exists()


def test_a_first_generation_has_room_for_what_it_is_given(problem, capsys):
    """Two sources and their average in a generation of 2."""
    text = (problem / "run.yaml").read_text()
    search = "{evaluations: 30, population: 2, strategy: snes, start: [sources, average]}"
    (problem / "other.yaml").write_text(text.replace("{evaluations: 120, checkpoint_every: 2}", search))
    assert main(["evolve", str(problem / "other.yaml"), "--output", str(problem / "run")]) != 0
    assert "set search.population to 3 or more" in capsys.readouterr().err
