"""Which genes the fitness depends on, as a random forest has learnt it from all candidates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jevomerge.reports.record import Paths, Run
from jevomerge.reports.words import gene_names

LEAST = 40  # candidates, below which nothing can be said
MOST = 256  # genes; a forest of more takes minutes
SHOWN = 20  # genes
EXPLAINS = 0.1  # R² below which a forest has learnt too little to be asked


class Row(NamedTuple):
    """A gene, and how much of R² is lost when its values are shuffled among the candidates."""

    name: str
    mean: float
    spread: float  # standard deviation over shuffles


class Importance(NamedTuple):
    """The most important genes, or why there are none."""

    rows: list[Row]
    explained: float | None  # R² on candidates that each tree has not seen
    reason: str = ""


def importance(record: Run, paths: Paths | None) -> Importance:
    """Permutation importance, as scikit-learn computes it; of a path its slots count, not its scales.

    Deterministic: the forest and the shuffles are seeded.
    """
    known = ~np.isnan(record.fitness)
    names, values = gene_names(record.genes[: record.num_weight_genes]), record.genomes[:, : record.num_weight_genes]
    if paths is not None:
        slots = [name.removeprefix("slot ") for name in record.genes if name.startswith("slot ")]
        names, values = [*names, *(f"slot {s}" for s in slots)], np.hstack([values, paths.on.astype(np.float64)])
    if known.sum() < LEAST or np.ptp(record.fitness[known]) == 0:
        return Importance([], None, f"It takes {LEAST} candidates, not all of one fitness, to say which genes matter.")
    if len(names) > MOST:
        return Importance([], None, f"Which of more than {MOST} genes matter is not computed.")
    try:
        from sklearn.ensemble import RandomForestRegressor
        from sklearn.inspection import permutation_importance
    except ImportError:
        again = f"pip install 'jevomerge[report]', then jevomerge report {record.folder}"
        return Importance([], None, f"Which genes matter is computed with scikit-learn: {again}")
    forest = RandomForestRegressor(100, min_samples_leaf=2, max_features=1 / 3, oob_score=True, random_state=0)
    forest.fit(values[known], record.fitness[known])
    if forest.oob_score_ < EXPLAINS:
        learnt = f"A random forest explains too little of the fitness (R² {forest.oob_score_:.2f})"
        return Importance([], float(forest.oob_score_), f"{learnt} to say which genes matter.")
    found = permutation_importance(forest, values[known], record.fitness[known], n_repeats=5, random_state=0)
    order = np.argsort(-found.importances_mean, kind="stable")[:SHOWN]
    rows = [Row(names[i], float(found.importances_mean[i]), float(found.importances_std[i])) for i in order]
    return Importance(rows, float(forest.oob_score_))
