"""A model as lm-evaluation-harness sees one: its requests as tokens, cut exactly as its own Hugging Face backend does.

Imports lm-eval (which does not need torch); `jevomerge.fitness.harness` imports this when a task asks for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from jevomerge.devices.mesh import make_mesh
from jevomerge.fitness.batches import Example
from jevomerge.fitness.harness.encoder import Encoder, answer
from jevomerge.fitness.members import ask
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.rollouts.generation import Generation
from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.models.model import Language
from jevomerge.tokenizers.load import padding


class HarnessModel(LM):
    """One model for lm-evaluation-harness, run by the jitted functions that score candidates.

    What it answers is what the harness's own Hugging Face backend does, in float32 to rounding; greedy texts only.
    """

    MULTIMODAL = True  # as the harness calls it

    def __init__(
        self,
        params: Any,
        model: Language,
        tokenizer: Any,
        max_length: int | None,
        tokens_per_batch: int = 16384,
        eyes: Eyes | None = None,
    ):
        """Parameters, their architecture; requests are run together up to so many tokens; `eyes` look at pictures."""
        super().__init__()
        self.encoder, self.tokenizer, self.eyes = Encoder(tokenizer, max_length, eyes), tokenizer, eyes
        self.params, self.model, self.tokens_per_batch = params, model, tokens_per_batch

    @property
    def tokenizer_name(self) -> str:
        """As the encoder's."""
        return self.encoder.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the encoder does."""
        return self.encoder.apply_chat_template(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(summed log-probability, whether greedy decoding would write it) of each continuation."""
        return self._score(self.encoder.loglikelihood(list(requests), disable_tqdm=True))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text."""
        return [total for total, _ in self._score(self.encoder.loglikelihood_rolling(requests))]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that each prompt is continued by, up to its first stop string."""
        prompts = self.encoder.generate_until(requests)
        written = [""] * len(prompts)
        for asked in sorted({p[1:] for p in prompts}):
            chosen = [i for i, p in enumerate(prompts) if p[1:] == asked]
            texts = self._ask(Generation(self.tokenizer, *asked, eyes=self.eyes), [prompts[i].example for i in chosen])
            for i, text in zip(chosen, texts, strict=True):
                written[i] = answer(prompts[i], [text])
        return written

    def _score(self, requests: list[list[Example]]) -> list[tuple[float, bool]]:
        examples = list(itertools.chain.from_iterable(requests))
        if not examples:
            return [(0.0, True) for _ in requests]
        outputs = iter(self._ask(Likelihood(padding(self.tokenizer), self.eyes), examples))
        return [answer(request, list(itertools.islice(outputs, len(request)))) for request in requests]

    def _ask(self, rollout: Rollout, examples: Sequence[Example]) -> list[Any]:
        rollout.check(self.model, examples)
        mesh, size = make_mesh(devices=jax.local_devices()[:1]), self.tokens_per_batch
        return ask(rollout, examples, self.params, self.model, tokens_per_batch=size, mesh=mesh)[0]
