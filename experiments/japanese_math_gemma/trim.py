"""Gemma 3 270M with the part of its vocabulary that the texts here need: 262,144 tokens become some 25,000.

    python experiments/japanese_math_gemma/trim.py --gemma FOLDER --data DATA

Of a training step or a candidate's texts the whole vocabulary is three fifths of the work. What is left is exact: the
texts are cut into the same tokens (checked here for each of them), and the logits of what is kept are those of the
model as it was. What it can no longer do is write other tokens.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import common
import jax.numpy as jnp
import numpy as np
import stories
from arguments import make_parser
from tokenizers import Tokenizer

import jevomerge as jm
from jevomerge.checkpoint.export import export_folder, tensors_of, write_model
from jevomerge.models.families import read_model

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def texts(data: Path) -> Iterator[str]:
    """All that is read or to be written here."""
    for pair in (*stories.choices(data), *stories.gsm8k(data)):
        yield "".join(pair)
    for file in (data / "mgsm").glob("*.tsv"):
        yield from (line.split("\t")[0] for line in file.read_text().splitlines())
    for file in (data / "gsm8k_ja").glob("*.jsonl"):
        yield from (json.loads(line)["question"] for line in file.read_text().splitlines())
    rng = Random(0)
    for _ in range(20_000):
        problem = stories.draw(rng, stories.KINDS, rng.choice(("train", "search", "heldout")))
        yield from (problem.question(language) + problem.answer(language) for language in ("en", "ja"))
    yield from ("".join(pair) for _ in range(5_000) for pair in (stories.translation(rng), *stories.sums(rng)))
    yield "".join(map(chr, [*range(32, 127), *range(0x3041, 0x3097), *range(0x30A1, 0x30FB)])) + "、。「」\n"


def derived(token: str, ranks: dict[tuple[str, str], int]) -> set[str]:
    """The token and all that its merges make on the way to it, in the order in which BPE takes them."""
    parts, made = list(token), set(token)
    while len(parts) > 1:
        known = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]
        if not known:
            break
        _, at = min(known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made.add(parts[at])
    return made


def trimmed(full: dict[str, Any], used: Iterable[str]) -> tuple[dict[str, Any], np.ndarray]:
    """tokenizer.json of what is used, and the (kept,) ids that its tokens had, in their order."""
    model = full["model"]
    ranks = {(a, b): i for i, (a, b) in enumerate(model["merges"])}
    kept = {*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))}
    for token in used:
        kept |= derived(token, ranks)
    order = sorted((model["vocab"][token], token) for token in kept if token in model["vocab"])
    vocab = {token: i for i, (_, token) in enumerate(order)}
    merges = [[a, b] for a, b in model["merges"] if a in vocab and b in vocab and a + b in vocab]
    added = [t for t in full["added_tokens"] if t["content"] in SPECIAL]
    assert [vocab[t["content"]] for t in added] == [t["id"] for t in added]  # what the other files say of them holds
    new = {**full, "added_tokens": added, "model": {**model, "vocab": vocab, "merges": merges}}
    return new, np.array([old for old, _ in order])


def main() -> None:
    parser = make_parser(__doc__, __file__, output=None, work=True)
    common.add_folders(parser, "gemma", "data")
    args = parser.parse_args()
    full = Tokenizer.from_file(str(args.gemma / "tokenizer.json"))
    lines = list(dict.fromkeys(texts(args.data)))
    cut = [e.tokens for e in full.encode_batch(lines, add_special_tokens=False)]
    tokenizer, ids = trimmed(json.loads((args.gemma / "tokenizer.json").read_text()), {t for row in cut for t in row})
    checked = Tokenizer.from_str(json.dumps(tokenizer))
    assert [e.tokens for e in checked.encode_batch(lines, add_special_tokens=False)] == cut
    source = jm.Checkpoint(args.gemma)
    params = source.load()
    params["embed_tokens"]["weight"] = jnp.asarray(params["embed_tokens"]["weight"])[ids]
    config = json.loads((args.gemma / "config.json").read_text()) | {"vocab_size": len(ids)}
    model = read_model(config)
    with export_folder(args.work / "base") as new:
        for name in ("tokenizer_config.json", "generation_config.json"):
            (new / name).write_text((args.gemma / name).read_text())
        (new / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        write_model(new, model.files, model.specs, "bfloat16", tensors_of(params))
    print(f"{len(lines)} texts, {len(ids)} of {full.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
