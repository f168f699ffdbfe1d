"""lm-evaluation-harness through our model, request by request and metric by metric, against its own backend (torch)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.fitness.harness.model import HarnessModel
from jevomerge.fitness.harness.task import evaluate
from jevomerge.fitness.schema import Harness
from jevomerge.tokenizers.load import load_tokenizer

STORIES = Path(__file__).parents[1] / "data" / "stories260k"
LONG = "Once upon a time, there was a little girl named Lily. She liked to play in the park with her big dog. " * 12
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}bot:{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT


def pair(max_length=None, folder=STORIES, **tokenizer_changes):
    """The same model in both worlds, with the same tokenizer."""
    tokenizer = load_tokenizer(folder)
    for key, value in tokenizer_changes.items():
        setattr(tokenizer, key, value)
    checkpoint = Checkpoint(folder)
    length = max_length or checkpoint.model.max_length
    ours = HarnessModel(checkpoint.load(), checkpoint.model, tokenizer, length, tokens_per_batch=4096)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu", max_length=max_length)
    return ours, theirs


@pytest.fixture(scope="module")
def both():
    return pair()


@pytest.fixture(scope="module")
def short():
    """The same with room for only 32 tokens."""
    return pair(max_length=32)


def requests(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


CONTINUATIONS = [
    ("Once upon a time", ", there was a little girl"),
    ("Once upon a time ", "there was"),  # the space goes over to the continuation
    ("", "Lily saw a bird."),  # nothing before: the prefix token
    ("Tom", " said"),
    ("<s>Tom", " said"),  # begins with the begin-of-text token: gets no second one
    ("One day, a big dog and a little cat went to the park. They", " were happy. " * 3),
    ("The cat", "…é猫"),  # bytes
    (LONG[:400], LONG[400:520]),
]


@pytest.mark.parametrize("room", ["both", "short"])
def test_loglikelihood(room, request):
    ours, theirs = request.getfixturevalue(room)
    chosen = CONTINUATIONS if room == "both" else [c for c in CONTINUATIONS if len(c[1]) < 30]
    chosen = [*chosen, (LONG, " happy")] if room == "short" else chosen  # cut from the left
    asked = requests("loglikelihood", [*chosen, ("Once upon a time, there was a", " little girl named Lily")])
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert found[-1][1]
    assert not all(greedy for _, greedy in found)


@pytest.mark.parametrize("room", ["both", "short"])
def test_rolling_loglikelihood(room, request):
    ours, theirs = request.getfixturevalue(room)
    asked = requests("loglikelihood_rolling", [(LONG[:1500],), ("Tom",), ("",), (LONG[:40],)])
    found, expected = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    # Windows of 32 tokens add up to hundreds of nats, in float32 on both sides.
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=2e-6)


SETTINGS = [
    {"until": [".", " the"], "max_gen_toks": 12, "do_sample": False},
    {"until": "Lily", "max_new_tokens": 12, "temperature": 0.0},
    {"until": [], "max_gen_toks": 5},
    {"until": [], "max_gen_toks": 12, "repetition_penalty": 1.5, "num_beams": 1},
]


@pytest.mark.parametrize("room", ["both", "short"])
def test_generated_texts(room, request):
    ours, theirs = request.getfixturevalue(room)
    prompts = ["Once upon a time", "<s>One day, a big dog", "Tom and Lily went home. They", LONG[:300]]
    settings = SETTINGS if room == "both" else SETTINGS[:1]
    asked = requests("generate_until", [(p, dict(s)) for s in settings for p in prompts])
    found = ours.generate_until(asked)
    expected = [theirs.generate_until([one], disable_tqdm=True)[0] for one in asked]  # one by one: see below
    assert found == expected
    assert len({len(t) for t in found}) >= 3


def test_a_begin_token_counts_in_its_own_prompt_alone(both):
    """The harness's backend looks at the first prompt of a batch and treats the others alike; we look at each."""
    ours, theirs = both
    settings = {"until": [], "max_gen_toks": 5}
    apart = [[(p, settings)] for p in ("<s>Tom saw", "Tom saw")]
    assert ours.generate_until(requests("generate_until", [a[0] for a in apart])) == [
        theirs.generate_until(requests("generate_until", a), disable_tqdm=True)[0] for a in apart
    ]


def test_end_of_text_ends_a_text():
    ours, theirs = pair(eos_token=".")  # a token that the model does write
    asked = requests("generate_until", [("Once upon a time", {"until": ["\n"], "max_gen_toks": 24})])
    (found,) = ours.generate_until(asked)
    assert found == theirs.generate_until(asked, disable_tqdm=True)[0]
    assert 0 < len(found) < 100


def test_every_end_that_the_model_names_ends_a_text(tmp_path):
    shutil.copytree(STORIES, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 426]}))  # a full stop
    ours, theirs = pair(folder=tmp_path / "m")
    asked = requests("generate_until", [("Once upon a time", {"until": ["\n"], "max_gen_toks": 48})])
    (found,) = ours.generate_until(asked)
    assert found == theirs.generate_until(asked, disable_tqdm=True)[0]
    assert found.endswith(".")
    assert found.count(".") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.8}, "do_sample is not supported"),
        ({"temperature": 0.8}, "do_sample is not supported"),
        ({"num_beams": 4}, "num_beams is not supported"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, not a positive number"),
        ({"max_gen_toks": 512}, "512 new tokens leave no room"),
    ],
)
def test_what_is_not_greedy_is_refused(both, settings, message):
    with pytest.raises(InputError, match=message):
        both[0].generate_until(requests("generate_until", [("Tom", {"until": [], **settings})]))


# --- whole tasks --------------------------------------------------------------------------------------------

ROWS = [
    {"begin": b, "end": e, "other": o}
    for b, e, o in [
        ("Once upon a time, there was a", " little girl named Lily.", " green number of the."),
        ("Tom went to the park to", " play with his friends.", " seven was under eat."),
        ("The dog was very", " happy.", " Monday of."),
        ("Lily saw a", " big tree.", " was the went."),
        ("Mom said,", ' "Let\'s go home."', " of of of tree."),
        ("One day, the cat", " was sad.", " the by it."),
    ]
]
SHARED = """
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/rows.jsonl, test: {folder}/rows.jsonl}}}}
training_split: train
test_split: test
fewshot_split: train
doc_to_text: "{{{{begin}}}}"
doc_to_target: "{{{{end}}}}"
target_delimiter: ""
fewshot_delimiter: "\\n"
"""
TASKS = {
    "choose": "output_type: multiple_choice\ndoc_to_choice: '{{ [end, other] }}'\ndoc_to_target: 0\nmetric_list:\n"
    "  - {metric: acc}\n  - {metric: acc_norm}\n",
    "write": "output_type: generate_until\ngeneration_kwargs: {until: ['.'], max_gen_toks: 12}\nmetric_list:\n"
    "  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_punctuation: true}\n"
    "  - {metric: chrf, aggregation: chrf, higher_is_better: true}\n",
    "go_on": "output_type: loglikelihood\nmetric_list:\n  - {metric: perplexity}\n  - {metric: acc}\n",
    "roll": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{begin}}{{end}}'\n"
    "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    for name, text in TASKS.items():
        shared = "\n".join(
            line for line in SHARED.format(folder=folder).splitlines() if f"\n{line.split(':')[0]}:" not in f"\n{text}"
        )
        (folder / f"{name}.yaml").write_text(f"task: {name}{shared}\n{text}")
    (folder / "all.yaml").write_text(f"group: all\ntask: [{', '.join(TASKS)}]\n")
    return folder


def same(found, expected):
    numbers = {k: v for k, v in expected.items() if isinstance(v, float | int)}
    assert len(numbers) >= 3
    for key, value in numbers.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key


@pytest.mark.parametrize(
    "harness",
    [{}, {"num_fewshot": 2}, {"num_fewshot": 2, "chat_template": True, "system": "Go on."}],
    ids=["as it is", "few shots", "chat"],
)
def test_metrics_and_their_errors(suite, harness):
    ours, theirs = pair(chat_template=NO_SYSTEM if harness.get("system") else CHAT)
    found = evaluate(Harness(task="all", include_path=str(suite), **harness), ours)
    expected = simple_evaluate(
        theirs, tasks=["all"], task_manager=TaskManager(include_path=str(suite), include_defaults=False),
        num_fewshot=harness.get("num_fewshot"), apply_chat_template=harness.get("chat_template", False),
        system_instruction=harness.get("system"), fewshot_as_multiturn=True, bootstrap_iters=0,
    )["results"]  # fmt: skip
    for name in TASKS:
        same(found[name], expected[name])
    assert found["choose"]["acc_stderr,none"] >= 0


def test_the_command_prints_what_the_harness_says(suite, both, tmp_path, capsys):
    (tmp_path / "suite.yaml").write_text(
        f"name: stories\ntasks:\n  - harness: {{task: choose, include_path: {suite}}}\n"
        f"  - harness: {{task: go_on, include_path: {suite}}}\n"
    )
    output = tmp_path / "out.json"
    command = ["evaluate", str(STORIES), "--task", str(tmp_path / "suite.yaml"), "--json", str(output), "--debug"]
    assert main(command) == 0
    printed, written = capsys.readouterr().out, json.loads(output.read_text())
    expected = simple_evaluate(
        both[1],
        bootstrap_iters=1000,
        tasks=["choose", "go_on"],
        task_manager=TaskManager(include_path=str(suite), include_defaults=False),
    )["results"]
    for name in ("choose", "go_on"):
        same(written["results"][name], expected[name])
    accuracy, error = (expected["choose"][f"{m},none"] for m in ("acc", "acc_stderr"))
    assert f"acc {accuracy:.4f} ± {error:.4f}" in printed
    assert "perplexity" in printed


def test_tokenizers_of_the_reference_are_ours():
    """The tests above hand both worlds one tokenizer; it is the one that the harness would load."""
    text = "Once upon a time … 猫"
    assert AutoTokenizer.from_pretrained(STORIES)(text) == load_tokenizer(STORIES)(text)
