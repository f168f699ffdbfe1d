"""Texts that end at a stop string on the device are those that the host would have cut, and cost less."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.config import RunConfig
from jevomerge.devices.mesh import by_member, put
from jevomerge.fitness.answers.extract import before_stop
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.rollouts import generation as rollout
from jevomerge.fitness.rollouts.rollout import make_batches
from jevomerge.fitness.schema import Task
from jevomerge.fitness.slices import Placing
from jevomerge.planning.programs import programs
from jevomerge.problems.problem import Instance
from jevomerge.search.setup import set_up
from jevomerge.tokenizers.stops import ended_by, spellings, stop_table
from tests.unit.devices.test_mesh import KINDS, mesh_of
from tests.unit.devices.test_mesh import task as mini_task

STORIES = Path(__file__).parents[2] / "data" / "stories260k"
WORDS = ["Ġthe", "ĠLily", ".Ċ", "ĊĊ", "Q:", "ab", "bc", "cd", "ç", "Į", "«", "çĮ«", "<", "stop", "bĊ"]


def byte_level():
    """A vocabulary as GPT-2 spells them, whose Japanese characters fall apart into tokens."""
    letters = sorted(ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*letters, *WORDS]))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    backend.add_tokens(["<tool call>"])  # with a space, which is not how a space is spelled
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def pieces():
    """SentencePiece with bytes: line breaks and rare characters are tokens such as <0x0A>."""
    return AutoTokenizer.from_pretrained(STORIES)


def cut(stops, text):
    task = Task.model_construct(stop=stops)
    return before_stop(task, text)


def decoded(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("make", [byte_level, pieces])
def test_tokens_are_spelled_as_they_are_decoded(make):
    tokenizer = make()
    (texts, runs, strips), size = spellings(tokenizer, len(tokenizer) + 3), len(tokenizer)
    for i in range(size):  # in front, something that a text may not lose
        front = tokenizer.convert_tokens_to_ids("a")
        assert "a" + texts[i].decode(errors="replace") == decoded(tokenizer, [front, i])
    assert texts[size:] == [b""] * 3
    assert texts[tokenizer.eos_token_id] == b""
    assert (int(runs.sum()), strips) == ((256, True) if make is pieces else (0, False))


STOPS = [
    ("\n",), ("\n\n", "\n"), ("Lily",), (". ", " Lily"), ("猫",), (" ",), ("\n\nQ:", "stop"), ("abc", "é猫"),
    ("a", "aab"), ("bcd",), ("Q", "Q:", "<end>"), (" the", "!"), ("\n", "猫\n"),
]  # fmt: skip


@pytest.mark.parametrize("make", [byte_level, pieces])
@pytest.mark.parametrize("stops", STOPS, ids=repr)
def test_a_text_ends_where_it_is_cut_however_it_would_go_on(make, stops):
    """Random tokens, among them stop strings and their beginnings; what follows the end must not matter."""
    tokenizer, rng, size = make(), np.random.default_rng(0), len(make()) + 3
    table = stop_table(tokenizer, stops, size)
    texts, runs, _ = spellings(tokenizer, size)

    def spell(data):
        """Some tokens that are these bytes together."""
        if not data:
            return []
        token = rng.choice([i for i, text in enumerate(texts) if text and data.startswith(text)])
        return [token, *spell(data[len(texts[token]) :])]

    parts = [s.encode()[:n] for s in stops for n in range(1, len(s.encode()) + 1)] + [s.encode() for s in stops] * 3
    parts = [spell(parts[i]) for i in rng.integers(0, len(parts), 100)] + [[tokenizer.eos_token_id]] * 10
    parts += [[token] for token in rng.integers(0, size, 100)]

    def some(count):
        return [np.concatenate([parts[i] for i in rng.integers(0, len(parts), 12)])[:12] for _ in range(count)]

    tokens = np.array(some(200))
    ended = ended_by(table, tokens)
    others = [some(len(tokens)) for _ in range(3)]
    missed = 0
    for row, ends, *other in zip(tokens, ended, *others, strict=True):
        found = [any(s in decoded(tokenizer, row[: n + 1]) for s in stops) for n in range(len(row))]
        if not ends.any():
            missed += any(found)
            continue
        end = int(ends.argmax())
        early = [*row[: end + 1], *[tokenizer.eos_token_id] * 4]
        kept = cut(stops, decoded(tokenizer, early))
        assert kept != decoded(tokenizer, early)  # there is a stop string in it
        for following in (row[end + 1 :], *other):
            assert cut(stops, decoded(tokenizer, [*row[: end + 1], *following])) == kept
        if not runs.any():
            assert end == found.index(True)  # not a token later
    assert ended.any(axis=1).sum() > 20
    assert missed == 0 or runs.any()


def test_bytes_that_may_not_be_text_end_nothing():
    """The line break is one, and the host shows it, unless what follows it at once is no UTF-8."""
    tokenizer = pieces()
    table = stop_table(tokenizer, ("\n",), len(tokenizer))
    newline, broken, word = (tokenizer.convert_tokens_to_ids(t) for t in ("<0x0A>", "<0xE3>", "▁the"))
    assert "\n" in decoded(tokenizer, [word, newline])
    assert "\n" not in decoded(tokenizer, [word, newline, broken, word])
    rows = np.array([[word, newline, word], [word, newline, broken], [newline, newline, 2], [newline, broken, word]])
    assert ended_by(table, rows).tolist() == [[False, False, True], *[[False] * 3] * 3]


LEFT = [(), ("",), ("cd", "bc"), (" Lily", ". "), ("abc", "b"), ("\nQ:", "\n\n"), ("�",), ("x" * 300,)]


@pytest.mark.parametrize("stops", LEFT)
def test_what_cannot_be_promised_is_left_to_the_host(stops):
    assert stop_table(byte_level(), stops, 300) is None


def test_a_tokenizer_that_is_not_understood_is_left_to_the_host():
    tokenizer = byte_level()
    assert stop_table(object(), ("a",), 300) is None
    assert stop_table(tokenizer, ("a",), 300) is not None
    for decoder in (None, decoders.Metaspace(), decoders.WordPiece(), decoders.Sequence([decoders.Strip(" ", 0, 1)])):
        tokenizer.backend_tokenizer.decoder = decoder
        assert stop_table(tokenizer, ("a",), 300) is None
    tokenizer = pieces()
    tokenizer.clean_up_tokenization_spaces = True  # of which transformers takes no notice, in a BPE
    assert stop_table(tokenizer, ("a",), 300) is not None
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    assert stop_table(tokenizer, ("a",), 300) is None


# --- on the device ------------------------------------------------------------------------------------------

PROMPTS = ["Once upon a time", "One day, a big dog and a little cat went to the park. They", "Tom", "Lily saw"]
NEW = 48


@pytest.mark.parametrize(("stops", "fewer"), [((". ",), True), (("zebra",), False)])
def test_texts_are_the_same_after_fewer_steps(stops, fewer, monkeypatch):
    checkpoint, tokenizer = Checkpoint(STORIES), pieces()
    encoded = [tokenizer(p)["input_ids"] for p in PROMPTS]
    length = max(map(len, encoded))
    tokens = np.array([[0] * (length - len(e)) + e for e in encoded], np.int32)
    valid = np.array([[False] * (length - len(e)) + [True] * len(e) for e in encoded])
    steps, unembed = [], rollout.unembed

    def counted(*args):
        jax.debug.callback(lambda: steps.append(1))
        return unembed(*args)

    monkeypatch.setattr(rollout, "unembed", counted)
    table = stop_table(tokenizer, stops, checkpoint.model.vocab_size)

    def texts(table):
        steps.clear()
        eos = jnp.asarray([tokenizer.eos_token_id], jnp.int32)
        prompts = rollout.Prompts(jnp.asarray(tokens), jnp.asarray(valid), jnp.int32(NEW), eos, table)
        written = rollout.generate(Instance(checkpoint.load()), checkpoint.model, prompts, NEW)
        found = tokenizer.batch_decode(np.asarray(written), skip_special_tokens=True)
        jax.effects_barrier()
        return [cut(stops, t) for t in found], len(steps), np.asarray(written)

    (whole, all_steps, _), (ended, fewer_steps, written) = texts(None), texts(jnp.asarray(table))
    assert ended == whole
    last = ended_by(table, written)
    assert all_steps == NEW
    assert fewer_steps == (NEW if not last.any(axis=1).all() else last.argmax(axis=1).max() + 1)
    assert (fewer_steps < NEW) == fewer
    for row, ends in zip(written, last, strict=True):
        assert not ends.any() or (row[ends.argmax() + 1 :] == tokenizer.eos_token_id).all()


def story_task(tmp_path, stops):
    for split, part in (("search", PROMPTS[:1]), ("heldout", PROMPTS)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"begin": p}) + "\n" for p in part))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("search", "heldout")}
    texts = {"prompt": "{begin}", "answer": "x", "score": "generation", "extract": "exact"}
    return Task.model_validate({"name": "stories", **files, **texts, "stop": stops, "max_new_tokens": NEW})


def test_tokens_are_those_that_transformers_writes_with_these_stop_strings(tmp_path):
    task, tokenizer, checkpoint = story_task(tmp_path, ["Lily", " park"]), pieces(), Checkpoint(STORIES)
    judge = make_judge(
        make_ready([task], tokenizer, checkpoint.model), checkpoint.model, splits=["heldout"], tokens_per_batch=200
    )  # several batches
    scores = judge.model(checkpoint.load(), "heldout")
    model = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    limits = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    total = 0
    for prompt, text in zip(PROMPTS, scores.texts["stories"], strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(ids, stop_strings=list(task.stop), tokenizer=tokenizer, **limits)[0, ids.shape[1] :]
        assert text == decoded(tokenizer, expected)
        total += len(expected)
    assert scores.tokens.answer == total < len(PROMPTS) * NEW


def test_members_of_a_mesh_and_their_plan():
    """Each member's texts end by themselves, in the program that a plan compiles."""
    stopped = mini_task("generation").model_copy(update={"name": "stopped", "max_new_tokens": 20, "stop": ("=", "と")})
    whole = stopped.model_copy(update={"name": "whole", "stop": ()})
    mesh, kind = mesh_of(2, 2), KINDS["task_arithmetic"]
    setup = set_up(RunConfig.model_validate({"name": "stops", "tasks": [whole, stopped], **kind}))
    judge, candidates = setup.judge.on(mesh), setup.problem.load(mesh)
    genomes = np.array([[0.2, 0.9], [0.7, 0.1]], np.float32)[:, : len(setup.problem.names)]
    (members,) = judge.members(candidates, genomes)
    for scores in members:
        cut_by_host, cut_early = ([cut(stopped.stop, t) for t in scores.texts[t.name]] for t in (whole, stopped))
        assert cut_early == cut_by_host
        lengths = [sum(map(len, scores.texts[t.name])) for t in (whole, stopped)]
        assert lengths[1] < lengths[0]
        assert scores.fitness["stopped"].shape == scores.fitness["whole"].shape
    _, ready = judge.tasks
    (_, index, batch), *_ = make_batches(
        ready.rollout, judge.subject, judge.chosen(ready, "search"), judge.layouts["stopped"]
    )
    made = None
    shared = put(genomes, by_member(mesh))
    for program, executable in programs(
        setup, judge, setup.problem.load(mesh, abstract=True), lambda p: p.traced.lower().compile()
    ):
        if program.name == "merge":
            made = executable(candidates, shared)
        elif "stopped" in program.name:
            written = executable(candidates, made, shared, Placing(mesh)([batch]))
    for m, scores in enumerate(members):
        texts = ready.rollout.read([np.asarray(written[m])])
        assert [texts[row] for row in np.flatnonzero(index >= 0)] == [
            scores.texts["stopped"][i] for i in index[index >= 0]
        ]
