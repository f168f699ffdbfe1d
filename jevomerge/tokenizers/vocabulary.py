"""One vocabulary for checkpoints that differ in theirs: which row every token gets, and the tokenizer's files.

The rules are mergekit's. A model keeps its own row of a token that it has. A token that it lacks gets the row
that the recipe names, else the base model's, else the mean over all models that have it, else zeros; rows
without a token are the mean over the model's tokens. Then any merge method runs on matrices of one shape.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jevomerge.checkpoint.export import copy_beside
from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.source import Source
from jevomerge.checkpoint.tokenizer_file import read_tokenizer
from jevomerge.errors import InputError
from jevomerge.tokenizers.schema import ModelToken, TokenizerSpec, ZeroToken

# Say the same as tokenizer.json in older words, and would contradict one that has been extended.
OLD_FILES = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """Where each of V rows comes from, for N models: its own row, else the mean of the donors' rows."""

    checkpoints: tuple[Source, ...]
    vocabularies: tuple[dict[str, int], ...]  # of the checkpoints
    vocabulary: dict[str, int]  # of the output
    own: np.ndarray  # (N, V) rows of each model itself, -1 where it has none
    donors: np.ndarray  # (N, V) rows that are given to whichever model has none of its own, -1 where not a donor
    like: Source  # whose tokenizer the output's is, but for
    tokenizer: dict[str, Any] | None  # the extended tokenizer.json; None: it has all tokens

    @property
    def size(self) -> int:
        """Rows of the output's embedding and head."""
        return self.own.shape[1]

    @property
    def identity(self) -> bool:
        """Whether every model's matrices are already what `matrices` returns."""
        sizes = {c.model.vocab_size for c in self.checkpoints}
        return sizes == {self.size} and bool((self.own == np.arange(self.size)).all())

    def matrices(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The embeddings (or heads) of all models, re-indexed to the output's vocabulary.

        Args:
            arrays: one (V_i, D) per model, in the order of `checkpoints`.

        Returns:
            one (V, D) per model, in its own dtype.
        """
        if self.identity:
            return list(arrays)
        lacking = np.flatnonzero((self.own < 0).any(0))  # K rows, few if the models are siblings
        given = np.zeros((len(lacking), arrays[0].shape[1]), np.float32)
        for array, rows in zip(arrays, self.donors[:, lacking], strict=True):
            given[rows >= 0] += array[rows[rows >= 0]].astype(np.float32)
        given /= np.maximum((self.donors[:, lacking] >= 0).sum(0), 1)[:, None]
        tokens = np.fromiter(self.vocabulary.values(), int)
        padding = np.setdiff1d(np.arange(self.size), tokens)
        aligned = []
        for array, own in zip(arrays, self.own, strict=True):
            out = array[np.maximum(own, 0)]
            without = own[lacking] < 0
            out[lacking[without]] = given[without].astype(out.dtype)
            if len(padding):  # these rows are zeros here: nobody has them, nobody gives them
                out[padding] = (out.sum(0, dtype=np.float64) / len(tokens)).astype(out.dtype)
            aligned.append(out)
        return aligned

    def explain(self) -> list[str]:
        """How many tokens come from where: a line for the output and one per model."""
        tokens = np.fromiter(self.vocabulary.values(), int)
        known = sum(t in self.vocabulary for t in self.vocabularies[self.checkpoints.index(self.like)])
        lines = [
            f"vocabulary: {self.size} rows, {len(tokens)} tokens: "
            f"{known} of {self.like.name}'s tokenizer, {len(tokens) - known} appended"
        ]
        donors = (self.donors[:, tokens] >= 0).sum(0)
        for checkpoint, own in zip(self.checkpoints, self.own[:, tokens] >= 0, strict=True):
            kinds = (own, ~own & (donors == 1), ~own & (donors > 1), ~own & (donors == 0))
            names = ("its own", "of another model or token", "mean of several", "zero")
            found = [f"{k.sum()} {name}" for k, name in zip(kinds, names, strict=True) if k.any()]
            lines.append(f"  {checkpoint.name}: {', '.join(found)}")
        return lines


def align(checkpoints: Sequence[Source], base: int | None, spec: TokenizerSpec, at_least: int = 0) -> Alignment:
    """Plan one vocabulary for all `checkpoints`, reading their tokenizers and no weights.

    Args:
        checkpoints: all models of the merge.
        base: which of them is the base model, if one is.
        spec: the recipe's `tokenizer`; `tokenizer_source: x` is `TokenizerSpec(source="x")`.
        at_least: so many rows, the last ones perhaps without a token.

    Raises:
        InputError: for a model without tokenizer.json, a source that does not exist, tokenizers without a union.
    """
    vocabularies = [_vocabulary(c) for c in checkpoints]
    rows = [c.model.vocab_size for c in checkpoints]
    like = base or 0 if spec.source in ("union", "base") else index_of(checkpoints, spec.source, "tokenizer source")
    if spec.source == "union":  # of the tokens that are more than a name: some model has a row for them
        known = set(spec.tokens).union(*(_rows(v, n) for v, n in zip(vocabularies, rows, strict=True)))
        united = [{t: i for t, i in v.items() if t in known} for v in vocabularies]
    else:
        united = vocabularies
    output = dict(united[like])
    # In the order of the models and their ids, so that equal recipes give equal tokenizers.
    further = (v for v in united if spec.source == "union")
    end = max(output.values()) + 1
    for token in (*(t for v in further for t in sorted(v, key=v.__getitem__)), *spec.tokens):
        if token not in output:
            output[token], end = end, end + 1
    nothing_to_do = not spec.tokens and not spec.pad_to_multiple_of and len(set(rows)) == 1
    if nothing_to_do and all(v == output for v in united):
        own = np.tile(np.arange(rows[0]), (len(rows), 1))  # spare rows, if any, stay
    else:
        multiple = spec.pad_to_multiple_of or 1
        own = np.full((len(rows), -(-max(end, at_least) // multiple) * multiple), -1)
        for i, vocabulary in enumerate(vocabularies):
            for token, new in output.items():
                if (row := vocabulary.get(token, -1)) < rows[i]:  # else a token was added, its row was not
                    own[i, new] = row
    donors = own.copy()
    if base is not None:
        donors[np.arange(len(rows)) != base] = np.where(own[base] < 0, np.delete(own, base, 0), -1)
    for token, setting in spec.tokens.items():
        donors[:, output[token]] = -1
        if not isinstance(setting.source, ZeroToken):
            donor, row = _row(checkpoints, vocabularies, token, setting.source)
            donors[donor, output[token]] = row
        if setting.force:
            own[:, output[token]] = -1
    tokenizer = _extended(checkpoints, vocabularies, like, output, spec.source == "union")
    return Alignment(tuple(checkpoints), tuple(vocabularies), output, own, donors, checkpoints[like], tokenizer)


def _vocabulary(checkpoint: Source) -> dict[str, int]:
    if (vocabulary := checkpoint.vocabulary()) is None:
        raise InputError(
            f"{checkpoint.folder} has no tokenizer.json, without which its vocabulary cannot be aligned; write "
            "one with `transformers`: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return vocabulary


def read_beside(checkpoint: Source, file: str) -> dict[str, Any]:
    """One of the tokenizer's files; empty without it."""
    path = checkpoint.folder / file
    return read_json(path) if path.exists() else {}


def token_names(checkpoint: Source, ids: Iterable[int]) -> tuple[str, ...]:
    """The tokens of a model with these ids, in order of their names."""
    names = {i: token for token, i in (checkpoint.vocabulary() or {}).items()}
    return tuple(sorted({names.get(i, str(i)) for i in ids}))


def _rows(vocabulary: Mapping[str, int], rows: int) -> set[str]:
    """The tokens of a model of so many rows that have one."""
    return {token for token, row in vocabulary.items() if row < rows}


def index_of(checkpoints: Sequence[Source], model: str, what: str) -> int:
    """Which checkpoint the recipe means by `model`: its reference, another path to it, or its name."""
    for same in (
        lambda c: c.reference == model,
        lambda c: Path(c.reference).expanduser().resolve() == Path(model).expanduser().resolve(),
        lambda c: c.name == model,
    ):
        if found := [i for i, c in enumerate(checkpoints) if same(c)]:
            return found[0]
    raise InputError(
        f"{what}: {model} takes no part in the merge; name one of {', '.join(c.name for c in checkpoints)}"
    )


def _row(
    checkpoints: Sequence[Source], vocabularies: Sequence[Mapping[str, int]], token: str, source: str | ModelToken
) -> tuple[int, int]:
    """The (model, row) that a token's setting names."""
    where = f"tokenizer: tokens: {token!r}"
    if isinstance(source, str):
        source = ModelToken(kind="model_token", model=source, token=token)
    i = index_of(checkpoints, source.model, where)
    row = vocabularies[i].get(source.token) if source.token is not None else source.token_id
    rows, name = checkpoints[i].model.vocab_size, checkpoints[i].name
    if row is None:
        raise InputError(
            f"{where}: {name} has no token {source.token!r}; name a model that has it, another token with "
            f"{{kind: model_token, model: {name}, token: ...}}, or {{kind: zero}}"
        )
    if row >= rows:
        raise InputError(f"{where}: {name} has {rows} rows, none of them number {row}; choose another source")
    return i, row


def _extended(
    checkpoints: Sequence[Source],
    vocabularies: Sequence[Mapping[str, int]],
    like: int,
    output: Mapping[str, int],
    union: bool,
) -> dict[str, Any] | None:
    """The tokenizer.json of model `like` with the tokens of `output`, None if it has just these.

    Added tokens of other models stay added (and special) ones. The rest of a union's tokens go into the BPE
    vocabulary, and the merges that make them behind the merges that there are: the union of a tokenizer and an
    extension of it is the extension, which it would not be if they became added tokens, as mergekit makes them.
    """
    ours = vocabularies[like]
    data = read_tokenizer(checkpoints[like].folder / "tokenizer.json")
    added = {t["content"]: t for t in data.get("added_tokens", []) if t["content"] in output}
    merges = {pair: None for pair in _merges(data["model"]) if {*pair, "".join(pair)} <= output.keys()}
    before, ordinary, left_out = len(added), set[str](), ours.keys() - output.keys()
    for i, checkpoint in enumerate(checkpoints):
        theirs = data if i == like else read_tokenizer(checkpoint.folder / "tokenizer.json")
        entries = {t["content"]: t for t in theirs.get("added_tokens", [])}
        for token, entry in entries.items():
            if token in output and token not in added and (token not in ours or (union and entry.get("special"))):
                added[token] = entry | {"id": output[token]}
        if union and (new := (vocabularies[i].keys() & output.keys()) - ours.keys() - entries.keys()):
            _check_union(checkpoints[like], data, checkpoint, theirs, min(new))
            ordinary |= new
            merges |= {pair: None for pair in _merges(theirs["model"]) if "".join(pair) in output}
    for token, new_id in output.items():
        if token not in ours and token not in added and token not in ordinary:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            added[token] = {"id": new_id, "content": token, **flags}
    if len(added) == before and not ordinary and not left_out:
        return None
    model = dict(data["model"])
    if "merges" in model:
        model["merges"] = [list(pair) for pair in merges]
    if isinstance(model.get("vocab"), dict):  # added tokens too: loaders number those that are not in it afresh
        model["vocab"] = dict(sorted(output.items(), key=lambda item: item[1]))
    return data | {"model": model, "added_tokens": sorted(added.values(), key=lambda t: t["id"])}


def _merges(model: Mapping[str, Any]) -> dict[tuple[str, ...], None]:
    """BPE merges as an ordered set of pairs; old files write a pair as one string."""
    return {tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m): None for m in model.get("merges", [])}


def _check_union(a: Source, ours: Mapping[str, Any], b: Source, theirs: Mapping[str, Any], token: str) -> None:
    """Refuse to mix tokens of tokenizers that spell tokens differently."""

    def spelling(data: Mapping[str, Any]) -> tuple[str, ...]:
        model = data["model"]
        affixes = (model.get(k) or "" for k in ("continuing_subword_prefix", "end_of_word_suffix"))
        kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")  # old files do not say
        return kind, "bytes" if "ByteLevel" in json.dumps(data.get("decoder")) else "characters", *affixes

    kinds = spelling(ours), spelling(theirs)
    if kinds[0] != kinds[1] or kinds[0][0] != "BPE":
        raise InputError(
            f"the tokenizers of {a.folder} ({' '.join(kinds[0]).strip()}) and {b.folder} "
            f"({' '.join(kinds[1]).strip()}) have no union: only BPE tokenizers that spell tokens alike have one "
            f"(token {token!r} is {b.name}'s alone); choose one of them, `tokenizer_source: base` or a model"
        )


def write_tokenizer(folder: Path, alignment: Alignment) -> None:
    """Write the output tokenizer's files into `folder`: copies of one model's, extended where tokens were appended."""
    for path in alignment.like.beside():
        if alignment.tokenizer is None or path.name not in OLD_FILES:
            copy_beside(path, alignment.like.folder, folder)
    if alignment.tokenizer is None:
        return
    (folder / "tokenizer.json").write_text(
        json.dumps(alignment.tokenizer, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (path := folder / name).exists():
            continue
        config = {role: token for role, token in read_json(path).items() if not _lost(role, token, alignment)}
        if (decoder := config.get("added_tokens_decoder")) is not None:
            known = {
                str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in alignment.tokenizer["added_tokens"]
            }
            config["added_tokens_decoder"] = known | {i: t for i, t in decoder.items() if i in known}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _lost(role: str, token: Any, alignment: Alignment) -> bool:
    """Whether an entry such as `pad_token` names a token that was left out; loaders would add it, without a row."""
    name = token.get("content") if isinstance(token, dict) else token
    ours = alignment.vocabularies[alignment.checkpoints.index(alignment.like)]
    return role.endswith("_token") and isinstance(name, str) and name in ours and name not in alignment.vocabulary


def special_ids(alignment: Alignment, config: Mapping[str, Any], like: int) -> dict[str, Any]:
    """The `*_token_id` entries of model `like`'s config.json or generation_config.json, for the output's vocabulary.

    They stand for the same tokens as before. A token that the output lacks is replaced by the one that the output's
    tokenizer_config.json names for that role, or None.
    """
    path = alignment.like.folder / "tokenizer_config.json"
    roles = read_json(path) if path.exists() else {}
    tokens = {i: token for token, i in alignment.vocabularies[like].items()}

    def new_id(key: str, value: Any) -> Any:
        if value is None or (alignment.identity and alignment.tokenizer is None):
            return value
        ids = [alignment.vocabulary.get(tokens.get(i, "")) for i in (value if isinstance(value, list) else [value])]
        if found := [i for i in ids if i is not None]:
            return found if isinstance(value, list) else found[0]
        named = roles.get(key.removesuffix("_id"))
        return alignment.vocabulary.get(named["content"] if isinstance(named, dict) else named or "")

    return {key: new_id(key, value) for key, value in config.items() if key.endswith("_token_id")}
