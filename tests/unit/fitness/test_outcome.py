"""How many tokens a score costs, against transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.rollouts.generation import count_written
from jevomerge.fitness.schema import Task
from jevomerge.fitness.tasks import read_tasks

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "experiments" / "japanese_math_mini" / "models" / "mathematics"


@pytest.mark.parametrize("score", ["generation", "likelihood"])
def test_tokens_are_those_that_transformers_reads_and_writes(score):
    [task] = read_tasks(ROOT / "configs" / "tasks" / "mini_japanese_math.yaml")
    given = task.model_dump()
    given["heldout"]["limit"] = 8
    given |= {"max_new_tokens": 12} if score == "generation" else {"score": score, "pattern": None}
    task = Task.model_validate(given)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    checkpoint = Checkpoint(MODEL)
    judge = make_judge(
        make_ready([task], tokenizer, checkpoint.model), checkpoint.model, splits=["heldout"], tokens_per_batch=160
    )  # several batches
    scores = judge.model(checkpoint.load(), "heldout")
    prompts = [tokenizer(e.prompt)["input_ids"] for e in judge.examples["heldout"][task.name]]
    assert scores.tokens.prompt == sum(map(len, prompts))
    if score == "likelihood":
        answers = [e.answer + tokenizer.eos_token for e in judge.examples["heldout"][task.name]]
        assert scores.tokens.answer == sum(len(tokenizer(a, add_special_tokens=False)["input_ids"]) for a in answers)
        return
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    written = [
        model.generate(torch.tensor([p]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(p) :]
        for p in prompts
    ]
    assert len({len(w) for w in written}) > 1  # some end early
    assert scores.tokens.answer == sum(map(len, written))


def test_the_end_of_a_text_is_written_too():
    tokens = np.array([[5, 2, 2, 2], [5, 6, 7, 8], [2, 2, 2, 2], [5, 6, 7, 2]])
    assert count_written(tokens, np.array([2])).tolist() == [2, 4, 1, 4]
