"""How long a candidate takes here, by scoring some."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from jevomerge.search.setup import Setup


class Timing(NamedTuple):
    """Seconds of processors that may be busy with other things, too."""

    first: float  # until the first candidates have been scored: the models are read and the programs compiled
    candidate: float  # each one that follows

    def of(self, evaluations: int) -> float:
        """A search of so many."""
        return self.first + evaluations * self.candidate


def time_candidates(setup: Setup, at_least: float = 2.0) -> Timing:
    """Load the models and score the candidates that a search begins with, for `at_least` so many seconds.

    Raises:
        InputError: for models that cannot be read to the end.
        FitnessError: if a candidate cannot be scored.
    """
    started = time.perf_counter()
    candidates = setup.problem.load(setup.mesh, setup.memory)
    mean = np.broadcast_to(setup.problem.mean, (len(setup.problem.names),))
    genomes = np.repeat(mean[None], setup.judge.group, axis=0)

    def score() -> None:
        list(setup.judge.members(candidates, genomes))

    score()
    ready, scored = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - ready) < at_least or not scored:
        score()
        scored += len(genomes)
    return Timing(ready - started, elapsed / scored)


def in_words(seconds: float) -> str:
    """ "about 12 minutes"."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} seconds"
    minutes = seconds / 60
    return f"about {minutes:.0f} minutes" if minutes < 90 else f"about {minutes / 60:.1f} hours"
