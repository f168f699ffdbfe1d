"""Rounds with raters whose taste is known."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from jevomerge.fitness.human.output import as_text
from jevomerge.fitness.human.round import Round
from jevomerge.fitness.human.votes import Votes

PROMPTS = [as_text(f"prompt {d}") for d in range(8)]


@pytest.fixture
def votes(tmp_path):
    with Votes(tmp_path / "votes.jsonl") as log:
        yield log


def outputs(quality):
    """Texts that say how good they are: {candidate: one for each prompt}."""
    return {f"c{i}": [as_text(f"{q:.9f}") for q in np.broadcast_to(own, 8)] for i, own in enumerate(quality)}


def answer(round, rng=None, noise=0.0, limit=10**6):
    """Have a round answered by the quality that texts say they have; so many votes."""
    for k in range(limit):
        if round.over:
            return k
        question = round.question()
        left, right = (float(side.shown["text"]) for side in (question.left, question.right))
        wrong = noise and rng.random() < noise
        choice = "tie" if left == right else "left" if (left > right) != wrong else "right"
        round.vote(question, choice, "Ann")
    return limit


def test_a_third_of_all_comparisons_finds_order_and_best():
    """16 candidates, 8 prompts, every fifth answer is the wrong one: rank correlation 0.9 and the best, in 8 of 10."""
    good = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        quality = rng.normal(size=16)
        log = Votes()
        round = Round("generation 0", "style", "search", PROMPTS, outputs(quality), log, limit=320)
        assert answer(round, rng, noise=0.2) == 320  # a third of 120 x 8
        assert 0.3 < np.mean([v["left"]["by"] < v["right"]["by"] for v in log.all]) < 0.7  # sides are shuffled
        found = np.array([round.standing.scores[f"c{i}"] for i in range(16)])
        good += found.argmax() == quality.argmax() and spearmanr(found, quality)[0] >= 0.9
    assert good >= 8


def test_questions_are_asked_once_and_never_about_the_same(votes):
    made = outputs([1.0, 2.0, 2.0])
    round = Round("generation 0", "style", "search", PROMPTS, made, votes)
    asked = answer(round)
    assert asked == 8  # one text against that of two others, on each prompt
    assert {tuple(sorted((*v["left"]["by"], *v["right"]["by"]))) for v in votes.all} == {("c0", "c1", "c2")}
    assert round.standing.scores["c1"] == pytest.approx(round.standing.scores["c2"])
    assert round.standing.scores["c1"] > 0.5 > round.standing.scores["c0"]


def test_a_round_ends_with_its_votes_or_when_enough_is_known(votes):
    made = outputs(np.arange(6.0))
    limited = Round("generation 0", "style", "search", PROMPTS, made, votes, limit=7)
    assert answer(limited) == 7
    enough = Round("generation 1", "style", "search", PROMPTS, made, votes, enough=0.8)
    answer(enough)
    assert enough.known >= 0.8
    assert enough.question() is not None


def test_a_round_goes_on_where_it_was(votes, tmp_path):
    """In another process: by what is on disk, and earlier answers about the same texts are not asked for again."""
    made = outputs(np.arange(4.0))
    answer(Round("generation 0", "style", "search", PROMPTS, made, votes, limit=20), limit=9)
    with Votes(tmp_path / "votes.jsonl") as log:
        again = Round("generation 0", "style", "search", PROMPTS, made, log, limit=20)
        assert again.count == 9
        assert answer(again) == 11
        keys = [(v["prompt"], frozenset((v["left"]["digest"], v["right"]["digest"]))) for v in log.all]
        assert len(set(keys)) == 20
        later = Round("generation 1", "style", "search", PROMPTS, {"new": made["c3"], "c0": made["c0"]}, log)
        assert later.count == 0
        assert answer(later) < 8
        assert later.standing.scores["new"] > later.standing.scores["c0"]


def test_what_others_have_before_them_is_not_asked(votes):
    round = Round("generation 0", "style", "search", PROMPTS[:1], outputs([1.0, 2.0, 3.0]), votes)
    taken = []
    while (question := round.question(taken)) is not None:
        taken.append(question)
    assert len({question.key for question in taken}) == 3


def test_shares_are_counted(votes):
    """Of all comparisons, also with those who wrote the same, which are ties."""
    made = {name: own[:2] for name, own in outputs([3.0, 2.0, 1.0]).items()}
    made["c2"][1] = made["c1"][1]
    round = Round("held out, best", "style", "heldout", PROMPTS[:2], made, votes)
    answer(round)
    found = round.shares()
    np.testing.assert_array_equal(found["c0"], [1, 1])
    np.testing.assert_array_equal(found["c1"], [0.5, 0.25])
    np.testing.assert_array_equal(found["c2"], [0, 0.25])


def test_the_best_so_far_carries_the_scale_on(votes):
    """A later generation is rated on the scale of the first, by those whom it met."""
    old = Round("generation 0", "style", "search", PROMPTS, outputs([0.0, 1.0, 2.0]), votes)
    answer(old)
    new = {"c2": outputs([0.0, 1.0, 2.0])["c2"], "d0": outputs([3.0])["c0"]}
    later = Round("generation 1", "style", "search", PROMPTS, new, votes)
    answer(later)
    scores = later.standing.scores
    assert scores["c0"] < scores["c1"] < scores["c2"] < scores["d0"]
    mean = np.mean([np.log(scores[n] / (1 - scores[n])) for n in ("c0", "c1", "c2")])
    assert mean == pytest.approx(0, abs=1e-9)  # where the scale has its middle


def test_private_votes_hold_no_texts(votes, tmp_path):
    made = {name: [as_text(f"secret {name}")] for name in ("a", "b")}
    round = Round("sources", "style", "search", [as_text("secret prompt")], made, votes, private=True)
    round.vote(round.question(), "tie", "Ann")
    assert "secret" not in (tmp_path / "votes.jsonl").read_text()
    assert {votes.all[0][side]["digest"] for side in ("left", "right")} == {own[0].digest for own in made.values()}
