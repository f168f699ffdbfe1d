"""Tokenizers from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.source import TOKENIZER_FILES
from jevomerge.errors import InputError


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        InputError: if there is none.
    """
    from transformers import AutoTokenizer  # imported late: it takes seconds

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def model_ends(folder: Path) -> list[int]:
    """The ids at which `generate` of transformers stops: generation_config.json's, without that file config.json's.

    Raises:
        InputError: for an `eos_token_id` that is neither a token's id nor a list of them.
    """
    path = next(p for name in ("generation_config.json", "config.json") if (p := folder / name).exists())
    found = read_json(path).get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int and i >= 0 for i in ends):
        raise InputError(f"{path}: `eos_token_id: {found}` must be a token's id or a list of them")
    return ends


def end_of_text(tokenizer: Any) -> int:
    """The token that ends a text.

    Raises:
        InputError: if there is none.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token (eos_token in tokenizer_config.json)")
    return int(tokenizer.eos_token_id)


def padding(tokenizer: Any) -> int:
    """The token that fills rows: its own, or the one that ends texts."""
    end = end_of_text(tokenizer)
    return end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
