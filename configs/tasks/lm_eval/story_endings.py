"""The data of story_endings.yaml; the harness itself reads local files only relative to where it is started."""

from pathlib import Path

import datasets


def read(**_):
    """Both splits of the JSONL file beside this one."""
    rows = datasets.Dataset.from_json(str(Path(__file__).with_suffix(".jsonl")), keep_in_memory=True)
    return {split: rows.filter(lambda row, split=split: row["split"] == split) for split in ("train", "test")}
