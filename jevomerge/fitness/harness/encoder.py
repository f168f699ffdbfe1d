"""Requests of lm-evaluation-harness as tokens, cut exactly as its own Hugging Face backend cuts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example
from jevomerge.fitness.chat import for_template
from jevomerge.fitness.pictures import Eyes, Picture, images_of

MAX_LENGTH = 2048  # what the harness assumes where neither model nor tokenizer says


MAX_NEW_TOKENS = 256  # likewise


GREEDY = {"do_sample", "temperature", "top_p", "top_k"}  # settings that greedy decoding makes no use of


class Prompt(NamedTuple):
    """A text to be continued."""

    example: Example
    limit: int  # new tokens
    until: tuple[str, ...]
    penalty: float  # of repetition


class Encoder(TemplateLM):
    """Answers requests not with a model's answers but with what a model is given for them.

    `loglikelihood` and `loglikelihood_rolling` return lists of `Example` per request, `generate_until` a `Prompt`.
    """

    def __init__(self, tokenizer: Any, max_length: int | None, eyes: Eyes | None = None):
        """`max_length` of the model, None where its config does not say; `eyes` look at pictures."""
        super().__init__()
        self.tokenizer, self.eyes = tokenizer, eyes
        own = getattr(tokenizer, "model_max_length", None)
        self.max_length: int = max_length or (own if own and own < 10**9 else MAX_LENGTH)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return int(self.eot_token_id if (begin := self.tokenizer.bos_token_id) is None else begin)

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; one that begins with the begin-of-text token gets no second one."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **given))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as a prompt, without the system's where the template does not know one."""
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        options["continue_final_message"] = not add_generation_prompt
        if self.eyes is not None:
            chat_history = for_template(chat_history, self.tokenizer)
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **options))
        except jinja2.exceptions.TemplateError:
            rest = [m for m in chat_history if m["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(rest, **options))

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[list[Example]]:
        """Contexts with their continuations; with pictures as well, which the harness's own backend leaves out."""
        seen = self._seen(requests)
        texts = [
            dataclasses.replace(request, arguments=(text, request.args[1]))
            for request, (text, _) in zip(requests, seen, strict=True)
        ]
        found: list[list[Example]] = super().loglikelihood(texts, disable_tqdm)
        return [
            [self._shown(e, request, pictures) for e in examples]
            for examples, request, (_, pictures) in zip(found, requests, seen, strict=True)
        ]

    def _seen(self, requests: Sequence[Instance]) -> list[tuple[str, tuple[Picture, ...]]]:
        """Of each request the context as it is tokenised, and the pictures in it."""
        found, known = list[tuple[str, tuple[Picture, ...]]](), dict[int, tuple[Picture, ...]]()
        for request in requests:
            context, _, *more = request.args
            if not more:
                found.append((context, ()))
                continue
            if "audio" in more[0]:
                raise InputError("a task with sounds cannot be judged here, only texts and pictures can")
            if self.eyes is None:
                raise InputError("a task with pictures needs a vision-language model")
            where = f"document {request.doc_id}"
            if id(more[0]) not in known:  # the choices of a document share it
                given = enumerate(images_of(more[0]["visual"]))
                known[id(more[0])] = tuple(self.eyes.picture(x, Path(), f"{where}, picture {i}") for i, x in given)
            pictures = known[id(more[0])]
            found.append((self.eyes.placed(self.eyes.marked(context, pictures), pictures, where), pictures))
        return found

    def _shown(self, example: Example, request: Instance, pictures: tuple[Picture, ...]) -> Example:
        """An example of a request, with its pictures and the context as the task has it."""
        if not pictures:
            return example
        assert self.eyes is not None
        return self.eyes.shown(example._replace(prompt=request.args[0]), pictures, f"document {request.doc_id}")

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[list[Example]]:
        return [[self._scored(*request)] for request in requests]

    def _scored(self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]) -> Example:
        """Context and continuation, cut from the left to what the model can take."""
        if not 0 < len(continuation) <= self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens cannot be scored, the model takes 1 to {self.max_length}"
            )
        tokens = (context + continuation)[-(self.max_length + 1) :]
        prompt, answer = texts or ("", self.tokenizer.decode(continuation))
        return Example(prompt, answer, tokens[: -len(continuation)], continuation)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[list[Example]]:
        """The windows of each text: as much context as fits, each token predicted once."""
        found = []
        for text, *more in (request.args for request in requests):
            if more:
                raise InputError("the likelihood of a whole text is asked for, of which no picture can be a part")
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            found.append([self._scored(None, *make_disjoint_window(window)) for window in windows])
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[Prompt]:
        """Prompts, cut from the left to leave room for the new tokens."""
        found = []
        for request, (text, pictures) in zip(requests, self._seen(requests), strict=True):
            prompt = self.prompt(text, request.args[1])
            found.append(prompt._replace(example=self._shown(prompt.example, request, pictures)))
        return found

    def prompt(self, context: str, settings: dict[str, Any]) -> Prompt:
        """A context and the task's `generation_kwargs`, which must be those of greedy decoding.

        No beams: which of them the harness's own backend lets stop strings end depends on its batches.
        """
        given = dict(normalize_gen_kwargs(settings, MAX_NEW_TOKENS))
        until, limit, penalty = given.pop("until"), given.pop("max_gen_toks"), given.pop("repetition_penalty", 1.0)
        if given.get("num_beams") == 1:
            del given["num_beams"]
        if given.get("do_sample") or (other := given.keys() - GREEDY):
            what = "do_sample" if given.get("do_sample") else min(other)
            raise InputError(f"generation_kwargs: {what} is not supported, texts are decoded greedily")
        if not isinstance(penalty, float | int) or not penalty > 0:
            raise InputError(f"generation_kwargs: repetition_penalty is {penalty!r}, not a positive number")
        if limit >= self.max_length:
            raise InputError(
                f"generation_kwargs: {limit} new tokens leave no room for a prompt, the model takes {self.max_length}"
            )
        begun = has_bos_prefix(context, getattr(self.tokenizer, "bos_token", None))
        tokens = list(self.tokenizer(context, **({"add_special_tokens": False} if begun else {}))["input_ids"])
        tokens = tokens[-(self.max_length - limit) :] or [self.prefix_token_id]
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        stops = tuple(handle_stop_sequences(list(until), eos=end))
        return Prompt(Example(context, "", tokens, []), limit, stops, float(penalty))


def answer(request: list[Example] | Prompt, outputs: Sequence[Any]) -> Any:
    """What a model answers to an encoded request, from what it made of its examples (see `Material.read`)."""
    if isinstance(request, Prompt):
        return postprocess_generated_text(outputs[0], list(request.until), None)
    total = sum(mean * len(example.answer_tokens) for example, (mean, _) in zip(request, outputs, strict=True))
    return total, all(match for _, match in outputs)
