"""Who is scored on the whole search split at the end."""

import numpy as np
import pytest

from jevomerge.search.loop import finalists_of
from jevomerge.strategies.schema import Search


def ranked(fitness):
    """Records, the best first, from {generation: fitnesses of its members}."""
    records = [{"generation": g, "member": m, "fitness": f} for g, row in enumerate(fitness) for m, f in enumerate(row)]
    return sorted(records, key=lambda r: -r["fitness"])


def places(found):
    return [(r["generation"], r["member"]) for r in found]


def search(**settings):
    return Search.model_validate({"finalists": 3, **settings})


def test_minibatches_send_the_best_of_each_of_the_last_generations():
    """The first generation's questions were easy: none of its candidates is among them."""
    rng = np.random.default_rng(0)
    fitness = rng.uniform(size=(6, 4)) + np.array([9, 3, 1, 0, 2, 1])[:, None]
    found = places(finalists_of(ranked(fitness), search(examples_per_generation=4)))
    assert found == [(g, int(fitness[g].argmax())) for g in (5, 4, 3)]


def test_few_generations_send_their_next_best_too():
    found = places(finalists_of(ranked([[0.5, 0.9, 0.7], [0.2, 0.1, 0.3]]), search(examples_per_generation=4)))
    assert found == [(1, 2), (0, 1), (1, 0)]


def test_a_generation_without_a_fitness_sends_nobody():
    found = places(finalists_of(ranked([[0.5], [], [0.4, 0.6]]), search(examples_per_generation=4, finalists=2)))
    assert found == [(2, 1), (0, 0)]


@pytest.mark.parametrize("settings", [{}, {"anchors": {"examples": 2}}])
def test_else_it_is_the_best_of_all_each_genome_once(settings):
    records = ranked([[0.5, 0.9], [0.95, 0.2]])
    records.insert(1, {"generation": 1, "member": 2, "fitness": 0.94, "copy_of": [1, 0]})
    assert places(finalists_of(records, search(**settings))) == [(1, 0), (0, 1), (0, 0)]
