"""The flags of mergekit-yaml and mergekit-multi, so that their command lines work here: heeded, or noted."""

from __future__ import annotations

import argparse
from typing import Any

from jevomerge.errors import InputError

STREAMED = "has no effect: tensors are merged one by one, on the devices that JAX finds"
DOWNLOADS = "has no effect: models are kept where HF_HOME says"
SWITCHES = {  # each also as --no-...
    "allow-crimes": "has no effect: models that do not fit together are refused",
    "unsafe-truncate-embeddings": "has no effect: embeddings are never cut; align them with `tokenizer_source`",
    "copy-tokenizer": "has no effect: the tokenizer is always written",
    "write-model-card": "has no effect: the card is always written",
    "safe-serialization": "has no effect: weights are always written as safetensors",
    "trust-remote-code": "has no effect: no code of models is ever run",
    "clone-tensors": "has no effect: every tensor is written by itself",
    "lazy-unpickle": "has no effect: pickles are never opened",
    "lazy": "has no effect: results of earlier documents are made again",
    "quiet": "has no effect: the progress is a line that is written over",
    **dict.fromkeys(("cuda", "low-cpu-memory", "read-to-gpu", "multi-gpu", "gpu-rich", "async-write"), STREAMED),
}
VALUES = {
    "transformers-cache": DOWNLOADS,
    "lora-merge-cache": "has no effect: adapters are applied tensor by tensor, nothing is stored",
    "lora-merge-dtype": "has no effect: adapters are applied in float32",
    "intermediate-dir": "has no effect: results of earlier documents live in a temporary folder beside OUT",
    **dict.fromkeys(("device", "num-threads", "write-threads"), STREAMED),
}
SHORT = {"num-threads": "-j", "intermediate-dir": "-I"}
UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}


class _Note(argparse.Action):
    """Remembers that a flag was given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.ignored = [*namespace.ignored, f"{option_string} {self.const}"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add them; those that are ignored end up as notes in `ignored`."""
    group = parser.add_argument_group(
        "mergekit's flags", "Those of mergekit-yaml and mergekit-multi are accepted, with a note where they do nothing."
    )
    group.add_argument("--random-seed", type=int, metavar="N", help="of random masks, instead of the recipe's `seed`")
    group.add_argument("--out-shard-size", metavar="SIZE", help="of a file of weights in bytes, such as 5B or 500M")
    group.add_argument("--out-path", metavar="OUT", help="the same as OUT")
    hidden: dict[str, Any] = {"action": _Note, "dest": "ignored", "default": [], "help": argparse.SUPPRESS}
    group.add_argument("-v", nargs=0, const="has no effect: there is one degree of talkativeness", **hidden)
    for name, note in SWITCHES.items():
        group.add_argument(f"--{name}", f"--no-{name}", nargs=0, const=note, **hidden)
    for name, note in VALUES.items():
        group.add_argument(f"--{name}", *([SHORT[name]] if name in SHORT else []), nargs=1, const=note, **hidden)


def read_size(text: str) -> int:
    """ "500M" -> 500,000,000.

    Raises:
        InputError: for anything that is not a number of bytes greater than 0.
    """
    number, unit = (text[:-1], UNITS[text[-1].lower()]) if text[-1:].lower() in UNITS else (text, 1)
    if not (number.isdecimal() and int(number)):
        raise InputError(f"--out-shard-size: `{text}` is not a size, such as 5B or 500M")
    return int(number) * unit
