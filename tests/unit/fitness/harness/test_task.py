"""Tasks of lm-evaluation-harness as a fitness: what is refused, and how documents become requests."""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.config import read_config
from jevomerge.errors import InputError
from jevomerge.fitness.harness import task as harness_module
from jevomerge.fitness.harness.task import LoadedTask
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.schema import HarnessTask
from jevomerge.fitness.tasks import read_tasks
from jevomerge.tokenizers.load import load_tokenizer
from tests.composites import write_vlm
from tests.seeing import picture

CONFIGS = Path(__file__).parents[4] / "configs" / "tasks"
(STORY,) = read_tasks(CONFIGS / "story_endings.yaml")


def changed(harness=(), **changes):
    data = STORY.model_dump()
    return HarnessTask.model_validate({**data, **changes, "harness": {**data["harness"], **dict(harness)}})


def judge_of(task, folder, splits=("search", "heldout"), **options):
    tasks = make_ready([task], load_tokenizer(folder), Checkpoint(folder).model)
    return make_judge(tasks, Checkpoint(folder).model, splits=splits, **options)


def test_the_offline_example_is_scored(stories260k):
    """Each document's choices are requests; the score is whether the likeliest is the right one."""
    checkpoint = Checkpoint(stories260k)
    judge = judge_of(STORY, stories260k)
    params = checkpoint.load()
    scores = judge.model(params, "heldout")
    documents = [json.loads(line) for line in (CONFIGS / "lm_eval" / "story_endings.jsonl").read_text().splitlines()]
    heldout = [d for d in documents if d["split"] == "test"]
    material = judge.material["heldout"]["story_endings"]
    assert len(material.examples) == 2 * len(material.documents) == 2 * len(heldout)
    assert [r.prompt for r in material.documents] == [d["begin"] for d in heldout]
    assert [r.answer for r in material.documents] == [d["endings"][d["label"]] for d in heldout]
    assert set(scores.fitness["story_endings"]) <= {0.0, 1.0}
    assert judge.fitness(scores)[0] > 0.7  # a model of such stories
    # The second criterion is the probability of the right ending: above one half exactly where that is chosen.
    assert ((np.exp(scores.tie_break["story_endings"]) > 0.5) == (scores.fitness["story_endings"] == 1)).all()


def test_a_subset_is_scored_as_in_the_whole(stories260k):
    from jevomerge.problems.problem import Whole

    checkpoint, judge = Checkpoint(stories260k), judge_of(STORY, stories260k, examples_at_once=3)
    params = checkpoint.load()
    whole = judge.model(params, "search")
    subset = {"story_endings": np.array([2, 3, 11])}
    ((few,),) = judge.members(Whole(params), np.zeros((1, 0)), subset)
    np.testing.assert_array_equal(few.fitness["story_endings"], whole.fitness["story_endings"][[2, 3, 11]])
    np.testing.assert_allclose(few.tie_break["story_endings"], whole.tie_break["story_endings"][[2, 3, 11]], atol=1e-5)


def test_a_model_of_nan_has_no_score(stories260k):
    import jax

    params = jax.tree.map(lambda x: x * np.float32("nan"), Checkpoint(stories260k).load())
    scores = judge_of(STORY, stories260k, splits=["heldout"]).model(params, "heldout")
    assert np.isnan(scores.fitness["story_endings"]).all()


@pytest.mark.parametrize(("lower", "sign"), [("auto", 1), (False, 1), (True, -1)])
def test_lower_is_better_negates(lower, sign, stories260k):
    task = LoadedTask(changed({"lower_is_better": lower}), load_tokenizer(stories260k), 512)
    assert task.sign == sign


def test_rows_and_splits(stories260k):
    task = changed(search={"split": "train", "rows": [3, 9], "limit": 2}, heldout={"rows": [1, 4]})
    material = judge_of(task, stories260k).material
    every = judge_of(STORY, stories260k).material
    for split, rows in (("search", slice(3, 5)), ("heldout", slice(1, 4))):
        assert material[split]["story_endings"].documents == every[split]["story_endings"].documents[rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harness": {"task": "story_ending"}}, "lm-eval has no task story_ending nor in"),
        ({"harness": {"metric": "f1"}}, "`f1` is none of acc, acc_norm"),
        ({"harness": {"filter": "strict"}}, "`strict` is none of none"),
        ({"harness": {"include_path": "nowhere"}}, "nowhere is not a folder"),
        ({"search": None}, "to be a fitness it needs `search`"),
        ({"search": {"split": "dev"}}, "`dev` is none of train, test"),
        ({"search": {"rows": [50, 60]}}, r"rows: \[50, 60\] of 10 rows"),
        ({"search": {"split": "test"}}, "10 of 10 held-out examples are also in the search split"),
    ],
)
def test_what_cannot_judge_is_refused(change, message, stories260k, monkeypatch):
    # Indexing the thousands of tasks that the harness ships takes long; these two folders stand for them.
    real = harness_module.manager
    monkeypatch.setattr(harness_module, "manager", lambda path, shipped: real(path, False))
    with pytest.raises(InputError, match=message):
        judge_of(changed(**change), stories260k)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output_type: loglikelihood\nmetric_list: [{metric: perplexity}, {metric: acc}]\n", "choose acc, or"),
        (
            "output_type: generate_until\ngeneration_kwargs: {until: ['.'], do_sample: true, temperature: 1.0}\n"
            "metric_list: [{metric: exact_match}]\n",
            "decoded greedily",
        ),
        ("output_type: loglikelihood_rolling\nmetric_list: [{metric: bits_per_byte}]\n", "not a mean over documents"),
    ],
)
def test_metrics_that_are_no_means_and_texts_that_are_not_greedy(text, message, stories260k, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"begin": "Tom", "end": " said"}\n')
    (tmp_path / "t.yaml").write_text(
        f"task: t\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        f"test_split: test\ndoc_to_text: '{{{{begin}}}}'\ndoc_to_target: '{{{{end}}}}'\n{text}"
    )
    with pytest.raises(InputError, match=message):
        judge_of(changed({"task": "t", "include_path": str(tmp_path), "metric": None}), stories260k)


def test_a_group_is_no_fitness(stories260k, tmp_path):
    text = (CONFIGS / "lm_eval" / "story_endings.yaml").read_text()
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("task: story_endings", f"task: {name}"))
    (tmp_path / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    for end in ("py", "jsonl"):
        (tmp_path / f"story_endings.{end}").write_text((CONFIGS / "lm_eval" / f"story_endings.{end}").read_text())
    with pytest.raises(InputError, match="both is a group; name one of one, two"):
        judge_of(changed({"task": "both", "include_path": str(tmp_path)}), stories260k)


def test_racing_is_refused(stories260k):
    with pytest.raises(InputError, match="racing: not with story_endings"):
        judge_of(STORY, stories260k, racing="exact")


def test_the_package_is_asked_for(stories260k, monkeypatch, capsys):
    monkeypatch.setattr(harness_module.importlib.util, "find_spec", lambda _: None)
    assert main(["evaluate", str(stories260k), "--task", str(CONFIGS / "story_endings.yaml")]) == 2
    assert "pip install 'jevomerge[harness]'" in capsys.readouterr().err


def test_a_run_names_suites_and_keeps_them(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "name: r\nrecipe: {merge_method: linear, models: [{model: a}, {model: b}], dtype: float32}\n"
        f"genome: {{weight: [0, 1]}}\ntasks: [{CONFIGS / 'jp_lmeh.yaml'}, {CONFIGS / 'story_endings.yaml'}]\n"
    )
    config = read_config(tmp_path / "run.yaml")
    assert [t.name for t in config.tasks][::4] == [
        "ja_leaderboard_jcommonsenseqa",
        "ja_leaderboard_jaqket_v2",
        "story_endings",
    ]
    assert "ja_leaderboard_xlsum" not in {t.name for t in config.tasks}  # for `evaluate` alone
    assert config.tasks[-1].harness.include_path == str(CONFIGS / "lm_eval")
    assert type(config).model_validate(config.model_dump(mode="json")).tasks == config.tasks


def test_jcola_asks_whether_a_sentence_is_grammatical(stories260k, tmp_path):
    """On rows in the form of its data, which have a label of 1 for what is acceptable."""
    text = (CONFIGS / "lm_eval" / "jcola.yaml").read_text()
    for split, rows in {"train": 4, "valid": 2}.items():
        [url] = [word for word in text.split() if word.endswith(f"in_domain_{split}-v1.0.json")]
        lines = [json.dumps({"uid": i, "label": i % 2, "sentence": f"{split}{i}"}) for i in range(rows)]
        (tmp_path / f"{split}.json").write_text("\n".join(lines))
        text = text.replace(url, str(tmp_path / f"{split}.json"))
    (tmp_path / "jcola.yaml").write_text(text)
    task = read_tasks(CONFIGS / "jp_lmeh.yaml")[-1]
    rows = {"search": {"split": "train"}, "heldout": {"split": "validation"}}
    found = changed({**task.harness.model_dump(), "include_path": str(tmp_path)}, name="jcola", **rows)
    material = LoadedTask(found, load_tokenizer(stories260k), None).material("heldout")
    assert [r.answer for r in material.documents] == ["正しくない", "正しい"]
    assert [e.answer for e in material.examples] == ["\n正しくない", "\n正しい"] * 2
    for example, sentence in zip(material.examples[::2], ("valid0", "valid1"), strict=True):
        *shots, last = example.prompt.split("### 入力：\n")[1:]
        assert last == f"{sentence}\n\n### 応答："
        assert len(shots) == 3
        assert all(("正しくない" in shot.split("###")[1]) == (shot[5] in "02") for shot in shots)


def test_jmmmu_asks_about_rows_of_the_form_of_its_data(tmp_path):
    def row(number, kind, question, options, answer, **more):
        images = {f"image_{i}": None for i in range(1, 8)} | more
        return {"id": f"test_{number}", "question": question, "options": options, "question_type": kind} | {
            "answer": answer, "subfield": "x", **images,
        }  # fmt: skip

    one, two = (str(tmp_path / f"{name}.png") for name in ("one", "two"))
    for i, name in enumerate((one, two)):
        picture(9, 12, i).save(name)
    rows = [
        row(1, "multiple-choice", "w3 <image 2> w4", "['w5', '<image1> w6', 'w7']", "C", image_1=one, image_2=two),
        row(2, "open", "w3 <image 1>", "[]", "w4", image_1=one),
        row(3, "multiple-choice", "<image 1>", "['w8', 'w9']", "A", image_1=two),
    ]
    columns = {f"image_{i}": datasets.Image() for i in range(1, 8)}
    found = datasets.Dataset.from_list(rows)
    found = found.cast(datasets.Features({**found.features, **columns}))
    found.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "local.yaml").write_text(
        f"include: {CONFIGS / 'lm_eval' / 'jmmmu.yaml'}\ntask: local\n"
        f"dataset_kwargs: {{data_files: {tmp_path / 'rows.parquet'}}}\n"
    )
    write_vlm(tmp_path / "llava", 2)
    (tmp_path / "llava" / "chat_template.jinja").write_text("{{ messages[0]['content'] | trim }} w9 ")
    source = Checkpoint(tmp_path / "llava")
    tokenizer = load_tokenizer(source.folder)
    (given,) = read_tasks(CONFIGS / "jmmmu.yaml")
    assert (given.harness.task, given.harness.include_path) == ("jmmmu", str(CONFIGS / "lm_eval"))
    harness = given.harness.model_dump() | {"task": "local", "include_path": str(tmp_path)}
    task = HarnessTask.model_validate({"harness": harness, "search": {"rows": [0, 2]}})
    material = LoadedTask(task, tokenizer, None, lambda: Eyes(source, tokenizer)).material("search")
    ask = "\n\n与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。"
    documents = {d.answer: d for d in material.documents}
    assert documents["C"].prompt == f"w3 <image> w4\nA. w5\nB. <image> w6\nC. w7{ask}"
    assert documents["A"].prompt == f"<image>\nA. w8\nB. w9{ask}"
    (second, first), (alone,) = (documents[answer].pictures for answer in "CA")
    assert (second.digest, first.digest != second.digest) == (alone.digest, True)
    assert sorted(e.answer for e in material.examples) == ["A", "A", "B", "B", "C"]
    assert {e.features for e in material.examples} == {4, 8}
    assert all(e.prompt.endswith(f"{ask} w9 ") for e in material.examples)


def test_the_japanese_suite_is_of_tasks_that_the_harness_ships():
    import lm_eval
    import yaml

    folder = Path(lm_eval.__file__).parent / "tasks" / "japanese_leaderboard"
    shipped = {}
    for path in folder.glob("*.yaml"):
        found = yaml.load(path.read_text().replace("!function", ""), yaml.SafeLoader)
        shipped[found.get("task") if isinstance(found.get("task"), str) else None] = found
    *tasks, jcola = read_tasks(CONFIGS / "jp_lmeh.yaml")
    assert (jcola.harness.task, jcola.harness.include_path) == ("jcola", str(CONFIGS / "lm_eval"))
    assert {t.harness.task for t in tasks} == shipped.keys() - {None}
    for task in tasks:
        found = shipped[task.harness.task]
        assert task.harness.num_fewshot == (found["num_fewshot"] or 0)
        means = [m["metric"] for m in found["metric_list"] if m["aggregation"] == "mean"]
        assert task.harness.metric in (means or [None])
        splits = {found[f"{s}_split"] for s in ("training", "validation", "test")}
        assert all(rows is None or rows.split in splits | {None} for rows in (task.search, task.heldout))


def test_lm_eval_is_imported_only_where_a_task_asks_for_it(stories260k):
    import subprocess

    code = "import jevomerge.cli, jevomerge.fitness.judge, sys; sys.exit(bool({'lm_eval', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_misspelt_key_of_a_harness_task(tmp_path):
    (tmp_path / "t.yaml").write_text("harness: {task: a, num_fewshots: 3}\n")
    with pytest.raises(InputError, match=r"t\.yaml:1: .*did you mean `num_fewshot`"):
        read_tasks(tmp_path / "t.yaml")
    (tmp_path / "r.yaml").write_text(
        "name: r\nrecipe: {merge_method: linear, models: [{model: a}]}\ngenome: {weight: [0, 1]}\n"
        "tasks:\n  - harness: {task: a}\n    serach: {limit: 3}\n  - name: t\n    promt: x\n"
    )
    with pytest.raises(InputError) as error:
        read_config(tmp_path / "r.yaml")
    assert "r.yaml:6: `tasks.0.serach`: unknown key `serach`, did you mean `search`?" in str(error.value)
    assert "`tasks.1.prompt`: is required" in str(error.value)
    assert "did you mean `prompt`" in str(error.value)
