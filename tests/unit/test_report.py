"""The report: its statistics, what its figures show, and the page of a run made by hand."""

import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from scipy import stats

from jevomerge.cli import main
from jevomerge.config import RunConfig
from jevomerge.evolve.archive import Archive, read_archive
from jevomerge.fitness.schema import HarnessTask, Task
from jevomerge.genome.path import Hop, PathSpace, encode, hops_of
from jevomerge.report import write_report
from jevomerge.report.figures import (
    coefficient_panels,
    coefficients_figure,
    fitness_figure,
    history_figure,
    parse_gene,
    progress,
    spread,
)
from jevomerge.report.heldout import BEST, bootstrap, standings, wins_and_losses
from jevomerge.report.look import svg
from jevomerge.report.path_history import changes, shorten
from jevomerge.report.path_picture import floors, path_figure
from jevomerge.report.record import Paths, read_paths, read_record, read_run_folder
from jevomerge.report.words import judged_by

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


# --- paths --------------------------------------------------------------------------------------------------


def random_path(depths, count, seed=0):
    """Hops through models a, b, ... and the pass of each."""
    rng = np.random.default_rng(seed)
    layers = [(m, i) for m, depth in zip("abc", depths, strict=False) for i in range(depth)]
    slots = np.sort(rng.choice(3 * len(layers), count, replace=False))
    return [Hop(*layers[s % len(layers)], rng.uniform(0.6, 1.2)) for s in slots], slots // len(layers)


@pytest.mark.parametrize(("depths", "count"), [((4, 5), 12), ((40, 40), 160), ((32, 32, 24), 100)])
def test_every_hop_is_in_the_lane_of_its_model(depths, count):
    hops, passes = random_path(depths, count)
    axes = path_figure("abc"[: len(depths)], depths, hops, passes).axes[0]
    lanes = {p.get_gid().removeprefix("lane "): p.get_bbox() for p in axes.patches if p.get_gid()}
    assert list(lanes) == list("abc"[: len(depths)])
    assert all(lower.y1 < upper.y0 for lower, upper in itertools.pairwise(lanes.values()))
    points = [c for c in axes.collections if isinstance(c, PathCollection)]
    drawn = {}
    for group in points:
        for (x, y), scale in zip(group.get_offsets(), group.get_array(), strict=True):
            drawn[round(x)] = y, scale, group.get_label()
        np.testing.assert_allclose(group.norm(1.0), 0.5)  # the middle of the colours
    assert sorted(drawn) == list(range(1, count + 1))
    floor = dict(zip("abc", floors(depths), strict=False))
    seen = set()
    for number, hop in enumerate(hops, 1):
        y, scale, label = drawn[number]
        assert lanes[hop.model].y0 < y < lanes[hop.model].y1
        assert y - floor[hop.model] == hop.layer
        assert scale == hop.scale
        assert label == ("visited before" if hop[:2] in seen else "first visit")
        seen.add(hop[:2])
    (walk,) = (line for line in axes.lines if line.get_gid() == "walk")
    np.testing.assert_array_equal(walk.get_ydata(), [drawn[i][0] for i in range(1, count + 1)])
    borders = [line.get_xdata()[0] for line in axes.lines if line.get_gid() != "walk"]
    np.testing.assert_array_equal(borders, np.flatnonzero(np.diff(passes)) + 1.5)


def test_a_path_without_scales_has_no_scale_of_colours():
    figure = path_figure(["a"], [4], hops_of([("a", 0, 4)]))
    assert len(figure.axes) == 1
    (points,) = figure.axes[0].collections
    figure.canvas.draw()
    assert {tuple(c) for c in points.get_facecolors()} == {to_rgba("#0072b2")}


def test_changes_of_a_path():
    before = hops_of([("a", 0, 6)])
    assert changes(before, before) == []
    assert changes(before, hops_of([("a", 0, 3), ("b", 3, 4), ("a", 3, 6)])) == ["+ b:3 after a:2"]
    assert changes(before, hops_of([("a", 0, 4), ("a", 5, 6)])) == ["- a:4"]
    assert changes(before, hops_of([("b", 0, 1), ("a", 0, 2), ("b", 2, 5), ("a", 5, 6)])) == [
        "+ b:0 first", "+ b:2-4 after a:1", "- a:2-4",
    ]  # fmt: skip
    assert changes(before, [h._replace(scale=0.5) for h in before]) == []
    assert changes(hops_of([("a", 0, 2)]), hops_of([("a", 0, 1), ("b", 1, 3), ("b", 5, 6), ("a", 0, 2)])) == [
        "+ a:0 b:1-2,5 first"
    ]
    assert changes(before[:4] + before[5:], before) == ["+ a:4 after 3"]
    assert changes(before, before[:1]) == ["- a:1-5"]
    many = [h for h in hops_of([("a", 0, 20)]) if h.layer % 2 == 0]
    assert changes(many, many[:1]) == ["- a:2,4,6,8,10 and 4 more"]
    assert shorten([str(i) for i in range(9)]) == ["0", "1", "2", "3", "4 more", "8"]
    assert shorten(["0", "1"]) == ["0", "1"]


def test_paths_have_the_passes_of_their_slots():
    space = PathSpace(("a", "b"), (3, 2), repeats=2)
    hops = hops_of([("a", 0, 3), ("b", 1, 2), ("a", 1, 2), ("b", 0, 1), ("a", 2, 3)])  # the last one is appended
    genomes = np.stack([encode(space, hops, off=0.1), encode(space, hops_of([("a", 0, 3)]), off=0.1)])
    paths = read_paths_of(space, genomes)
    assert [h[:2] for h in paths.hops(0)] == [h[:2] for h in hops]
    assert paths.passes(0).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert paths.passes(1).tolist() == [0, 0, 0]


def read_paths_of(space, genomes) -> Paths:
    class Fake:
        """What `read_paths` reads of a record."""

        num_weight_genes = 0

        class config:
            path = space

    Fake.genes, Fake.genomes = list(space.names), genomes
    return read_paths(Fake)


# --- figures ------------------------------------------------------------------------------------------------


def test_the_course_of_the_fitness():
    generations = [np.array([1.0, 2, 3]), np.array([np.nan, 2.5]), np.array([np.nan]), np.array([4.0, 0, 1, 5])]
    course = progress(generations)
    np.testing.assert_array_equal(course.best, [3, 3, 3, 5])
    np.testing.assert_array_equal(course.mean, [2, 2.5, np.nan, 2.5])
    np.testing.assert_allclose(course.low[0], 1.2)
    axes = fitness_figure(course, {"a": 0.5, "b": np.nan, "plain average": 1.5}).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(lines["best so far"].get_ydata(), course.best)
    np.testing.assert_array_equal(lines["mean of a generation"].get_ydata(), course.mean)
    assert {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"} == {0.5, 1.5}
    assert [t.get_text() for t in axes.texts] == ["a", "plain average"]


def test_labels_do_not_overlap():
    values = {"a": 0.0, "b": 0.01, "c": 0.02, "d": 1.0}
    places = spread(values, 0.1)
    heights = [places[name] for name in "abcd"]
    assert min(np.diff(heights)) >= 0.1 - 1e-9
    np.testing.assert_allclose([places["b"], places["d"]], [0.01, 1.0])
    assert spread({}, 0.1) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model/a/weight", ("", "model", "a", "weight")),
        ("embedding/a+b/weight", ("embedding", "", "a+b", "weight")),
        ("layers 4-7/a/density", ("layers 4-7", "", "a", "density")),
        ("layer 12 self_attn.q_proj/a/weight", ("layer 12", "self_attn.q_proj", "a", "weight")),
        ("head rest/lambda", ("head", "rest", "", "lambda")),
        ("headless/lambda", ("", "headless", "", "lambda")),
    ],
)
def test_names_of_genes(name, expected):
    assert parse_gene(name) == expected


def test_coefficients_are_where_their_names_say():
    names = [f"{g}/{s}/weight" for g in ("head", "embedding", "layers 10-11 mlp", "layers 2-3 mlp") for s in "ab"]
    names += ["layers 2-3 norms/a/weight", "model/lambda"]
    values = {name: i / 10 for i, name in enumerate(names)}
    panels = coefficient_panels(values, {"weight": (0, 1), "lambda": (0, 2)})
    assert [p.title for p in panels] == [
        "weight, embedding and head", "weight, mlp", "weight, norms", "lambda",
    ]  # fmt: skip
    ends, mlp, norms, scale = panels
    assert (ends.columns, mlp.columns, norms.columns, scale.columns) == (
        ["embedding", "head"], ["layers 2-3", "layers 10-11"], ["layers 2-3"], ["model"],
    )  # fmt: skip
    np.testing.assert_array_equal(mlp.values, [[0.6, 0.4], [0.7, 0.5]])
    np.testing.assert_array_equal(ends.values, [[0.2, 0.0], [0.3, 0.1]])
    assert scale.rows == ["all sources"]
    figure = coefficients_figure(panels)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), mlp.values)
    assert [t.get_text() for t in figure.axes[1].texts] == ["0.60", "0.40", "0.70", "0.50"]
    assert [a.images[0].get_clim() for a in figure.axes[:4]] == [(0, 1)] * 3 + [(0, 2)]


@pytest.mark.parametrize("count", [6, 900])
def test_histories_of_few_and_many_genes(count):
    rows = [(f"block {i // (count // 3)}", f"gene {i}") for i in range(count)]
    values = np.random.default_rng(0).random((count, 1000))
    axes = history_figure({"mean": values}, rows, "share").axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (count, 240)  # a picture cannot show more
    np.testing.assert_array_equal(shown[:, [0, -1]], values[:, [0, -1]])
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == ([f"gene {i}" for i in range(6)] if count == 6 else [f"block {i}" for i in range(3)])


def test_figures_are_safe_in_a_page():
    """Any model name: markup, mathematics, letters that the measuring font lacks."""
    name = "<script>alert(1)</script> $x$ 日本語"
    text = str(svg(path_figure([name], [2], hops_of([(name, 0, 2)])), f'"{name}"'))
    assert "<script" not in text
    assert "$x$ 日本語" in text
    assert "var(--ink)" in text
    assert not outside(text)


class Outside(HTMLParser):
    """Collects what a page would run, or fetch from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        links = [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")]
        self.found += [v for v in links if not v.startswith(("#", "data:image/png"))]
        self.found += [k for k, _ in attrs if k.startswith("on")]
        self.found += [tag] * (tag in ("script", "link", "iframe", "object", "embed", "base"))


def outside(page):
    """What a page would run, or fetch from elsewhere."""
    parser = Outside()
    parser.feed(page)
    return parser.found + re.findall(r"@import|url\((?!#)[^)]*", page)


def test_outside_finds_what_is_outside():
    assert outside('<img src="http://x/y.png"><a href="#z">') == ["http://x/y.png"]
    assert outside("<script>1</script>") == ["script"]
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
        "name": "by <b>hand</b>",
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
    assert page.count("<svg ") == 5
    assert (run / "path.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    record = read_record(run, read_run_folder(run))
    champions = [max(g, key=lambda i: -1 if np.isnan(f := record.fitness[i]) else f) for g in record.generations]
    lengths = read_paths(record).length[champions]
    cells = re.findall(r'<td class="n">(\d+)</td>\s*<td class="share">', page)
    assert [int(c) for c in cells] == lengths.tolist()


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


def test_the_page_needs_nothing_and_runs_nothing(run):
    page = write_report(run).read_text()
    assert not outside(page)
    assert "<script" not in page
    assert "<b>hand" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; 日本" in page
    assert "x" * 361 not in page  # long texts are cut
    assert len(page) < 300_000


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
    assert "<svg" not in page


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
    assert re.findall(r'href="([^"]*)"', page) == ["one/report.html"]
    assert "not begun" in page
    assert "0.7500" in page
    assert "Held-out scores" in (folder / "one" / "report.html").read_text()
    assert main(["report", str(folder), "--output", str(tmp_path / "x.html")]) == 2
    assert f"name one: {folder / 'one'}, {folder / 'two'}" in capsys.readouterr().err
