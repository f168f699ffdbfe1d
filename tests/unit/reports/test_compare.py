"""`jevomerge compare`: its numbers against scipy's, its curves against the files, and what it cannot compare."""

import json
import re

import numpy as np
import pytest
import yaml
from scipy import stats

from jevomerge.cli import main
from jevomerge.reports.charts import steps
from jevomerge.reports.compare import find_runs, make_entries, read_runs
from jevomerge.reports.record import read_record, read_run_folder
from jevomerge.run.compare import compare
from jevomerge.search.archive import Archive
from tests.unit.reports.test_page import Page, outside

EXAMPLES = 120
TASK = {"name": "sums", "search": "s.jsonl", "heldout": "h.jsonl", "prompt": "{q}", "answer": "{a}", "score": "match"}


def write_run(folder, seed, *, name="by hand", heldout="d1", finished=True, tokens=True, task=None):
    """A run folder of three generations of four, whose models do not exist."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = {
        "name": name,
        "recipe": {"merge_method": "linear", "models": [{"model": "/gone/a"}, {"model": "/gone/b"}]},
        "genome": {"weight": [0, 1]},
        "tasks": [TASK | (task or {})],
        "search": {"evaluations": 12, "population": 4, "strategy": "snes"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "genes": ["model/a/weight", "model/b/weight"],
        "population": 4,
        "data": {"search": {"sums": "s1"}, "heldout": {"sums": heldout}},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    with Archive(folder / "evaluations.jsonl") as archive:
        for i in range(12 if finished else 7):
            line = {"generation": i // 4, "member": i % 4, "genome": rng.random(2).tolist(), "scores": {}}
            line |= {"fitness": None if i == 1 else float(rng.random()), "tie_break": 0.0, "seconds": 0.25 + i}
            line |= {"tokens": {"prompt": 100 + i, "answer": 10}} if tokens else {}
            archive.append([line])
        best = max(archive.records, key=lambda r: r["fitness"] or 0)
    source = {"search": 0.25, "heldout": 0.2, "scores": {"sums": [0] * EXAMPLES}, "texts": {}}
    scores = (rng.random(EXAMPLES) < 0.3 + 0.1 * seed).astype(int).tolist()
    won = {"search": best["fitness"], "heldout": float(np.mean(scores)), "scores": {"sums": scores}, "texts": {}}
    examples = {"sums": [{"prompt": f"q{i}", "answer": "x"} for i in range(EXAMPLES)]}
    known = {"examples": examples, "sources": {"a": source}, "average": None, "best": won if finished else None}
    (folder / "heldout.json").write_text(json.dumps(known))
    if finished:
        outcome = {"search": won["search"], "heldout": won["heldout"], "genome": {}}
        number = 4 * best["generation"] + best["member"]
        result = {"sources": {"a": {"search": 0.25, "heldout": 0.2}}, "average": None, "export": "best"}
        result |= {"best": outcome | {"evaluation": number}, "evaluations": 12, "seconds": 99.0}
        (folder / "result.json").write_text(json.dumps(result))
    return np.array(scores)


def test_differences_are_paired_as_scipy_does_it(tmp_path):
    first, second = (write_run(tmp_path / str(seed), seed) for seed in (1, 2))
    a, b = make_entries(read_runs(find_runs([tmp_path / "1", tmp_path / "2"])))
    options = {"n_resamples": 9999, "method": "percentile", "rng": np.random.default_rng(1)}
    alone = stats.bootstrap((second,), np.mean, **options).confidence_interval
    np.testing.assert_allclose(b.heldout[1:], alone, atol=0.012)
    paired = stats.bootstrap((second.astype(float) - first,), np.mean, **options).confidence_interval
    np.testing.assert_allclose(b.difference[1:], paired, atol=0.015)
    assert (a.difference, b.difference.value) == (None, second.mean() - first.mean())
    assert (a.tokens, a.record.seconds.sum()) == ({"search": sum(100 + i + 10 for i in range(12))}, 12 * 0.25 + 66)


def test_curves_are_those_of_the_files(tmp_path):
    write_run(tmp_path / "$1$ <b>", 1, name="one")
    write_run(tmp_path / "2", 2, name="two", finished=False)
    record = read_record(tmp_path / "$1$ <b>", read_run_folder(tmp_path / "$1$ <b>"))
    fitness = [np.nan if e["fitness"] is None else e["fitness"] for e in record.evaluations]
    made = steps(record)
    assert [row["best"] for row in made] == [np.nanmax(fitness[: i + 1]) for i in range(12)]
    np.testing.assert_allclose([row["s"] for row in made], [sum(0.25 + k for k in range(i + 1)) for i in range(12)])
    assert [row["t"] for row in made] == [sum(110 + k for k in range(i + 1)) for i in range(12)]
    page = tmp_path / "page.html"
    compare([tmp_path / "$1$ <b>", tmp_path / "2"], page)
    (chart,) = Page(page.read_text()).charts.values()
    data = chart["datasets"]
    drawn = [row for row in data["runs"] if row["run"] == "one"]
    assert [row["n"] for row in drawn] == [
        i + 1 for i in range(12) if i in (0, 11) or made[i]["best"] > made[i - 1]["best"]
    ]
    assert drawn[-1]["best"] == pytest.approx(np.nanmax(fitness), rel=1e-5)
    assert data["references"] == [{"name": "a", "search": 0.25}]
    assert data["bands"] == []
    assert chart["params"][0]["bind"]["options"] == ["evaluations", "seconds of search", "tokens"]


def test_seeds_are_shown_with_their_mean_and_range(tmp_path):
    """Also while they go on; against evaluations, seconds and tokens."""
    for seed in (1, 2, 3):
        write_run(tmp_path / str(seed), seed, finished=seed < 3)
        config = yaml.safe_load((tmp_path / str(seed) / "config.yaml").read_text())
        (tmp_path / str(seed) / "config.yaml").write_text(yaml.safe_dump(config | {"seed": seed}))
    compare([tmp_path / str(seed) for seed in (1, 2, 3)], tmp_path / "page.html")
    (chart,) = Page((tmp_path / "page.html").read_text()).charts.values()
    bands = chart["datasets"]["bands"]
    assert {row["run"] for row in bands} == {"by hand, 3 seeds"}
    for axis, field in (("evaluations", "n"), ("tokens", "t")):
        rows = [row for row in bands if row["axis"] == axis]
        assert len(rows) == 7  # the third has gone so far
        courses = [
            steps(record) for record in read_runs(find_runs([tmp_path / str(seed) for seed in (1, 2, 3)])).values()
        ]
        at = np.array([[r["best"] for r in course[:7]] for course in courses])
        assert [row["x"] for row in rows] == [row[field] for row in courses[0][:7]]
        np.testing.assert_allclose([row["mean"] for row in rows], at.mean(0), rtol=1e-5)
        np.testing.assert_allclose([row["low"] for row in rows], at.min(0), rtol=1e-5)
        np.testing.assert_allclose([row["high"] for row in rows], at.max(0), rtol=1e-5)


def test_a_table_and_a_page(tmp_path, monkeypatch, capsys):
    """Runs of the same name, one unfinished, one of an earlier version, one judged by other examples."""
    monkeypatch.chdir(tmp_path)
    first, second = write_run(tmp_path / "one", 1), write_run(tmp_path / "two", 2)
    write_run(tmp_path / "begun", 3, name="begun", finished=False)
    write_run(tmp_path / "other", 4, name="other", heldout="d2", tokens=False)
    write_run(tmp_path / "stricter", 5, name="stricter", task={"weight": 2.0, "score": "likelihood"})
    runs = ["one", "two", "begun", "other", "stricter"]
    assert main(["compare", *runs]) == 0
    said = capsys.readouterr().out
    rows = {cells[1]: cells for line in said.splitlines() if len(cells := re.split(r" *│ *", line)) > 5 and cells[1]}
    assert rows.keys() == set(runs)
    assert rows["two"][2:6] == ["snes", "2", "12", "69"]
    assert rows["two"][8:10] == [f"{second.mean():.4f}", f"{second.mean() - first.mean():+.4f}".replace("-", "−")]
    assert rows["one"][6] == "1\u202f386"
    assert (rows["begun"][8:10], rows["other"][6], rows["other"][9]) == (["–", "–"], "–", "–")
    assert "note: begun: not finished, 7 of about 12 evaluations" in said
    assert "note: other, stricter: judged by other tasks or held-out examples than one" in said
    page = (tmp_path / "compare.html").read_text()
    assert not outside(page)
    assert len(Page(page).charts) == 2  # for both kinds of fitness on the search split
    assert "Fitness: one, two, begun, other" in page
    assert f"{second.mean():.4f}" in page
    assert main(["compare", *runs[:2]]) == 0  # a page is replaced, nothing else is


def test_estimates_are_said_to_be_some(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, 1, name=name)
    config = yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())
    config["search"]["anchors"] = {"examples": 2}
    (tmp_path / "b" / "config.yaml").write_text(yaml.safe_dump(config))
    compare([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html")
    assert "b: the curves are of estimates from anchors" in (tmp_path / "page.html").read_text()


def test_stages_are_runs_and_what_is_none_is_refused(tmp_path, capsys):
    for name in ("weights", "flow"):
        write_run(tmp_path / "staged" / name, 1, name=name)
    own = yaml.safe_load((tmp_path / "staged" / "flow" / "config.yaml").read_text())
    shared = {"tasks": own.pop("tasks"), "name": "staged"}
    stages = [own | {"name": n} for n in ("weights", "flow", "later")]
    (tmp_path / "staged" / "config.yaml").write_text(yaml.safe_dump(shared | {"stages": stages}))
    write_run(tmp_path / "new", 2, name="new")
    runs = read_runs(find_runs([tmp_path / "staged", tmp_path / "new", tmp_path / "new"]))
    assert list(runs) == ["staged/weights", "staged/flow", "new"]
    entries = compare([tmp_path / "staged"], tmp_path / "page.html")
    assert [e.name for e in entries] == ["staged/weights", "staged/flow"]
    assert len(Page((tmp_path / "page.html").read_text()).charts) == 1
    (tmp_path / "mine.html").write_text("mine")
    refusals = {
        (tmp_path / "new",): "give two runs or more",
        (tmp_path / "new", tmp_path): "is not a run: it has no config.yaml",
        (tmp_path / "new", tmp_path / "staged", "--output", tmp_path / "mine.html"): "is no report",
    }
    for arguments, expected in refusals.items():
        assert main(["compare", *map(str, arguments)]) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("evaluations", [0, 1])
def test_runs_that_have_just_begun(evaluations, tmp_path):
    for name in "ab":
        write_run(tmp_path / name, 1, name=name, finished=False)
        log = tmp_path / name / "evaluations.jsonl"
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:evaluations]))
    a, _ = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html")
    assert (a.search is None, a.heldout, a.tokens) == (evaluations == 0, None, {"search": 110} if evaluations else {})
    assert len(Page((tmp_path / "page.html").read_text()).charts) == evaluations
