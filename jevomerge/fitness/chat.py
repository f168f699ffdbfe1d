"""Chats: in rows of data, by LLaVA's and by OpenAI's keys, and as texts, by the tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jevomerge.fitness.pictures import MARK

Turn = dict[str, Any]  # {"role": "user", "content": "..."}

KEYS = (("role", "content"), ("from", "value"))  # of a turn: OpenAI's and LLaMA-Factory's, LLaVA's
ROLES = {"human": "user", "gpt": "assistant"}  # LLaVA's words for them
QUESTION = "a question"


def turns_of(value: Any) -> list[Turn] | None:
    """The turns of a chat, whose roles are system, user and assistant; None: the value is no chat.

    Raises:
        ValueError: for turns of others, and what is no text.
    """
    turns = [_turn(turn) for turn in value] if isinstance(value, list | tuple) else []
    if not turns or None in turns:
        return None
    found = []
    for i, (role, content) in enumerate(filter(None, turns)):
        role = ROLES.get(str(role), role)
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"turn {i} of the chat is by `{role}`, not by system, user (human) or assistant (gpt)")
        if not isinstance(content, str):
            raise ValueError(f"turn {i} of the chat is {type(content).__name__}; pictures in a text are {MARK}")
        found.append({"role": role, "content": content})
    return found


def _turn(turn: Any) -> tuple[Any, Any] | None:
    """Its role and its content."""
    for keys in KEYS if isinstance(turn, Mapping) else ():
        if set(keys) <= turn.keys():
            return turn[keys[0]], turn[keys[1]]
    return None


def opened(turns: Sequence[Turn], tokenizer: Any) -> str:
    """What comes before the assistant's last turn, or after the user's, as the tokenizer's template writes it.

    Raises:
        ValueError: if the tokenizer has no template, or it does not take such a chat.
    """
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the prompt is a chat, but the tokenizer has no chat template (chat_template.jinja beside it)")
    given = for_template(turns, tokenizer, beside=r"\n*")
    try:
        return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template may do anything
        raise ValueError(f"the tokenizer's chat template does not take this chat: {error}") from error


def for_template(turns: Sequence[Turn], tokenizer: Any, beside: str = "") -> list[Turn]:
    """Turns as the tokenizer's template takes them: those of vision-language models want texts and pictures apart.

    `beside`: a regular expression of what goes with a picture's mark, where a template writes its own.
    """
    if not _wants_parts(tokenizer):
        return list(turns)
    split = re.compile(f"{beside}({MARK}){beside}").split
    return [turn | {"content": [_part(text) for text in split(turn["content"]) if text]} for turn in turns]


def _part(text: str) -> dict[str, str]:
    return {"type": "image"} if text == MARK else {"type": "text", "text": text}


def _wants_parts(tokenizer: Any) -> bool:
    """Whether the tokenizer's template writes the text in a list of parts, and not the list."""
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    except Exception:  # whatever it does: it takes texts
        return False
    return QUESTION in text and "type" not in text
