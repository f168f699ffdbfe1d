"""From what a user writes to files on this machine: folders, hub names, adapters behind a plus."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.remote import fetched, is_remote, reach
from jevomerge.errors import InputError
from jevomerge.schema import read_text

SUFFIX = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def parse_json(text: str | bytes) -> Any:
    """The value that `text` stands for; ValueError for whatever is wrong with it, two values of one key included."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs) and (doubled := [key for key, value in pairs if values[key] != value]):
        raise ValueError(f"`{doubled[0]}` is given twice, with different values")
    return values


def read_json(path: Path, folder: str = "a Hugging Face checkpoint") -> dict[str, Any]:
    """The object in a JSON file of what should be such a `folder`, or an `InputError` that names the file."""
    if not path.exists():
        raise InputError(f"{path} does not exist; is {path.parent} {folder}?")
    try:
        value = parse_json(read_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); is it damaged? Copy or download it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold an object, {{...}}, not {json.dumps(value):.40}; copy or download it again")
    return value


def split_adapter(reference: str) -> tuple[str, str | None]:
    """`model+adapter` -> (model, adapter); a folder or file whose name has a plus in it wins over the notation."""
    if is_here(reference) or "+" not in reference:
        return reference, None
    splits = [(reference[:i], reference[i + 1 :]) for i, c in enumerate(reference) if c == "+"]
    here = [(model, adapter) for model, adapter in splits if is_here(model) and is_here(adapter)]
    return here[0] if here else splits[-1]


def is_here(reference: str) -> bool:
    """Whether it is a folder on this machine, or a file that is named as one of weights."""
    path = Path(reference).expanduser()
    return path.is_dir() or (path.suffix in (SUFFIX, *PICKLES) and path.is_file())


DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md")


def resolve(reference: str, patterns: Sequence[str] = DOWNLOADED) -> Path:
    """The local folder or file of a reference, downloading only if it can be nothing but a hub name, or is on gs://.

    Of a single file on the hub that is `owner/name[@revision]/file.safetensors`. `patterns`: of the names of files that
    are downloaded of others.
    """
    if is_remote(reference):
        return fetched(reference, PICKLES)
    path = Path(reference).expanduser()
    if path.suffix in PICKLES and path.is_file():
        raise InputError(
            f"{reference} is a pickle file, which can run code and is never opened; load it once with the program that "
            f"it is from and save it as {SUFFIX}"
        )
    if is_here(reference):
        return path
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/([\w./-]+\.safetensors))?", reference)
    found = None if reference.startswith(".") else found
    if path.suffix == SUFFIX and (found is None or found[3] is None):
        raise InputError(f"{reference} does not exist")
    if found is None:
        raise InputError(f"{reference} is neither a folder nor a hub name (owner/name[@revision])")
    from huggingface_hub import hf_hub_download, snapshot_download  # imported late: only hub names need it

    name, revision, file = found.groups()
    try:
        if file is not None:
            return Path(hf_hub_download(name, file, revision=revision))
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns]))
    except InputError:  # --offline
        raise
    except Exception as error:
        raise InputError(
            f"{reference} is not a folder here, and downloading it from the hub failed: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def expanded(path: str | Path) -> Path:
    """A path that a user gave: `~` is the home folder, as shells have it; on gs:// one of `etils.epath`."""
    return reach(path) if is_remote(path) else Path(os.path.expanduser(path))


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file has either its old content or all of `content`, whenever the machine stops."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, path)
