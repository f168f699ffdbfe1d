"""The report: its statistics, and the page of a run made by hand."""

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from jevomerge.cli import main
from jevomerge.config import RunConfig
from jevomerge.errors import InputError
from jevomerge.fitness.schema import HarnessTask, Task
from jevomerge.genome.route import PathSpace, hops_of
from jevomerge.reports import render
from jevomerge.reports.heldout import BEST, bootstrap, standings, wins_and_losses
from jevomerge.reports.look import svg
from jevomerge.reports.page import write_report
from jevomerge.reports.path_picture import path_figure
from jevomerge.reports.record import read_paths, read_record, read_run_folder
from jevomerge.reports.words import judged_by
from jevomerge.search.archive import Archive, read_archive

# --- statistics ---------------------------------------------------------------------------------------------


def task(name="sums", score="generation", weight=1.0):
    extract = "exact" if score == "generation" else None
    data = {"search": "s.jsonl", "heldout": "h.jsonl", "prompt": "{q}", "answer": "{a}"}
    return Task(name=name, score=score, weight=weight, extract=extract, **data)


def model(heldout, scores, texts=None):
    return {"search": 0.0, "heldout": heldout, "scores": scores, "texts": texts or {}}


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(0)
    parent = rng.random(120) < 0.5
    best = parent ^ (rng.random(120) < 0.25)
    heldout = {
        "sources": {"a": model(parent.mean(), {"sums": parent.tolist()})},
        "average": None,
        "best": model(best.mean(), {"sums": best.tolist()}),
    }
    source, result = standings(heldout, [task()])
    assert (source.name, result.name, source.difference) == ("a", BEST, None)
    options = {"n_resamples": 9999, "method": "percentile", "rng": np.random.default_rng(1)}
    alone = stats.bootstrap((best,), np.mean, **options).confidence_interval
    np.testing.assert_allclose(result.heldout[1:], alone, atol=0.012)
    # Paired: the interval of the difference is that of the examples' differences, narrower than unpaired.
    paired = stats.bootstrap((best.astype(float) - parent,), np.mean, **options).confidence_interval
    np.testing.assert_allclose(result.difference[1:], paired, atol=0.012)
    assert result.difference.value == best.mean() - parent.mean()
    assert standings(heldout, [task()]) == [source, result]  # seeded


def test_examples_are_drawn_within_weighted_tasks():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(1, 200)), 5 + 3 * rng.normal(size=(1, 50))
    fitness = bootstrap({"one": one, "two": two}, {"one": 1.0, "two": 3.0})
    np.testing.assert_allclose(fitness.mean(), 0.25 * one.mean() + 0.75 * two.mean(), atol=0.02)
    error = np.hypot(0.25 * one.std() / np.sqrt(200), 0.75 * two.std() / np.sqrt(50))
    np.testing.assert_allclose(fitness.std(), error, rtol=0.05)


def test_won_is_what_no_parent_solves():
    scores = {"a": [0, 1, 0, 1, None], "b": [0, 0, 0, 1, 0], BEST: [1, 0, 0, 1, 1]}
    heldout = {
        "examples": {"sums": [{"prompt": f"q{i}", "answer": f"{i}"} for i in range(5)]},
        "sources": {n: model(0.5, {"sums": scores[n]}, {"sums": [f"{n}{i}" for i in range(5)]}) for n in "ab"},
        "average": None,
        "best": model(0.5, {"sums": scores[BEST]}, {"sums": [f"best{i}" for i in range(5)]}),
    }
    cases = wins_and_losses(heldout, task())
    assert [c.prompt for c in cases.won] == ["q0", "q4"]  # a broken score is nobody's
    assert [c.prompt for c in cases.lost] == ["q1"]
    assert (cases.num_won, cases.num_lost, cases.num_examples) == (2, 1, 5)
    assert [(a.model, a.text) for a in cases.lost[0].answers] == [("a", "a1"), ("b", "b1"), (BEST, "best1")]
    assert wins_and_losses(heldout | {"sources": {}}, task()) is None


def test_right_and_wrong_are_said_of_what_can_be_so():
    """A loss of the harness, which is negated, or a ROUGE is more or less."""
    loss = HarnessTask.model_validate({"harness": {"task": "h", "metric": "distance"}})
    rouge = task().model_copy(update={"compare": "rouge_l_ja"})
    scored = {
        "accuracy": (loss, [0.0, 1.0], [1.0, None]),
        "loss": (loss, [-0.5, -1.0], [-0.25, -1.0]),
        "whole losses": (loss, [-1.0, -1.0], [0.0, -1.0]),
        "rouge": (rouge, [0.0, 0.0], [1.0, 0.0]),
        "likelihood": (task(score="likelihood"), [0.0, 0.0], [0.0, 0.0]),
        "match": (task(score="match"), [0.0, 0.0], [0.0, 1.0]),
    }
    said = {}
    for name, (judge, source, best) in scored.items():
        models = {"sources": {"a": model(0, {judge.name: source})}, "best": model(0, {judge.name: best})}
        examples = {"examples": {judge.name: [{"prompt": "q", "answer": "x"}] * 2}}
        said[name] = wins_and_losses(models | examples, judge).right_or_wrong
    assert [name for name, right_or_wrong in said.items() if right_or_wrong] == ["accuracy", "match"]


def test_a_fitness_in_words(tmp_path):
    harness = {"harness": {"task": "h", "metric": "distance"}, "weight": 3}
    tasks = [task().model_dump(), task(name="more").model_dump(), harness]
    config = {"name": "x", "path": {"models": ["a"]}, "tasks": tasks}
    said = judged_by(RunConfig.model_validate(config))
    assert said.startswith("Fitness: the weighted mean score of sums (weight 1), more (weight 1) and h (weight 3). ")
    assert (
        "An example of sums and more scores 1 if the answer in the generated text is the reference's, else 0; " in said
    )
    assert said.endswith("one of h scores distance in lm-evaluation-harness, negated where lower is better.")


def test_likelihoods_are_won_by_the_largest_margin():
    scores = {"a": [-1.0] * 30, BEST: np.linspace(-2, 0, 30).tolist()}
    heldout = {
        "examples": {"sums": [{"prompt": f"q{i}", "answer": "x"} for i in range(30)]},
        "sources": {"a": model(-1, {"sums": scores["a"]})},
        "average": None,
        "best": model(-1, {"sums": scores[BEST]}),
    }
    cases = wins_and_losses(heldout, task(score="likelihood"))
    assert [c.prompt for c in cases.won] == [f"q{i}" for i in range(29, 19, -1)]
    assert [c.prompt for c in cases.lost] == [f"q{i}" for i in range(10)]
    assert (cases.num_won, cases.num_lost) == (15, 15)


# --- figures in a page ---------------------------------------------------------------------------------------


def test_figures_are_safe_in_a_page():
    """Any model name: markup, mathematics, letters that the measuring font lacks."""
    name = "<script>alert(1)</script> $x$ 日本語"
    text = str(svg(path_figure([name], [2], hops_of([(name, 0, 2)])), f'"{name}"'))
    assert "<script" not in text
    assert "$x$ 日本語" in text
    assert "var(--ink)" in text
    assert not outside(text)


class Page(HTMLParser):
    """What is on a page: its scripts, the charts that they draw, tables, links, and what it would fetch or run."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.charts, self.tables, self.links, self.sections, self.outside = [], {}, {}, [], [], []
        self.policy, self._chart, self._table, self._script, self._cell = "", "", "", None, None
        self.feed(text)
        self.outside += re.findall(r"@import|url\((?!#)[^)]*", re.sub(r"(?s)<script.*?</script>", "", text))

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        links = [v for k, v in attributes if k in ("src", "xlink:href", "srcset", "data", "action", "poster")]
        self.outside += [v for v in links if not v.startswith(("#", "data:image/png", "data:image/jpeg"))]
        self.outside += [k for k, _ in attributes if k.startswith("on")]
        self.outside += [tag] * (tag in ("link", "iframe", "object", "embed", "base"))
        if tag == "meta" and own.get("http-equiv") == "Content-Security-Policy":
            self.policy = own["content"]
        elif tag == "script":
            self._script = own.get("type", "")
        elif tag == "h2":
            self.sections.append(own["id"])
        elif tag == "a":
            self.links.append(own["href"])
        elif tag == "table":
            self._table = own.get("id", f"table {len(self.tables)}")
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        if own.get("class") == "chart":
            self._chart = own["id"]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self._table][-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data):
        if self._script == "application/json":
            self.charts[self._chart] = json.loads(data)
        elif self._script is not None:
            self.scripts.append(data)
        elif self._cell is not None:
            self._cell += data
        self._script = None


def outside(text):
    """What a page would fetch from elsewhere, or run that its policy does not name or that is not ours."""
    page, ours = Page(text), {path.read_text() for path in Path(render.__file__).parent.glob("*.js")}
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts]
    expected = " ".join(["script-src", *(f"'sha256-{h}'" for h in hashes), "'unsafe-eval'"])
    refused = [] if not page.policy or page.policy.startswith("default-src 'none'; img-src data:;") else [page.policy]
    unnamed = [] if not page.scripts or page.policy.endswith(expected) else ["a script that is not in the policy"]
    return page.outside + refused + unnamed + [s for s in page.scripts if s not in ours]


def test_outside_finds_what_is_outside():
    assert outside('<img src="http://x/y.png"><a href="#z">') == ["http://x/y.png"]
    assert outside("<script>1</script>") == ["a script that is not in the policy", "1"]
    assert outside("<style>a { background: url(http://x) }</style>") == ["url(http://x"]


# --- the page -----------------------------------------------------------------------------------------------

PROMPT = "<script>alert('x')</script> & 日本"


@pytest.fixture
def run(tmp_path):
    """A finished joint search over one merged model and `other`, whose models do not exist."""
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    recipe = {"merge_method": "linear", "models": [{"model": "/gone/a"}, {"model": "/gone/b"}]}
    config = {
        "name": "by <b>hand",
        "recipe": recipe,
        "genome": {"weight": {"range": [0, 2]}},
        "path": {"models": ["/gone/other"], "repeats": 2, "scaling": "per_hop"},
        "tasks": [task().model_dump(mode="json")],
        "search": {"evaluations": 40, "population": 8},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    space = PathSpace(("merged", "other"), (3, 2), 2)
    genes = ["model/a/weight", "model/b/weight", *space.names]
    environment = {"genes": genes, "population": 8, "packages": {"jax": "0"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    rng = np.random.default_rng(0)
    with Archive(folder / "evaluations.jsonl") as archive:
        for i in range(40):
            record = {"generation": i // 8, "member": i % 8, "genome": rng.random(len(genes)).tolist()}
            fitness = None if i == 3 else float(np.round(rng.random(), 4))
            archive.append([record | {"fitness": fitness, "tie_break": 0.0, "seconds": 0.5, "scores": {}}])
        best = max(archive.records, key=lambda r: r["fitness"] or 0)
    sources = {n: model(h, {"sums": s}, {"sums": [PROMPT] * 4}) for n, h, s in (("a", 0.25, [1, 0, 0, 0]),)}
    won = model(0.75, {"sums": [0, 1, 1, 1]}, {"sums": ["x" * 2000] * 4})
    heldout = {"examples": {"sums": [{"prompt": PROMPT, "answer": "1"}] * 4}, "sources": sources, "average": None}
    (folder / "heldout.json").write_text(json.dumps(heldout | {"best": won}))
    number = best["generation"] * 8 + best["member"]
    result = {
        "sources": {"a": {"search": 0.125, "heldout": 0.25}},
        "average": None,
        "best": {"search": best["fitness"], "heldout": 0.75, "genome": {}, "evaluation": number},
        "evaluations": 40,
        "seconds": 23.0,
        "export": "best",
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "best" / "path.txt").write_text("merged:0 1\n")
    return folder


def test_the_page_says_what_the_files_say(run):
    page = write_report(run).read_text()
    result = json.loads((run / "result.json").read_text())
    assert page.count(f'<div class="value">{result["best"]["search"]:.4f}') == 1
    assert page.count('<div class="value">0.7500') == 1
    assert "40 in 5 generations" in page
    assert "<td>2.00</td>" in page  # evaluations per second
    assert "1 (not a number)" in page
    assert "gets 3 right that no source does, and 1 wrong that some source gets right" in page
    assert "Fitness: the mean score of sums. An example scores 1 if the answer in the generated text is" in page
    assert "+0.5000" in page  # against the best source
    assert "merged:0 1" in page
    assert page.count("<svg ") == 1  # the path
    charts = Page(page).charts
    assert {name.split("-")[0] for name in charts} == {"fitness", "coefficients", "genes", "parallel", "slots"}
    evaluations = read_archive(run / "evaluations.jsonl")
    drawn = charts["fitness"]["datasets"]
    assert [row["fitness"] for row in drawn["candidates"]] == [e["fitness"] for e in evaluations]
    assert drawn["references"] == [{"series": "a", "search": 0.125}]
    assert (run / "path.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    record = read_record(run, read_run_folder(run))
    champions = [max(g, key=lambda i: -1 if np.isnan(f := record.fitness[i]) else f) for g in record.generations]
    lengths = read_paths(record).length[champions]
    cells = re.findall(r'<td class="n">(\d+)</td>\s*<td class="share">', page)
    assert [int(c) for c in cells] == lengths.tolist()


def test_the_headline_and_the_contents(run):
    page = Page(write_report(run).read_text())
    assert [link.removeprefix("#") for link in page.links] == page.sections
    assert page.sections[:2] == ["fitness", "path"]
    assert "75 % (3 of 4), 50 points above the best source" in (run / "report.html").read_text()
    result = json.loads((run / "result.json").read_text())
    result["best"] |= {"source": "a", "heldout": 0.25}
    (run / "result.json").write_text(json.dumps(result))
    assert "(3 of 4): a itself, no candidate was better" in write_report(run).read_text()
    (run / "result.json").unlink()
    fitness = read_record(run, read_run_folder(run)).fitness
    (run / "heldout.json").unlink()
    assert f">{100 * np.nanmax(fitness):.0f} %</p>" in write_report(run).read_text()


def test_candidates_have_commands_that_export_them(run, capsys):
    header, *rows = Page(write_report(run).read_text()).tables["table-candidates"]
    assert header == ["evaluation", "generation", "fitness", "as a model folder"]
    evaluations = read_archive(run / "evaluations.jsonl")
    known = sorted((e["fitness"] for e in evaluations if e["fitness"] is not None), reverse=True)
    assert [row[2] for row in rows] == [f"{fitness:.4f}" for fitness in known]
    for number, generation, fitness, command in rows:
        e = evaluations[int(number)]
        assert (e["generation"] + 1, f"{e['fitness']:.4f}") == (int(generation), fitness)
        words = shlex.split(command)
        assert words == ["jevomerge", "export", str(run), "--genome", number, f"by <b>hand_{number}"]
    assert main([*words[1:4], "x", "out"]) == 2  # a command that is understood
    assert "`x` is neither `best` nor a number" in capsys.readouterr().err


def test_the_page_says_how_else_texts_were_judged_and_how_candidates_came_about(run):
    assert "judged otherwise" not in write_report(run).read_text()
    heldout = json.loads((run / "heldout.json").read_text())
    heldout["best"]["also"] = {"sums": {"sakana": 0.6875}}
    (run / "heldout.json").write_text(json.dumps(heldout))
    records = read_archive(run / "evaluations.jsonl")
    (run / "evaluations.jsonl").unlink()
    with Archive(run / "evaluations.jsonl") as archive:
        archive.append([r | {"estimate": "mean"} | ({"refined": [0, 1]} if r["member"] == 7 else {}) for r in records])
    page = write_report(run).read_text()
    table = page[page.index("judged otherwise") :]
    assert re.findall(r'<th class="n">(.*?)</th>', table)[:2] == ["exact (counts)", "sakana"]
    rows = [re.findall(r">([^<]+)<", row) for row in re.findall(r"<tr.*?</tr>", table)[1:3]]
    assert rows == [["a", "0.2500", "–"], [BEST, "0.7500", "0.6875"]]  # the source was not judged so
    assert '<td class="muted">refined by gradients</td><td>5</td>' in page
    assert '<td class="muted">estimated from anchors</td><td>40; ' in page


def test_a_score_that_is_more_or_less_is_written_out(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["tasks"][0]["compare"] = "rouge_l_ja"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    heldout = json.loads((run / "heldout.json").read_text())
    heldout["best"]["scores"]["sums"] = [0.625, 1, 1, 1]
    heldout["best"]["texts"]["sums"][0] = " \n"
    (run / "heldout.json").write_text(json.dumps(heldout))
    page = write_report(run).read_text()
    assert "scores higher than every source on 3, and lower than some source on 1. A score is ROUGE-L" in page
    assert "✓" not in page
    assert re.search(r'<td class="n">\s*0.625\s*</td>\s*<td class="text"><span class="muted">nothing<', page)


def test_the_page_needs_nothing_and_runs_only_what_is_ours(run):
    page = write_report(run).read_text()
    assert not outside(page)
    assert "<b>hand" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; 日本" in page
    assert "x" * 361 not in page  # long texts are cut
    assert len(page) < 900_000  # of which Vega has 772 000


def test_pictures_stand_beside_questions(run):
    heldout = json.loads((run / "heldout.json").read_text())
    heldout["examples"]["sums"][0] |= {"prompt": "<image> or <image>, or <image>?", "pictures": ["AAAA", '"><script>']}
    (run / "heldout.json").write_text(json.dumps(heldout))
    page = write_report(run).read_text()
    assert page.count('<img src="data:image/jpeg;base64,AAAA" alt="picture 1">') == 1
    assert "and 1 more" in page
    assert not outside(page)
    heldout["examples"]["sums"][0]["pictures"] = "AAAA"
    (run / "heldout.json").write_text(json.dumps(heldout))
    with pytest.raises(InputError, match="is damaged"):
        write_report(run)


def test_a_run_that_was_killed(run):
    (run / "result.json").unlink()
    heldout = json.loads((run / "heldout.json").read_text())
    (run / "heldout.json").write_text(json.dumps(heldout | {"best": None}))
    log = run / "evaluations.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:11])[:-5])
    page = write_report(run).read_text()
    assert "not finished: 10 of about 40 evaluations" in page
    assert f"jevomerge evolve --resume {run}" in page
    record = read_record(run, read_run_folder(run))
    assert f'<div class="value">{np.nanmax(record.fitness):.4f}' in page
    assert "Best so far, held-out" not in page
    assert "0.2500" in page  # the source is known already
    assert "Won and lost" not in page
    for name in ("evaluations.jsonl", "heldout.json"):  # killed before the first one
        (run / name).unlink()
    page = write_report(run).read_text()
    assert "not finished: 0 of about 40 evaluations" in page
    assert not Page(page).charts
    assert len(page) < 30_000  # Vega is not there for nothing


def test_only_reports_are_overwritten(run, tmp_path, capsys):
    foreign = tmp_path / "mine.html"
    foreign.write_text("<!doctype html>\n<p>mine")
    refusals = {
        ("report", run, "--output", foreign): "is no report, it is not overwritten",
        ("report", run, "--output", tmp_path): "is no report, it is not overwritten",
        ("report", run, "--output", tmp_path / "none" / "x.html"): "is not a folder",
        ("report", tmp_path): "is not a run: it has no config.yaml; give a folder that `jevomerge evolve` wrote",
    }
    for arguments, expected in refusals.items():
        assert main([str(a) for a in arguments]) == 2
        assert expected in capsys.readouterr().err
    assert foreign.read_text() == "<!doctype html>\n<p>mine"
    assert not (run / "path.png").exists()
    for _ in range(2):  # an earlier report is replaced
        assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
        assert str(tmp_path / "page.html") in capsys.readouterr().out
    assert sorted(p.name for p in run.iterdir()) == [
        "best", "config.yaml", "environment.json", "evaluations.jsonl", "heldout.json", "result.json",
    ]  # fmt: skip


def test_stages_have_pages_and_an_index(run, tmp_path, capsys):
    folder = tmp_path / "staged"
    folder.mkdir()
    own = yaml.safe_load((run / "config.yaml").read_text())
    shared = {"tasks": own.pop("tasks"), "name": "two"}
    stages = [own | {"name": name} for name in ("one", "two")]
    (folder / "config.yaml").write_text(yaml.safe_dump(shared | {"stages": stages}))
    run.rename(folder / "one")
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert Page(page).links == ["one/report.html"]
    assert "not begun" in page
    assert "0.7500" in page
    assert "Held-out scores" in (folder / "one" / "report.html").read_text()
    assert main(["report", str(folder), "--output", str(tmp_path / "x.html")]) == 2
    assert f"name one: {folder / 'one'}, {folder / 'two'}" in capsys.readouterr().err
