"""Stop strings as an automaton over tokens, by which a text ends on the device where the host would cut it.

A table of one row per state, which says what follows on each token, is all that the device needs:

    state = table[state, token]        # from START; a text has ended where it is ENDED

A text only ends if what is left of it after cutting is what would be left had it gone on, whatever followed: if the
table cannot promise that, there is none. It may miss a stop string, which costs time and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

START, ENDED, FOUND, LOST, NOTHING = range(5)  # states; those after them have seen the beginning of a stop string
# FOUND: a stop string whose bytes may yet turn out not to be text; LOST: bytes that may or may not be text.
MOST_STATES = 256  # of which a byte tells
RUN = 256  # added to a byte that is a token of its own, <0x0A>
PLAIN = re.compile("(Replace )*(ByteFallback )?(Fuse (Strip )?)?")  # decoders by which each token has its own text


def stop_table(tokenizer: Any, stops: Sequence[str], vocab_size: int) -> np.ndarray | None:
    """(S, vocab_size) uint8 what follows a state on a token; S is a multiple of 16. None: the host alone must cut.

    Args:
        tokenizer: what the host decodes with, without its special tokens.
        stops: in the order in which the host cuts, each time before the first occurrence.
        vocab_size: of the model; tokens that the tokenizer does not know have no text.
    """
    stops = [s for s in dict.fromkeys(stops) if s]
    if not stops or not _settled(stops) or (spelled := spellings(tokenizer, vocab_size)) is None:
        return None
    texts, runs, strips = spelled
    automaton = _automaton([s.encode() for s in stops], strips)
    if len(automaton) > MOST_STATES:
        return None
    states = -(-len(automaton) // 16) * 16  # few shapes, few programs
    table = np.zeros((states, vocab_size), np.uint8)
    table[: len(automaton)] = _follow(automaton, texts, runs)
    return table


def ended_by(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(..., T) tokens -> (..., T) whether a stop string has ended the text, with this token or before."""
    state, ended = np.full(tokens.shape[:-1], START), np.zeros(tokens.shape, bool)
    for t in range(tokens.shape[-1]):
        state = table[state, tokens[..., t]]
        ended[..., t] = state == ENDED
    return ended


# --- strings ------------------------------------------------------------------------------------------------


def _settled(stops: Sequence[str]) -> bool:
    """Whether a text that has come to the end of one of them is cut at the same place however it goes on.

    Not so if one that is cut at earlier can overlap it from another beginning: of ["cd", "bc"], "abc" is cut to "a",
    but "abcd" to "ab". Nor is it known of what stands for bytes that are no text.
    """
    if any(re.search("[\ud800-\udfff\ufffd]", s) for s in stops):
        return False
    return not any(_overlaps(a, b) for i, b in enumerate(stops) for a in stops[:i])


def _overlaps(a: str, b: str) -> bool:
    """Whether, in some text, `a` begins elsewhere than `b` does, but before the end of `b`, and ends after it."""
    shifts = range(len(b) - len(a) + 1, len(b))  # of the beginning of `a`, as seen from that of `b`
    return any(a[max(-i, 0) : len(b) - i] == b[max(i, 0) :] for i in shifts if i)


def _automaton(stops: Sequence[bytes], strips: bool) -> np.ndarray:
    """(S, 512) what follows a state on a byte, or on RUN + a byte that is a token of its own.

    A run of such tokens becomes text once it is over, and only if all of it is UTF-8. So what it has completed has to
    wait for its end; and bytes that are not known to be UTF-8, because no stop string has them, are LOST.
    """
    prefixes = list(dict.fromkeys(s[:i] for s in stops for i in range(len(s))))  # the first is empty
    state = {prefix: NOTHING + i for i, prefix in enumerate(prefixes)}
    table = np.full((NOTHING + len(state), 2 * RUN), NOTHING)
    byte = np.arange(RUN)
    inside = (byte & 0xC0) == 0x80  # continues a character
    for prefix, row in state.items():
        for b in set(b"".join(stops)):
            seen = prefix + bytes([b])
            longest = next(seen[i:] for i in range(len(seen) + 1) if seen[i:] in state)
            table[row, [b, RUN + b]] = [ENDED, FOUND] if seen.endswith(tuple(stops)) else state[longest]
        run = table[row, RUN:]
        partial = prefix.decode(errors="ignore").encode() != prefix  # ends within a character
        run[(inside != partial) | (byte > 127) & (run == NOTHING)] = LOST
    table[ENDED] = ENDED
    table[FOUND] = np.concatenate([np.full(RUN, ENDED), np.where(byte > 127, LOST, FOUND)])
    table[LOST] = np.concatenate([table[NOTHING, :RUN], np.full(RUN, LOST)])
    table[START] = table[NOTHING]
    if strips:
        table[START, [ord(" "), RUN + ord(" ")]] = NOTHING
    return table


def _follow(automaton: np.ndarray, texts: Sequence[bytes], runs: np.ndarray) -> np.ndarray:
    """(S, V) what follows a state on each token, of its bytes one after another."""
    lengths = np.array([len(text) for text in texts])
    order = np.argsort(-lengths, kind="stable")  # the longest first: those that have an n-th byte are at the front
    symbols = np.frombuffer(b"".join(texts), np.uint8) + RUN * np.repeat(runs, lengths)
    first = (np.cumsum(lengths) - lengths)[order]
    state = np.repeat(np.arange(len(automaton), dtype=np.uint8)[:, None], len(texts), axis=1)
    for n in range(lengths.max(initial=0)):
        symbol = symbols[first[lengths[order] > n] + n]
        some = state[:, : len(symbol)]
        some[:] = automaton[some, symbol]
    table = np.empty_like(state)
    table[:, order] = state
    return table


# --- tokens -------------------------------------------------------------------------------------------------


def spellings(tokenizer: Any, vocab_size: int) -> tuple[list[bytes], np.ndarray, bool] | None:
    """The bytes of each token, whether it is a byte by itself, and whether a text loses a space that it begins with.

    Special tokens, which the host leaves out, have none. None if it is not known how the tokenizer decodes.
    """
    from transformers import PreTrainedTokenizerFast  # imported late: it takes seconds

    known = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not known or type(tokenizer)._decode is not PreTrainedTokenizerFast._decode or _cleans(tokenizer):
        return None
    backend = tokenizer.backend_tokenizer
    steps = _decoders(backend.decoder)
    kinds = "".join(step["type"] + " " for step in steps)
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    tokens = [backend.id_to_token(i) for i in range(vocab_size)]
    tokens = [None if token in special else token for token in tokens]
    if kinds == "ByteLevel ":
        return [_of_alphabet(t or "") for t in tokens], np.zeros(vocab_size, bool), False
    if not kinds or not PLAIN.fullmatch(kinds) or "" in tokens:
        return None
    replaced = [(s["pattern"].get("String"), s["content"]) for s in steps if s["type"] == "Replace"]
    strips = [(s["content"], s["start"], s["stop"]) for s in steps if s["type"] == "Strip"]
    if any(not old for old, _ in replaced) or strips not in ([], [(" ", 1, 0)]):
        return None
    texts, runs = [], np.zeros(vocab_size, bool)
    for i, text in enumerate(t or "" for t in tokens):
        for old, new in replaced:
            text = text.replace(old, new)
        runs[i] = "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-Fa-f]{2}>", text) is not None
        texts.append(bytes.fromhex(text[3:5]) if runs[i] else text.encode())
    return texts, runs, bool(strips)


def _cleans(tokenizer: Any) -> bool:
    """Whether the tokenizer takes spaces out of the text that it has decoded; not all that say so do."""
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    return "a ." not in str(tokenizer.decode(tokenizer.encode("a .", add_special_tokens=False)))


def _decoders(decoder: Any) -> list[dict[str, Any]]:
    """What a tokenizer's decoder does, step by step."""
    described = {} if decoder is None else json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = described["decoders"] if described.get("type") == "Sequence" else [described]
    return steps if described else []


def _alphabet() -> Iterator[tuple[str, int]]:
    """The characters that stand for the 256 bytes in GPT-2's vocabulary."""
    others = 256
    for b in range(256):
        shown = 33 <= b <= 126 or 161 <= b <= 172 or b >= 174
        yield chr(b if shown else others), b
        others += not shown


BYTES = dict(_alphabet())


def _of_alphabet(token: str) -> bytes:
    """The bytes that a token is spelled by; one with other characters is what it is."""
    try:
        return bytes([BYTES[c] for c in token])
    except KeyError:
        return token.encode()
