"""What the scripts share: where things lie, the splits of the data, and how a question is asked.

Everything that is made goes to `WORK` (ignored by git), to which the YAML files here point: it cannot be elsewhere.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jevomerge.checkpoint.files import write_atomically

HERE = Path(__file__).parent
WORK = HERE.parents[1] / "runs" / "smollm2_math_ja"
GSM8K, JCQA = "gsm8k", "jcommonsenseqa"
# The prompts of gsm8k.yaml, jcommonsenseqa.yaml and lm_eval_jcommonsenseqa.yaml; `main` below checks that.
PROMPTS = {GSM8K: "Question: {question}\nAnswer:", JCQA: "質問: {question}\n選択肢: {listed}\n答え:"}
ANSWERS = {GSM8K: " {answer}", JCQA: "{answer}"}
LONGEST = {GSM8K: 128, JCQA: 96}  # tokens of prompt and answer; longer items are left out, that all takes minutes
LONGEST_CHOICE = 11  # tokens, with the end of the text
SIZES = {GSM8K: {"train": 1500, "search": 10, "heldout": 48}, JCQA: {"train": 2500, "search": 16, "heldout": 128}}


def tokens_of(task: str, row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Prompt and answer, which ends with the end-of-text token, as the judge tokenizes them."""
    prompt = tokenizer(PROMPTS[task].format(**row))["input_ids"]
    answer = tokenizer(ANSWERS[task].format(**row), add_special_tokens=False)["input_ids"]
    return prompt, [*answer, tokenizer.eos_token_id]


def gsm8k(path: Path) -> list[dict[str, Any]]:
    """Questions with worked answers, without the calculator's marks."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{"question": r["question"], "answer": re.sub(r"<<.*?>>", "", r["answer"])} for r in rows]


def jcommonsenseqa(path: Path) -> list[dict[str, Any]]:
    """Questions with five choices, of which one is the answer."""
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        choices = [row[f"choice{i}"] for i in range(5)]
        listed = {"choices": choices, "listed": "、".join(choices)}
        rows.append({"question": row["question"], **listed, "label": row["label"], "answer": choices[row["label"]]})
    return rows


def split_data(data: Path, model: Path) -> None:
    """Write WORK/data/TASK_SPLIT.jsonl: disjoint, short enough, in a seeded order.

    Held out are rows of GSM8K's test file, and rows of JCommonsenseQA's train file that nothing else uses.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    pools = {
        GSM8K: gsm8k(data / "gsm8k" / "train.jsonl"),
        JCQA: jcommonsenseqa(data / "jcommonsenseqa" / "train-v1.3.json"),
    }
    others = {GSM8K: gsm8k(data / "gsm8k" / "test.jsonl")}
    for number, task in enumerate(pools):
        rng = np.random.default_rng(number)
        used: set[int] = set()
        order = rng.permutation(len(pools[task]))
        for split, count in SIZES[task].items():
            if split == "heldout" and task in others:
                rows, numbers = others[task], rng.permutation(len(others[task]))
            else:
                rows, numbers = pools[task], [i for i in order if i not in used]
            chosen: list[int] = []
            for i in map(int, numbers):
                if len(chosen) == count:
                    break
                if fits(task, rows[i], tokenizer):
                    chosen.append(i)
            if rows is pools[task]:
                used |= set(chosen)
            text = "".join(json.dumps(rows[i], ensure_ascii=False) + "\n" for i in chosen)
            path = WORK / "data" / f"{task}_{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_atomically(path, text)
            assert path.read_text() == text, f"{path} is of other data: remove {WORK}"


def fits(task: str, row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a row is short enough, and its choices are."""
    choices = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in row.get("choices", ())]
    return sum(map(len, tokens_of(task, row, tokenizer))) <= LONGEST[task] and all(
        len(c) < LONGEST_CHOICE for c in choices
    )


def read_split(task: str, split: str) -> list[dict[str, Any]]:
    """Rows that `split_data` wrote."""
    return [json.loads(line) for line in (WORK / "data" / f"{task}_{split}.jsonl").read_text().splitlines()]
