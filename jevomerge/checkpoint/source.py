"""Reading Hugging Face checkpoints: a folder, or a repository on the hub, of safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jevomerge.checkpoint.hf_config import read_config
from jevomerge.checkpoint.specs import ParamSpec, param_specs, unflatten
from jevomerge.errors import InputError
from jevomerge.models import DecoderConfig

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Buffers that old checkpoints carry and every reader recomputes.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq|.*\.masked_bias|.*\.attn\.bias")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


class Checkpoint:
    """A checkpoint that has been opened and checked, of which no weight has been read.

    `name` (the last component of the reference) identifies it in genomes, recipes and random masks.
    """

    def __init__(self, reference: str | Path):
        """Open `reference`, a folder or a hub name `owner/name[@revision]`.

        Raises:
            InputError: naming the file and the remedy if the checkpoint cannot be merged as it is.
        """
        self.reference = str(reference)
        self.folder = resolve(self.reference)
        self.name = self.reference.rstrip("/").rsplit("/", 1)[-1]
        self.config_json: dict[str, Any] = read_json(self.folder / "config.json")
        self.config: DecoderConfig = read_config(self.config_json, str(self.folder / "config.json"))
        self.specs = param_specs(self.config)
        self._files = {name: file for file, names in self._index().items() for name in names}
        self._open: dict[str, Any] = {}
        self._check_names()

    def _index(self) -> dict[str, list[str]]:
        """{file: names of the tensors it holds}, from the files' own headers."""
        if (self.folder / INDEX).exists():
            index = read_json(self.folder / INDEX).get("weight_map", {})
            files = sorted(set(index.values()))
            for file in files:
                if not (self.folder / file).exists():
                    raise InputError(
                        f"{self.folder}: shard {file} is missing, though {INDEX} lists it; download it again"
                    )
        elif (self.folder / WEIGHTS).exists():
            files = [WEIGHTS]
        else:
            pickles = [p.name for p in (*self.folder.glob("*.bin"), *self.folder.glob("*.pt*"))]
            remedy = (
                f"only pickle files ({', '.join(sorted(pickles)[:3])}), which can run code and are never opened; "
                "convert them once with `transformers`: model.save_pretrained(FOLDER, safe_serialization=True)"
                if pickles
                else f"no {WEIGHTS} and no {INDEX}"
            )
            raise InputError(f"{self.folder} has {remedy}")
        return {file: list(self._file(file).keys()) for file in files}

    def _file(self, name: str) -> Any:
        try:
            return safe_open(self.folder / name, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{self.folder / name} cannot be read ({error}); it is truncated or damaged, download it again"
            ) from None

    def _check_names(self) -> None:
        """Every tensor the architecture has is there once with the right shape, and nothing else is."""
        wanted = {name: spec for spec in self.specs for name in spec.names()}
        found = {name for name in self._files if not IGNORED.fullmatch(name)}
        if self.config.tie_word_embeddings:
            found.discard("lm_head.weight")
        for problem, names in (
            ("is missing", wanted.keys() - found),
            ("is not expected", found - wanted.keys()),
        ):
            if names:
                first, more = min(names), f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                raise InputError(f"{self.folder}: tensor {first}{more} {problem}; config.json and the weights disagree")
        for name, spec in wanted.items():
            shape = tuple(self.slice(name).get_shape())
            if shape != spec.shape:
                raise InputError(f"{self.folder}: {name} has shape {shape}, but config.json says {spec.shape}")

    def slice(self, name: str) -> Any:
        """A lazy view of one tensor (`safetensors` slice)."""
        file = self._files[name]
        return self._handle(file).get_slice(name)

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = self._file(file)
        return self._open[file]

    def tensor(self, name: str) -> np.ndarray:
        """One tensor, read now; NaN or infinity in it is an error."""
        array = self._handle(self._files[name]).get_tensor(name)
        if not all_finite(array):
            raise InputError(
                f"{self.folder}: {name} contains NaN or infinity; the checkpoint is broken, "
                "leave it out or download it again"
            )
        return array

    def leaf(self, spec: ParamSpec) -> np.ndarray:
        """One leaf of the pytree, layers stacked."""
        if spec.num_layers is None:
            return self.tensor(spec.names()[0])
        rows = (self.tensor(name) for name in spec.names())
        first = next(rows)
        leaf = np.empty(spec.leaf_shape, first.dtype)  # filled row by row: never two copies of a leaf
        leaf[0] = first
        for i, row in enumerate(rows, start=1):
            if row.dtype != leaf.dtype:
                leaf = leaf.astype(np.promote_types(leaf.dtype, row.dtype))
            leaf[i] = row
        return leaf

    def load(self) -> dict[str, Any]:
        """The whole model as the nested pytree that `jevomerge.models.apply` takes, in the stored dtypes."""
        if self.config.tie_word_embeddings and "lm_head.weight" in self._files:
            head, embedding = self.tensor("lm_head.weight"), self.tensor("model.embed_tokens.weight")
            if not np.array_equal(head, embedding):
                raise InputError(
                    f"{self.folder}: config.json says tie_word_embeddings, but lm_head.weight differs from "
                    "the embeddings; set tie_word_embeddings to false"
                )
        return unflatten({spec.path: jnp.asarray(self.leaf(spec)) for spec in self.specs})

    def dtype(self) -> str:
        """The safetensors dtype (F32, BF16, F16) of its first matrix."""
        name = next(name for spec in self.specs if len(spec.shape) == 2 for name in spec.names())
        return str(self.slice(name).get_dtype())

    def tokenizer_files(self) -> Iterator[Path]:
        """The tokenizer's files that exist."""
        return (p for name in TOKENIZER_FILES if (p := self.folder / name).exists())

    def vocabulary(self) -> dict[str, int] | None:
        """Token -> id from `tokenizer.json`, or None without one."""
        path = self.folder / "tokenizer.json"
        if not path.exists():
            return None
        data = read_json(path)
        vocab = data["model"].get("vocab", {})
        if isinstance(vocab, list):  # unigram models list (token, score)
            vocab = {token: i for i, (token, _) in enumerate(vocab)}
        return vocab | {t["content"]: t["id"] for t in data.get("added_tokens", [])}

    def licence(self) -> str | None:
        """The licence in the model card's front matter, if it names one."""
        card = self.folder / "README.md"
        if not card.exists():
            return None
        front = re.match(r"---\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
        found = re.search(r"^license:\s*['\"]?([^\s'\"]+)", front[1], re.MULTILINE) if front else None
        return found[1].lower() if found else None


def all_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite."""
    if array.dtype.name == "bfloat16":  # NumPy would convert it element by element; look at the exponent instead
        return not np.any((array.view(np.uint16) & 0x7F80) == 0x7F80)
    return bool(np.isfinite(array).all())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file, or an `InputError` that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; is {path.parent} a Hugging Face checkpoint?") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def resolve(reference: str) -> Path:
    """The local folder of a reference, downloading only if it can be nothing but a hub name."""
    if (path := Path(reference).expanduser()).is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference) or reference.startswith("."):
        raise InputError(f"{reference} is neither a folder nor a hub name (owner/name[@revision])")
    from huggingface_hub import snapshot_download  # imported late: only hub names need it

    name, _, revision = reference.partition("@")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise InputError(
            f"{reference} is not a folder here, and downloading it from the hub failed: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
