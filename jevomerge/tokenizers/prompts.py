"""Prompts of image models as the tokens that their text encoders read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jevomerge.errors import InputError
from jevomerge.models.clip.text import OLD_EOS
from jevomerge.models.diffusion.pipeline import Pipeline
from jevomerge.schema import Notes
from jevomerge.tokenizers.load import load_tokenizer

TOKENIZERS = ("tokenizer", "tokenizer_2")  # the folder of each text encoder's in a pipeline's


class PromptReader:
    """The tokenizers of an image model, one for each of its text encoders.

    Attributes:
        notes: what was cut.
    """

    def __init__(self, model: Pipeline, folders: Mapping[str, Path]):
        """Open them.

        Args:
            model: whose text encoders read.
            folders: {"tokenizer": its folder, ...}. Whether its class has a slow twin makes no difference here: there
                is one tokenizer of a folder, that of transformers' `AutoTokenizer`.

        Raises:
            InputError: if one is missing, or cannot be read.
        """
        wanted = TOKENIZERS[: len(model.text_encoders)]
        if missing := [name for name in wanted if name not in folders]:
            raise InputError(f"the image model has no {' and no '.join(missing)}: its prompts cannot be read")
        self.model, self.notes = model, Notes()
        self._folders = [folders[name] for name in wanted]
        self._tokenizers = list(map(load_tokenizer, self._folders))

    def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """(B, S) int32 for each text encoder, as `models.diffusion.pipeline.condition` takes them.

        A prompt is cut to what its encoder can read, which is noted, and padded to that.

        Raises:
            InputError: for a tokenizer that is not of its encoder.
        """
        return tuple(self._read(i, prompts) for i in range(len(self._tokenizers)))

    def _read(self, which: int, prompts: Sequence[str]) -> np.ndarray:
        tokenizer, c, folder = self._tokenizers[which], self.model.text_encoders[which], self._folders[which]
        length = min(tokenizer.model_max_length, c.max_position_embeddings)
        if tokenizer.pad_token_id is None:
            raise InputError(f"{folder}: its tokenizer has no `pad_token`, with which prompts are filled up")
        for prompt, whole in zip(prompts, tokenizer(list(prompts), verbose=False)["input_ids"], strict=True):
            if len(whole) > length:
                self.notes.add(f"prompt `{prompt:.60}` has {len(whole)} tokens and is cut: {folder} takes {length}")
        options = {"padding": "max_length", "max_length": length, "truncation": True, "padding_side": "right"}
        tokens = np.array(tokenizer(list(prompts), **options)["input_ids"], np.int32)
        if tokens.max() >= c.vocab_size:
            raise InputError(
                f"{folder}: its tokenizer has a token {tokens.max()}, its text encoder {c.vocab_size}; copy it again "
                "from where the text encoder is from"
            )
        ended = c.eos_token_id == OLD_EOS or (tokens == c.eos_token_id).any(axis=1).all()
        if self.model.pooled_from == which + 1 and not ended:
            raise InputError(
                f"{folder}: its tokenizer ends no text with the token {c.eos_token_id}, where the text encoder looks "
                "for the whole of it (`eos_token_id` in its config.json)"
            )
        return tokens
