"""Anchors stand for all examples: against scipy, planted models of known items, and in a whole run."""

import json
import shutil

import numpy as np
import pytest
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm, spearmanr

from jevomerge.cli import main
from jevomerge.fitness.anchors import Items, choose_anchors, expected_mean, fit_ability, fit_items, weighted_mean


def solved(rng, items, abilities):
    """Draws of the two-parameter model: (m, n) zeros and ones."""
    odds = np.outer(abilities, items.discrimination) - items.difficulty
    return (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float)


def planted(rng, size):
    return Items(np.exp(rng.normal(0, 0.5, size)), rng.normal(0, 1.5, size))


# --- which ones ---------------------------------------------------------------------------------------------


def test_clusters_are_found_and_weighted_by_their_size():
    rng = np.random.default_rng(0)
    sizes = [50, 30, 15, 5]
    kind = rng.permutation(np.repeat(range(4), sizes))
    profiles = rng.normal(size=(4, 3))[kind] * 10 + rng.normal(size=(100, 3)) * 0.1
    chosen, weights = choose_anchors(profiles, 4, np.random.default_rng(1))
    assert sorted(kind[chosen]) == [0, 1, 2, 3]
    np.testing.assert_allclose(weights, [sizes[k] / 100 for k in kind[chosen]])
    again = choose_anchors(profiles, 4, np.random.default_rng(1))
    np.testing.assert_array_equal(chosen, again[0])


@pytest.mark.parametrize("count", [3, 8, 20])
def test_as_compact_as_the_clusters_of_scipy(count):
    rng = np.random.default_rng(2)
    profiles = rng.normal(size=(120, 4)) * [1, 3, 10, 0.1]
    points = (profiles - profiles.mean(axis=0)) / profiles.std(axis=0)
    chosen, weights = choose_anchors(profiles, count, np.random.default_rng(0))

    def spread(centres):
        return ((points[:, None] - centres) ** 2).sum(axis=2).min(axis=1).sum()

    found = [kmeans2(points, count, minit="++", rng=seed, iter=100)[0] for seed in range(10)]
    theirs = [points[((points[:, None] - c) ** 2).sum(axis=2).argmin(axis=0)] for c in found]
    assert spread(points[chosen]) < 1.1 * min(map(spread, theirs))  # an example is no centre
    assert len(set(chosen)) == count
    assert weights.sum() == pytest.approx(1)


def test_examples_that_nothing_tells_apart():
    chosen, weights = choose_anchors(np.zeros((20, 3)), 5, np.random.default_rng(0))
    assert len(set(chosen)) == 5
    assert weights.sum() == pytest.approx(1)
    chosen, weights = choose_anchors(np.eye(6), 9, np.random.default_rng(0))
    np.testing.assert_array_equal(chosen, np.arange(6))  # there are no more
    scores = np.arange(6.0)
    assert weighted_mean(scores, weights) == pytest.approx(2.5)


# --- what they say ------------------------------------------------------------------------------------------


def test_items_are_the_most_probable_ones():
    """Nothing that scipy finds from elsewhere, without our slopes, is more probable; nor is anything nearby."""
    rng = np.random.default_rng(0)
    responses = solved(rng, planted(rng, 4), rng.normal(size=6))

    def unlikely(x):
        ability, log_a, b = np.split(x, [6, 10])
        p = 1 / (1 + np.exp(-(np.outer(ability, np.exp(log_a)) - b)))
        logs = np.log(np.where(responses == 1, p, 1 - p)).sum()
        return -logs - norm.logpdf(ability).sum() - norm.logpdf(log_a / 0.5).sum() - norm.logpdf(b / 2).sum()

    items, ability = fit_items(responses)
    ours = np.concatenate([ability, np.log(items.discrimination), items.difficulty])
    theirs = min((minimize(unlikely, rng.normal(0, 0.3, 14)) for _ in range(4)), key=lambda found: found.fun)
    assert unlikely(ours) < theirs.fun + 1e-6
    moved = [unlikely(ours + 0.05 * step) for step in rng.normal(size=(50, 14))]
    assert min(moved) > unlikely(ours)


def test_planted_items_are_recovered():
    rng = np.random.default_rng(1)
    truth, abilities = planted(rng, 60), rng.normal(size=400)
    items, found = fit_items(solved(rng, truth, abilities))
    assert spearmanr(items.difficulty, truth.difficulty).statistic > 0.97
    assert spearmanr(items.discrimination, truth.discrimination).statistic > 0.85
    assert np.corrcoef(found, abilities)[0, 1] > 0.9
    assert np.abs(items.difficulty - truth.difficulty).mean() < 0.25


def test_ability_is_the_most_probable_one():
    rng = np.random.default_rng(3)
    items = planted(rng, 30)
    for scores in (*solved(rng, items, rng.normal(size=5)), np.zeros(30), np.ones(30), rng.random(30)):

        def unlikely(t, scores=scores):
            odds = items.discrimination * t - items.difficulty
            return (scores * np.logaddexp(0, -odds) + (1 - scores) * np.logaddexp(0, odds)).sum() + t**2 / 8

        found = minimize_scalar(unlikely, bounds=(-15, 15), options={"xatol": 1e-8})
        assert fit_ability(items, scores) == pytest.approx(found.x, abs=1e-5)


def test_estimates_get_better_with_more_anchors_and_items_help():
    """Of models of other abilities than those whose scores the items were fitted on."""
    rng = np.random.default_rng(4)
    truth = planted(rng, 200)
    responses = solved(rng, truth, rng.normal(size=30))
    candidates = solved(rng, truth, rng.normal(0, 1.5, size=60))
    whole = candidates.mean(axis=1)
    items, _ = fit_items(responses)
    errors = {}
    for count in (5, 20, 80, 200):
        chosen, weights = choose_anchors(responses.T, count, np.random.default_rng(0))
        guesses = {
            "irt": [expected_mean(c[chosen], chosen, items) for c in candidates],
            "mean": [weighted_mean(c[chosen], weights) for c in candidates],
            "random": [c[rng.permutation(200)[:count]].mean() for c in candidates],
        }
        errors[count] = {name: np.abs(np.array(g) - whole).mean() for name, g in guesses.items()}
    for name in ("irt", "mean"):
        assert errors[5][name] > errors[20][name] > errors[80][name] > errors[200][name]
        assert errors[200][name] == pytest.approx(0, abs=1e-12)
    assert errors[20]["irt"] < 0.75 * errors[20]["random"]
    assert np.isnan(expected_mean(np.array([0.5, np.nan]), np.array([0, 1]), items))


# --- in a run -----------------------------------------------------------------------------------------------


def configured(siblings, tmp_path, search, task=None):
    """A copy of the siblings' run with other settings."""
    copy = tmp_path / "siblings"
    shutil.copytree(siblings, copy)
    (copy / "other.yaml").write_text((copy / "task.yaml").read_text().replace("name: stories", "name: other"))
    text = (copy / "run.yaml").read_text().split("search:")[0]
    (copy / "run.yaml").write_text(f"{text}search: {search}\n")
    if task is not None:
        (copy / "task.yaml").write_text((copy / "task.yaml").read_text().replace("score: likelihood", task))
    return copy / "run.yaml"


def lines(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def without_times(records):
    return [{k: v for k, v in r.items() if k not in ("seconds", "crc32")} for r in records]


@pytest.mark.parametrize(
    ("estimator", "task"), [("mean", None), ("irt", "score: match")], ids=["mean of likelihoods", "irt of matches"]
)
def test_a_run_on_anchors(estimator, task, siblings, tmp_path):
    """Its fitness is the estimate; the winner is scored on everything; killed and continued, it is the same."""
    count = 30 if estimator == "mean" else 10
    search = f"{{evaluations: {count}, finalists: 3, anchors: {{examples: 4, estimator: {estimator}}}}}"
    config, run = configured(siblings, tmp_path, search, task), tmp_path / "run"
    assert main(["evolve", str(config), "--output", str(run)]) == 0
    records, result = lines(run), json.loads((run / "result.json").read_text())
    anchors = json.loads((run / "anchors.json").read_text())["stories"]
    assert len(anchors["examples"]) == 4
    for record in records:
        assert record["estimate"] == estimator
        assert record["examples"]["stories"] == anchors["examples"]
        scores = np.array(record["scores"]["stories"])
        if estimator == "mean":
            expected = scores @ anchors["weights"]
        else:
            items = Items(np.array(anchors["discrimination"]), np.array(anchors["difficulty"]))
            expected = expected_mean(scores, np.array(anchors["examples"]), items)
        assert record["fitness"] == pytest.approx(expected, abs=1e-5)
    if estimator == "irt":
        return
    assert result["best"]["search"] > result["average"]["search"]
    assert result["best"]["search"] != pytest.approx(records[result["best"]["evaluation"]]["fitness"], abs=1e-4)

    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "result.json").unlink()
    shutil.rmtree(again / "best")
    shutil.rmtree(again / "checkpoints")
    kept = (again / "evaluations.jsonl").read_text().splitlines(keepends=True)[:13]
    (again / "evaluations.jsonl").write_text("".join(kept))
    assert main(["evolve", "--resume", str(again)]) == 0
    assert without_times(lines(again)) == without_times(records)
    assert (again / "anchors.json").read_text() == (run / "anchors.json").read_text()
    resumed = json.loads((again / "result.json").read_text())
    assert resumed["best"] == result["best"]


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("{anchors: {examples: 4}, examples_per_generation: 4}", "both say what is scored"),
        ("{strategy: snes, anchors: {examples: 4}, racing: exact}", "`racing` bounds a score"),
        ("{anchors: {examples: 4, estimator: irt}}", "which those of stories are not"),
        ("{anchors: {examples: 0}}", "greater than 0"),
        ("{strategy: nsga2, anchors: {examples: 4}}\ntasks: [task.yaml, other.yaml]", "not with nsga2"),
        (
            "{anchors: {examples: 4}}\n"
            "tasks: [{harness: {task: arc_easy}, search: {rows: [0, 5]}, heldout: {rows: [5, 9]}}]",
            "not with tasks of lm-evaluation-harness such as arc_easy",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(search, said, siblings, tmp_path, capsys):
    config = configured(siblings, tmp_path, search)
    if "tasks:" in search:
        config.write_text(config.read_text().replace("tasks: [task.yaml]\n", ""))
    assert main(["evolve", str(config), "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_slices_have_no_sources_that_are_scored(siblings, tmp_path, capsys):
    config = configured(siblings, tmp_path, "{anchors: {examples: 4}}")
    whole = "  models:\n    - model: front\n    - model: back\n"
    sliced = "  slices: [{sources: [{model: front, layer_range: [0, 4]}, {model: back, layer_range: [0, 4]}]}]\n"
    assert whole in config.read_text()
    config.write_text(config.read_text().replace(whole, sliced))
    assert main(["evolve", str(config), "--output", str(tmp_path / "run")]) == 2
    assert "chosen by the scores of the sources" in capsys.readouterr().err
