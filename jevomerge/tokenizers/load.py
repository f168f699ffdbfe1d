"""Tokenizers from folders, and the tokens that end a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.source import TOKENIZER_FILES
from jevomerge.checkpoint.tokenizer_file import read_tokenizer
from jevomerge.errors import InputError
from jevomerge.models.families import class_default, nesting_of


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, which keeps in `model_ends` the ids at which the folder's model stops.

    Raises:
        InputError: if there is none.
    """
    from transformers import AutoTokenizer  # imported late: it takes seconds
    from transformers.utils import logging

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # what it remarks is about config.json, which is read elsewhere
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
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
    finally:
        logging.set_verbosity(level)
    if (path := folder / "chat_template.json").exists():  # a processor's, which older vision-language models have
        tokenizer.chat_template = read_json(path).get("chat_template")
    tokenizer.model_ends = model_ends(folder)
    return tokenizer


def model_ends(folder: Path) -> list[int]:
    """The ids at which `generate` of transformers stops: generation_config.json's, without that file config.json's.

    Raises:
        InputError: for an `eos_token_id` that is neither a token's id nor a list of them.
    """
    values, path = dict[str, Any](), folder / "generation_config.json"
    if path.exists():
        values = read_json(path)
    elif (path := folder / "config.json").exists():
        values = read_json(path)
        if nesting := nesting_of(values):
            values = nesting.alone(values, str(path))
        values = {"eos_token_id": class_default(values.get("model_type"), "eos_token_id"), **values}
    found = values.get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int and i >= 0 for i in ends):
        raise InputError(f"{path}: `eos_token_id: {found}` must be a token's id or a list of them")
    return ends


def ends_of_text(tokenizer: Any) -> list[int]:
    """The tokens that end a text, the tokenizer's own first, then those at which its model stops.

    Raises:
        InputError: if there is none.
    """
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if not (ends := list(dict.fromkeys([*own, *getattr(tokenizer, "model_ends", ())]))):
        raise InputError("the tokenizer has no end-of-text token (eos_token in tokenizer_config.json)")
    return ends


def padding(tokenizer: Any) -> int:
    """The token that fills rows, which no score depends on: its own or one that ends texts, whichever is smaller.

    A padding token that was added to a tokenizer may lie outside its model's vocabulary.
    """
    end = ends_of_text(tokenizer)[0]
    return end if tokenizer.pad_token_id is None else min(end, int(tokenizer.pad_token_id))
