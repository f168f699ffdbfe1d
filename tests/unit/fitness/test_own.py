"""Functions of the user's that judge: found, called, and what they may not give."""

import json
import sys
import types
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import FitnessError, InputError
from jevomerge.fitness import own, schema
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.own import as_scores, find_function
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.rollouts import generation
from jevomerge.fitness.rollouts.own import Called
from jevomerge.fitness.schema import FunctionTask, OwnScore, Task
from jevomerge.fitness.tasks import read_tasks
from jevomerge.problems.problem import Whole
from jevomerge.tokenizers.load import load_tokenizer

ROWS = [
    {"begin": "Once upon a time", "answer": "x"},
    {"begin": "Tom", "answer": "y"},
    {"begin": "Lily saw", "answer": "z"},
]


def text_task(folder, function, **more):
    for split, rows in (("search", ROWS), ("heldout", ROWS[:1])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("search", "heldout")}
    texts = {"prompt": "{begin}", "answer": "{answer}", "max_new_tokens": 16}
    return Task.model_validate({"name": "t", **files, **texts, "score": {"function": function}, **more})


def judge_of(task, folder, **options):
    model = Checkpoint(folder).model
    ready = make_ready([task], load_tokenizer(folder), model)
    return make_judge(ready, model, splits=["search"], **options)


# --- how they are found -------------------------------------------------------------------------------------


def test_a_module_beside_the_yaml_is_found(tmp_path):
    (tmp_path / "beside_the_yaml.py").write_text(
        "class Judges:\n    @staticmethod\n    def first(texts, rows): return 7\n"
    )
    (tmp_path / "t.yaml").write_text("name: t\nscore: {function: 'beside_the_yaml:Judges.first', of: folder}\n")
    [task] = read_tasks(tmp_path / "t.yaml")
    assert find_function(task.score)(None, None) == 7
    # What a run keeps of it says where the module is.
    again = FunctionTask.model_validate(json.loads(json.dumps(task.model_dump(mode="json"))))
    assert again == task
    assert again.score.import_from == str(tmp_path)


def test_the_short_form_judges_texts(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "name: t\nsearch: a\nheldout: b\nprompt: '{q}'\nanswer: '{a}'\nscore: some_module:f\n"
    )
    [task] = read_tasks(tmp_path / "t.yaml")
    assert (task.score.name, task.score.of) == ("some_module:f", "texts")


def test_packages_offer_functions_by_name(monkeypatch):
    module = types.ModuleType("a_package_of_judges")
    module.brief = lambda texts, rows: [-len(t) for t in texts]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = EntryPoint("brief", "a_package_of_judges:brief", "jevomerge.fitness")

    def offered(group, name=None):
        return [e for e in [entry] if group == "jevomerge.fitness" and name in (None, e.name)]

    for where in (own, schema):
        monkeypatch.setattr(where, "entry_points", offered)
    assert find_function(OwnScore(function="brief"))(["abc"], [{}]) == [-3]
    with pytest.raises(ValueError, match=r"`brieff` is none of .*, brief, did you mean `brief`"):
        OwnScore(function="brieff")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_such_module_here:f", "task t: score: no_such_module_here:f cannot be imported .*ModuleNotFoundError"),
        ("json:dumpz", "has no attribute 'dumpz'"),
        ("json:__name__", "json:__name__ is str, not a function"),
    ],
)
def test_what_cannot_be_imported_is_refused(function, said, stories260k, tmp_path):
    task = text_task(tmp_path, function)
    task = task.model_copy(update={"score": task.score.model_copy(update={"import_from": str(tmp_path)})})
    with pytest.raises(InputError, match=said):
        judge_of(task, stories260k)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("score: maybe", "is none of likelihood, match, generation, people; a function of yours is `module:function`"),
        ("score: likelyhood", "did you mean `likelihood`?"),
        ("score: {function: 'm:f', bound: [0, 1]}", "unknown key `bound`, did you mean `bounds`?"),
        ("score: {function: 'm:f', of: folder}", "leave out search, heldout, prompt, answer"),
        ("score: m:f\nextract: exact", "m:f judges by itself"),
        ("score: {function: 'm:f', bounds: [1, 0]}", "the lowest score, 1, must be less than the highest, 0"),
    ],
)
def test_bad_yaml(text, said, tmp_path):
    (tmp_path / "t.yaml").write_text(f"name: t\nsearch: a\nheldout: b\nprompt: '{{q}}'\nanswer: '{{a}}'\n{text}\n")
    with pytest.raises(InputError) as error:
        read_tasks(tmp_path / "t.yaml")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("function", "with_data", "said"),
    [
        (lambda model, params, batch: 0, False, "if it takes a batch, give search, heldout, prompt, answer"),
        (lambda model, params: 0, True, "leave out search, heldout, prompt, answer"),
        (lambda params: 0, False, r"is called with \(model, params\)"),
    ],
)
def test_with_data_there_is_a_batch_and_without_there_is_none(function, with_data, said, stories260k, tmp_path):
    task = text_task(tmp_path, function)
    score = task.score.model_copy(update={"of": "params"})
    task = task.model_copy(update={"score": score}) if with_data else FunctionTask(name="t", score=score)
    with pytest.raises(InputError, match=said):
        judge_of(task, stories260k)


def test_models_without_a_tokenizer_write_no_texts(stories260k, tmp_path):
    task = text_task(tmp_path, lambda texts, rows: [0] * len(texts))
    with pytest.raises(InputError, match="the models have no tokenizer"):
        make_ready([task], None, Checkpoint(stories260k).model)


# --- of texts -----------------------------------------------------------------------------------------------


def test_texts_and_rows_come_in_lists_cut_at_the_stop_strings(stories260k, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "FILLINGS", 1)  # else so few prompts are one batch
    calls = []

    def judge(texts, rows):
        calls.append((texts, rows))
        return np.array([len(t) for t in texts])

    checkpoint = Checkpoint(stories260k)
    ours = judge_of(text_task(tmp_path, judge, stop=["a"]), stories260k, tokens_per_batch=48)  # several batches
    scores = ours.model(checkpoint.load(), "search")
    assert len(calls) > 1
    texts, rows = ([x for call in calls for x in call[i]] for i in (0, 1))
    assert sorted(r["begin"] for r in rows) == sorted(r["begin"] for r in ROWS)
    assert not any("a" in t for t in texts)
    written = {row["begin"]: text for text, row in zip(texts, rows, strict=True)}
    expected = [t.split("a")[0] for t in scores.texts["t"]]
    assert [written[r["begin"]] for r in ROWS] == expected
    assert scores.fitness["t"].tolist() == [len(t) for t in expected]
    assert scores.tokens.answer > 0


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (
            lambda texts: [1.0] * (len(texts) + 1),
            r"task t: .*<lambda> gave \d scores for \d texts; it must give a score",
        ),
        (lambda texts: 1.0, "gave one number for"),
        (lambda texts: ["good"] * len(texts), r"gave \['good'.*, not scores"),
        (lambda texts: [None] * len(texts), r"gave \[None.*, not scores"),
        (lambda texts: [[1.0], [1.0, 2.0], 3.0], r"gave \[\[1.0\], .*, not scores"),
        (lambda texts: [2.5] * len(texts), "gave 2.5, which is not from 0 to 1"),
        (lambda texts: texts[99], "task t: .*<lambda>: IndexError: list index out of range"),
    ],
)
def test_what_is_no_score_for_each_text_is_an_error(gives, said, stories260k, tmp_path):
    task = text_task(tmp_path, lambda texts, rows: gives(texts))
    task = task.model_copy(update={"score": task.score.model_copy(update={"bounds": (0.0, 1.0)})})
    judge = judge_of(task, stories260k)
    with pytest.raises(FitnessError, match=said):
        judge.model(Checkpoint(stories260k).load(), "search")


def test_a_score_may_be_no_number(stories260k, tmp_path):
    """Which is worse than any, as for scores of ours."""
    judge = judge_of(text_task(tmp_path, lambda texts, rows: [float("nan")] * len(texts)), stories260k)
    assert np.isnan(judge.model(Checkpoint(stories260k).load(), "search").fitness["t"]).all()
    assert as_scores([np.nan, 0.5], Called(len, "f"), 2, (0.0, 1.0))[1] == 0.5


def test_bounds_allow_for_rounding():
    assert as_scores(np.float32([1 + 1e-6, -1e-6]), Called(len, "f"), 2, (0.0, 1.0)).tolist() == [1.0, 0.0]


def test_a_folder_has_a_score_at_least():
    with pytest.raises(FitnessError, match="f gave no scores"):
        as_scores([], Called(len, "f"), None, None)


def test_racing_needs_bounds_and_stops_by_them(stories260k, tmp_path):
    task = text_task(tmp_path, lambda texts, rows: [-1.0] * len(texts))
    with pytest.raises(InputError, match=r"racing: not with t, .* or give a function of yours `bounds`"):
        judge_of(task, stories260k, racing="exact")
    rows = [{"begin": f"{begin} {i}", "answer": "x"} for begin in ("Tom", "Once") for i in range(4)]
    (tmp_path / "search.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    bounded = task.model_copy(update={"score": task.score.model_copy(update={"bounds": (-2.0, 2.0)})})
    judge, model = judge_of(bounded, stories260k, racing="exact"), Whole(Checkpoint(stories260k).load())
    # After four of eight the mean is at most (4 * -1 + 4 * 2) / 8.
    ((stopped,),) = judge.members(model, np.zeros((1, 0)), cut=0.75)
    assert stopped.stopped == (0.5, 4)
    assert np.isnan(stopped.fitness["t"]).sum() == 4
    ((whole,),) = judge.members(model, np.zeros((1, 0)), cut=-1.5)
    assert whole.fitness["t"].tolist() == [-1.0] * 8


# --- of folders ---------------------------------------------------------------------------------------------


def test_a_folder_is_written_for_each_member_once_and_is_gone_afterwards(stories260k):
    seen = []

    def judge(folder):
        seen.append(folder)
        return load_file(folder / "x.safetensors")["x"]  # (2,)

    def write(genome, path):
        path.mkdir()
        save_file({"x": np.array([genome[0], 1.0])}, path / "x.safetensors")

    tasks = [FunctionTask(name=n, score=OwnScore(function=judge, of="folder")) for n in ("a", "b")]
    checkpoint = Checkpoint(stories260k)
    ours = make_judge(make_ready(tasks, None, checkpoint.model), checkpoint.model, write=write)

    genomes = np.array([[0.25], [0.5]])
    found = [s for group in ours.members(Whole(checkpoint.load()), genomes) for s in group]
    assert [s.fitness["a"].tolist() for s in found] == [[0.625], [0.75]]  # the mean, in full precision
    assert len(seen) == 4
    assert len(set(seen)) == 2  # both tasks are given the same folder
    assert not any(folder.exists() for folder in seen)
    with pytest.raises(FitnessError, match="task a: there is nobody who writes this model as a folder"):
        ours.model(checkpoint.load(), "search")
