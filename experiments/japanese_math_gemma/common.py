"""What the scripts share: folders on the command line, and the task."""

import argparse
import json
from pathlib import Path
from typing import Any

import stories

from jevomerge.checkpoint.files import write_atomically

HERE = Path(__file__).parent
SIZES = {"search": 48, "heldout": 96}
FOLDERS = {
    "gemma": "Gemma 3 270M as a Hugging Face folder in bfloat16",
    "data": "folder that holds gsm8k, gsm8k_ja, mgsm and jcommonsenseqa",
}


def add_folders(parser: argparse.ArgumentParser, *names: str) -> None:
    """Ask for folders that the project does not bring."""
    for name in names:
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FOLDER", help=FOLDERS[name])


def task(work: Path) -> dict[str, Any]:
    """Right number and Japanese, as in the paper: there is Japanese, no Latin letter, and the last number is right."""
    values = {"name": "japanese_math", "prompt": "{prompt}", "answer": "{answer}", "score": "generation"}
    values |= {"pattern": r"^(?=[\s\S]*[ぁ-ヶ一-龠])[^A-Za-z]*?(\d+)[^A-Za-z\d]*$", "max_new_tokens": 32}
    return values | question_files(work, "ja")


def question_files(folder: Path, language: stories.Language) -> dict[str, str]:
    """Write what is asked: {split: file}."""
    values = {}
    for split, count in SIZES.items():
        file = folder / f"{split}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in stories.questions(count, split, language))
        write_atomically(file, "".join(lines))
        values[split] = str(file.resolve())
    return values
