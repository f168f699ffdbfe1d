"""Answers, examples, batches: the host side of fitness."""

import re

import numpy as np
import pytest

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.fitness.answers.extract import extract_answer, is_correct
from jevomerge.fitness.batches import Example
from jevomerge.fitness.data import refuse_overlap
from jevomerge.fitness.outcome import over_tasks
from jevomerge.fitness.pictures import Picture
from jevomerge.fitness.rollouts.generation import Generation
from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.fitness.rollouts.rollout import make_batches
from jevomerge.fitness.schema import Task
from jevomerge.fitness.task import Document
from jevomerge.tokenizers.load import load_tokenizer


def task(**changes):
    return Task.model_validate(
        {"name": "t", "search": "a", "heldout": "b", "prompt": "{q}", "answer": "{a}", "score": "generation"} | changes
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),
        ("3 + 4 = 7, so 7", "7"),
        ("about 1,000", "1,000"),
        ("it fell to -5 degrees", "-5"),
        ("2.5 litres", "2.5"),
        ("答えは18ドルです。", "18"),
        ("none", ""),
    ],
)
def test_last_number(text, number):
    assert extract_answer(task(extract="last_number"), text) == number


@pytest.mark.parametrize(
    ("text", "reference", "correct"),
    [
        ("so 1,000", "1000", True),
        ("7.0", "#### 7", True),
        ("-5", "5", False),
        ("", "5", False),
        ("x", "y", False),
        ("9007199254740992", "9007199254740993", False),
        ("1" * 400, "2" * 400, False),
    ],
)
def test_numbers_compare_by_value(text, reference, correct):
    assert is_correct(task(extract="last_number"), text, reference) is correct


def test_pattern_takes_the_group_of_the_last_match():
    t = task(pattern=r"=(\d+)[匹個]です")
    assert is_correct(t, "式は3+4=7個です。", "式は3+4=7個です。")
    assert not is_correct(t, " We get 3+4=7 eggs.", "式は3+4=7個です。")  # right number, wrong language
    assert not is_correct(t, "式は3+4=8個です。", "式は3+4=7個です。")


PIECES = [
    "a",
    "b",
    "1",
    r"\d",
    r"\w",
    ".",
    "[ab]",
    "[^a]",
    r"\s",
    "答",
    "(a)",
    "(?:b|1)",
    "(a|b)",
    r"\b",
    "^",
    "$",
    "(?=a)",
]
TIMES = ["", "", "*", "+", "?", "{2}", "{1,2}", "*?", "+?"]


def test_patterns_find_what_re_finds():
    rng, tried = np.random.default_rng(0), 0
    for _ in range(400):
        pattern = "".join(rng.choice(PIECES) + rng.choice(TIMES) for _ in range(rng.integers(1, 5)))
        text = "".join(rng.choice(list("ab1 答=\n"), 12))
        try:
            found = re.findall(pattern, text)
        except re.error:
            continue
        last = "" if not found else found[-1] if isinstance(found[-1], str) else found[-1][0]
        assert extract_answer(task(pattern=pattern), text) == last.strip()
        tried += 1
    assert tried > 200


def test_exact_and_stop():
    t = task(extract="exact", stop=["\n\n", "Question:"])
    assert is_correct(t, " Paris\n\nQuestion: next", "Paris")
    assert not is_correct(t, "Paris is", "Paris")


def examples(lengths, answers):
    return [Example(str(i), "x", [3] * n, [4] * a) for i, (n, a) in enumerate(zip(lengths, answers, strict=True))]


@pytest.mark.parametrize("score", ["likelihood", "generation"])
def test_batches_hold_every_example_once_in_few_shapes(score, stories260k):
    rng = np.random.default_rng(0)
    chosen = examples(rng.integers(1, 200, 500), rng.integers(1, 30, 500))
    rollout = Likelihood(pad=0) if score == "likelihood" else Generation(load_tokenizer(stories260k), 7)
    config = Checkpoint(stories260k).model
    layouts = rollout.layouts(chosen[:300], chosen[300:], tokens_per_batch=1024)
    batches = make_batches(rollout, config, chosen, layouts)
    assert len(layouts) <= 5
    seen = []
    for layout, index, batch in batches:
        assert batch.tokens.shape == (layout.rows, layout.length)
        assert layout.running * layout.length <= 1024
        for row, i in enumerate(index):
            if i < 0:
                continue
            seen.append(i)
            text = chosen[i].prompt_tokens + (chosen[i].answer_tokens if score == "likelihood" else [])
            assert np.asarray(batch.tokens[row])[np.asarray(batch.valid[row])].tolist() == text
            assert batch.valid[row, -1]  # padding is on the left
            if score == "likelihood":
                assert int(batch.answer_length[row]) == len(chosen[i].answer_tokens) <= layout.answer_slots
    assert sorted(seen) == list(range(500))


def test_a_subset_uses_the_shapes_of_the_whole(stories260k):
    chosen = examples([5, 90, 40, 41, 7], [2, 3, 2, 5, 1])
    rollout, config = Likelihood(pad=0), Checkpoint(stories260k).model
    layouts = rollout.layouts(chosen, [], 4096)
    for subset in ([0], [1, 2], [4, 3]):
        for layout, *_ in make_batches(rollout, config, [chosen[i] for i in subset], layouts):
            assert layout in layouts


def test_rows_fit_the_search_and_not_the_heldout_split():
    chosen, rollout = examples([10] * 384, [2] * 384), Likelihood(pad=0)
    assert [x.rows for x in rollout.layouts(chosen[:128], chosen[128:], 10**6)] == [128]
    assert [x.rows for x in rollout.layouts(chosen[:128], chosen[128:], 16 * 100)] == [
        64
    ]  # two full ones, not 100 + 28
    (minibatch,) = rollout.layouts(chosen[:128], chosen[128:], 10**6, at_once=16)
    assert 16 <= minibatch.rows <= 48


def test_prompts_take_the_rows_of_texts_that_have_ended(stories260k):
    """So batches are as large as several fillings, and as small as racing wants them."""
    chosen, rollout = examples([10] * 384, [2] * 384), Generation(load_tokenizer(stories260k), 84)
    sizes = {n: rollout.layouts(chosen[:128], chosen[128:], n) for n in (10**6, 16 * 100, 4 * 100)}
    assert [[(x.rows, x.running) for x in found] for found in sizes.values()] == [[(128, 128)], [(128, 16)], [(32, 4)]]
    (pieces,) = rollout.layouts(chosen[:128], chosen[128:], 4 * 100, pieces=8)
    assert (pieces.rows, pieces.running) == (16, 4)
    assert "16 x 16 tokens + 84, 4 at a time" in rollout.label("t", pieces)
    (even,) = rollout.layouts(chosen[:128], chosen[128:], 60 * 100)
    assert (even.rows, even.running) == (128, 43)  # three times 43, not 60, 60 and 8
    seen = [e._replace(pictures=(Picture("a", b"", (), 1, "", 0),)) for e in chosen]
    (layout,) = rollout.layouts(seen[:128], seen[128:], 16 * 100)
    assert layout.rows == layout.running == 16  # with pictures, of which all of a batch are on the device


@pytest.mark.parametrize(
    ("long", "tokens_per_batch", "lengths"),
    [(40, 16 * 240, [16, 40]), (40, 400 * 240, [40]), (400, 400 * 240, [16, 400])],
)
def test_a_few_long_prompts_take_others_in_unless_that_costs_more(long, tokens_per_batch, lengths, stories260k):
    chosen, rollout = examples([10] * 100 + [long] * 8, [2] * 108), Generation(load_tokenizer(stories260k), 200)
    layouts = rollout.layouts(chosen, [], tokens_per_batch)
    assert [layout.length for layout in layouts] == lengths
    assert len(set(rollout.strata(chosen, layouts))) == len(lengths)


def test_what_all_prompts_begin_with_is_no_part_of_rows(stories260k):
    rollout, model = Generation(load_tokenizer(stories260k), 7), Checkpoint(stories260k).model
    shots = [5 + i % 9 for i in range(50)]
    chosen = [Example(str(i), "x", [*shots, *[20 + i] * (3 + i)], []) for i in range(12)]
    (layout,) = rollout.layouts(chosen, [], 1024)
    assert (layout.shared, layout.length) == (50, 16)
    assert "behind 50 that all share" in rollout.label("t", layout)
    batch = rollout.batch(model, chosen[4:6], layout)
    assert batch.beginning.tolist() == shots
    whole = batch.whole()
    for row, example in enumerate(chosen[4:6]):
        assert batch.tokens[row][batch.valid[row]].tolist() == example.prompt_tokens[50:]
        assert whole.tokens[row][whole.valid[row]].tolist() == example.prompt_tokens
        assert whole.valid[row, -1]
    assert int(batch.count) == 2
    assert rollout.strata(chosen, [layout]).tolist() == [0] * 12
    other = [*chosen, Example("other", "x", [5, 6, 9], [])]
    assert rollout.layouts(other, [], 1024)[0].shared == 0
    prefix = [*chosen, Example("short", "x", shots, [])]  # each row has a token of its own
    assert rollout.layouts(prefix, [], 1024)[0].shared == 49


def test_overlap_is_refused():
    with pytest.raises(InputError, match="1 of 2 held-out"):
        refuse_overlap("t", examples([1, 2, 3], [1, 1, 1]), [*examples([1], [1]), Example("new", "x", [1], [1])])


def test_the_same_question_about_another_picture_is_another_example():
    pictures = [Picture(name, content, (), 1, "", 0) for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1"))]
    asked = [[Document("colour?", "red", (picture,))] for picture in pictures]
    refuse_overlap("t", asked[0], asked[1])
    with pytest.raises(InputError, match="1 of 1 held-out"):
        refuse_overlap("t", asked[0], asked[2])


def test_tasks_count_by_their_weights():
    weights, values = {"a": 2.0, "b": 0.5}, {"b": np.array([1.0, np.nan]), "a": np.array([-0.3, 2.0])}
    expected = np.average([values["a"], values["b"]], axis=0, weights=[2.0, 0.5])
    np.testing.assert_allclose(over_tasks(weights, values), expected)
    one = {name: float(v[0]) for name, v in values.items()}
    assert over_tasks(weights, one) == pytest.approx(expected[0])
