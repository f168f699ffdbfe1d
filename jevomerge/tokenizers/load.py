"""Tokenizers from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.source import TOKENIZER_FILES
from jevomerge.checkpoint.tokenizer_file import read_tokenizer
from jevomerge.errors import InputError


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        InputError: if there is none.
    """
    from transformers import AutoTokenizer  # imported late: it takes seconds

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # what the files hold decides which, panics of the compiled part included
        if (path := folder / "tokenizer.json").exists():
            read_tokenizer(path)  # which may know better what is wrong
        if (config := folder / "tokenizer_config.json").exists() and "auto_map" in read_json(config):
            raise InputError(
                f"{config}: `auto_map` names Python code for its tokenizer, which is never run; save the tokenizer as "
                "tokenizer.json with a class of transformers"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{folder}: its tokenizer cannot be read ({reason}); copy tokenizer.json and tokenizer_config.json again "
            "from where the model is from"
        ) from error


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
