"""The data of jmmmu.yaml: rows with `question`, `options` (a list in a text), `answer`, `image_1` to `image_7`."""

import ast
import re

import datasets

HUB = "JMMMU/JMMMU"
MARK = re.compile(r"<image ?(\d)>")  # in questions and in options
ASK = "与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。"


def read(data_files=None, **_):
    """The questions with choices, of all subjects mixed: of the hub, or of Parquet files."""
    if data_files is not None:
        rows = datasets.load_dataset("parquet", data_files=data_files, split="train")
    else:
        subjects = datasets.get_dataset_config_names(HUB)
        rows = datasets.concatenate_datasets([datasets.load_dataset(HUB, name, split="test") for name in subjects])
    kinds = rows["question_type"]
    return {"test": rows.select([i for i, kind in enumerate(kinds) if kind == "multiple-choice"]).shuffle(seed=0)}


def options(doc):
    """The choices."""
    return ast.literal_eval(doc["options"])


def letters(doc):
    """Those of the choices: A, B, ..."""
    return [chr(ord("A") + i) for i in range(len(options(doc)))]


def numbered(doc):
    """The prompt, in which pictures have numbers."""
    choices = "\n".join(f"{letter}. {option}" for letter, option in zip(letters(doc), options(doc), strict=True))
    return f"{doc['question']}\n{choices}\n\n{ASK}"


def prompt(doc):
    """The prompt, with a mark for each picture."""
    return MARK.sub("<image>", numbered(doc))


def pictures(doc):
    """The pictures in the order of their marks; one that is named twice is shown twice."""
    return [doc[f"image_{number}"] for number in MARK.findall(numbered(doc))]
