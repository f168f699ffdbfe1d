"""What a merge keeps of what its task does not ask for: held-out perplexities and tasks of lm-evaluation-harness.

python experiments/japanese_math_gemma/keeps.py --data DATA    # after run.py; needs jevomerge[harness]

Of the rows of results.json with seed 0. Writes keeps.json.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

import common
import numpy as np
import run
import stories
import yaml
from arguments import known, make_parser, record

import jevomerge as jm

ROWS = 60  # of each
GENERATED = 40  # where texts are written


def rows_of(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Documents that no model was taught, by name."""
    lines = (data / "jcommonsenseqa" / "train-v1.3.json").read_text().splitlines()[stories.TAUGHT["choices"] :]
    choices = [json.loads(line) for line in lines]
    rng, plain, school = Random("plain"), stories.PLAIN, stories.gsm8k(data)[stories.TAUGHT["gsm8k"] :]
    mgsm = [line.split("\t") for line in (data / "mgsm" / "mgsm_ja.tsv").read_text().splitlines()]
    gsm8k = [json.loads(line) for line in (data / "gsm8k_ja" / "search.jsonl").read_text().splitlines()]
    translated = {"mgsm_ja": mgsm, "gsm8k_ja": [(row["question"], row["answer_number"]) for row in gsm8k]}
    english, japanese = ([stories.draw(rng, plain, "heldout") for _ in range(ROWS)] for _ in range(2))
    return {
        "jcommonsenseqa": [
            {"prompt": p, "choices": [f"答えは{row[f'choice{i}']}です。" for i in range(5)], "label": row["label"]}
            for row, (p, _) in zip(choices, stories.choices(data)[stories.TAUGHT["choices"] :], strict=True)
        ][:ROWS],
        "plain_sums_en": [{"prompt": p.question("en"), "answer": str(p.result)} for p in english][:GENERATED],
        "plain_sums_ja": [{"prompt": p.question("ja"), "answer": str(p.result)} for p in japanese][:GENERATED],
        **{name: [asked(*row) for row in rows[:GENERATED]] for name, rows in translated.items()},
        "perplexity_en": [{"prompt": p, "answer": a} for p, a in school][:ROWS],
        "perplexity_ja": [{"prompt": "問題:", "answer": question} for question, _ in mgsm][:ROWS],
    }


def asked(question: str, number: str) -> dict[str, Any]:
    return {"prompt": stories.PROMPTS["ja"].format(question), "answer": number.replace(",", "")}


def task_files(work: Path, data: Path) -> dict[str, Path]:
    """Write the documents and the tasks: {name: YAML}; two of our own, the others the harness's."""
    found, folder = {}, work / "keeps"
    folder.mkdir(exist_ok=True)
    for name, rows in rows_of(data).items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if name.startswith("perplexity"):
            about: dict[str, Any] = {"name": name, "search": str(file), "heldout": str(file)}
            about |= {"prompt": "{prompt}", "answer": "{answer}", "score": "likelihood"}
        else:
            about = {"harness": {"task": name, "include_path": str(folder / "lm_eval")}}
            shared = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}}
            shared |= {"test_split": "test", "doc_to_text": "{{prompt}}", "target_delimiter": "", "num_fewshot": 0}
            theirs = shared | (CHOSEN if name == "jcommonsenseqa" else WRITTEN) | {"metadata": {"version": 1.0}}
            (folder / "lm_eval").mkdir(exist_ok=True)
            (folder / "lm_eval" / f"{name}.yaml").write_text(yaml.safe_dump(theirs, allow_unicode=True))
        found[name] = folder / f"{name}.yaml"
        found[name].write_text(yaml.safe_dump(about, allow_unicode=True))
    return found


CHOSEN = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
LAST_NUMBER = [{"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1}, {"function": "take_first"}]
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 64},
    "filter_list": [{"name": "last", "filter": LAST_NUMBER}],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def measured(model: Path, name: str, task: Path) -> float:
    """Perplexity, of the mean over documents of their means per token, or the metric in per cent."""
    [scores] = jm.evaluate(model, task)["results"].values()
    if name.startswith("perplexity"):
        return round(float(np.exp(-scores["likelihood"])), 3)
    [value] = (v for key, v in scores.items() if key.partition(",")[0] in ("acc", "exact_match"))
    return round(100 * float(value), 1)


def main() -> None:
    parser = make_parser(__doc__, __file__, output="keeps.json", work=True)
    common.add_folders(parser, "data")
    args = parser.parse_args()
    work = args.work.resolve()
    files = task_files(work, args.data)
    rows = known(Path(__file__).with_name("results.json"), "rows")
    for row in sorted(rows, key=lambda row: (row["name"] not in ("base", *run.SOURCES), -row["heldout"])):
        if known(args.output, row["name"]) is None:
            found = {n: measured(run.folder_of(work, row["name"], "0"), n, file) for n, file in files.items()}
            record(args.output, found, row["name"])
            print(row["name"], found, flush=True)


if __name__ == "__main__":
    main()
