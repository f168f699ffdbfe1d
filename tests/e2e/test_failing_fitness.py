"""Fitnesses that raise, hang or are no number: a run goes on, or stops with the reason and can be continued."""

import json
import re
import shutil
import signal

import pytest

from jevomerge.cli import main
from jevomerge.search.archive import read_archive
from tests.e2e.test_faults import command, configure, outcome, problem, resumed, stopped  # noqa: F401


@pytest.fixture
def ailing(problem, tmp_path):  # noqa: F811
    """A short search with the merge method of `ailing.py`."""
    from tests.e2e import ailing

    folder = shutil.copytree(problem, tmp_path / "ailing")
    config = folder / "run.yaml"
    text = config.read_text().replace("merge_method: linear", f"merge_method: {ailing.AILING.name}")
    text = text.replace("layers_per_group: 2", "layers_per_group: 5")
    config.write_text(text.replace("evaluations:", "population: 8, evaluations:"))
    return configure(config, evaluations=24)


def test_a_fitness_that_raises(ailing, tmp_path, capsys):
    """Also where the other devices of its group do not fail."""
    run = tmp_path / "run"
    process = command(
        "evolve", ailing, "--output", run, module="tests.e2e.ailing", AILMENT="raises", JAX_NUM_CPU_DEVICES="4"
    )
    _, message = process.communicate()
    assert process.returncode == 1
    count = len(read_archive(run / "evaluations.jsonl"))
    group = " and ".join(str(m) for m in range(count % 8, count % 8 + 4))
    assert f"jevomerge: generation {count // 8}, member {group}: task stories: " in message
    assert "ArithmeticError: the first weight is too large for me" in message
    assert f"continue with `jevomerge evolve --resume {run}`" in message
    resumed(run, capsys)  # in this process nothing ails
    assert main(["evolve", str(ailing), "--output", str(tmp_path / "well")]) == 0
    assert outcome(run) == outcome(tmp_path / "well")


@pytest.mark.parametrize("ailment", ["nan", "infinite"])
def test_a_fitness_that_is_no_number(ailment, ailing, tmp_path, monkeypatch):
    monkeypatch.setenv("AILMENT", ailment)
    assert main(["evolve", str(ailing), "--output", str(tmp_path / "run"), "--debug"]) == 0
    records = read_archive(tmp_path / "run" / "evaluations.jsonl")
    assert not re.search("NaN|Infinity", (tmp_path / "run" / "evaluations.jsonl").read_text())  # which are no JSON
    failed = [r["fitness"] is None for r in records]
    assert any(failed)
    assert not all(failed)
    best = json.loads((tmp_path / "run" / "result.json").read_text())["best"]
    assert records[best["evaluation"]]["fitness"] == max(r["fitness"] for r in records if r["fitness"] is not None)


@pytest.mark.parametrize("strategy", ["cma_es", pytest.param("de", marks=pytest.mark.slow)])
def test_a_search_in_which_all_fails(strategy, ailing, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AILMENT", "nan")
    text = ailing.read_text().replace("range: [0, 1]", "range: [0.6, 1]")
    ailing.write_text(text.replace("evaluations: 24", f"evaluations: 24, strategy: {strategy}"))
    assert "no candidate has a fitness" in stopped(capsys, 1, "evolve", ailing, "--output", tmp_path / "run")
    records = read_archive(tmp_path / "run" / "evaluations.jsonl")
    assert len(records) == 24
    assert all(r["fitness"] is None for r in records)
    assert len({tuple(r["genome"]) for r in records}) == len(records)  # it went on looking elsewhere


def test_a_fitness_that_hangs(ailing, tmp_path, capsys):
    run = tmp_path / "run"
    ailing.write_text(ailing.read_text().replace("evaluations: 24", "evaluations: 24, time_limit: 8"))
    process = command("evolve", ailing, "--output", run, module="tests.e2e.ailing", AILMENT="hangs")
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    count = len(read_archive(run / "evaluations.jsonl"))
    assert (
        f"jevomerge: generation {count // 8}, member {count % 8}: not scored within search.time_limit, 8.0 s\n" in err
    )
    resumed(run, capsys)  # in this process nothing ails
    assert len(read_archive(run / "evaluations.jsonl")) == 24
