"""Which kind of problem a search is: asked here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

from jevomerge.checkpoint.pipeline import open_model
from jevomerge.genome.schema import Gene, PathSearch
from jevomerge.problems.joint import JointProblem
from jevomerge.problems.path import PathProblem
from jevomerge.problems.problem import Problem
from jevomerge.problems.weights import WeightProblem
from jevomerge.recipe.opening import Opener
from jevomerge.recipe.schema import Recipe


def make_problem(
    recipe: Recipe | None,
    genome: Mapping[str, Gene],
    path: PathSearch | None,
    mean: float | None,
    sigma: float,
    opener: Opener = open_model,
    extract: int | None = None,
) -> Problem:
    """The problem of a recipe with its genes, of a path, or of both.

    Args:
        recipe: to be merged by.
        genome: {parameter: gene}, which of the recipe's coefficients are searched.
        path: through the blocks of which models.
        mean: where genes of the recipe start, in the unit box; None: where the recipe has them.
        sigma: of the first generation.
        opener: of the recipe's models.
        extract: the rank of adapters that the recipe's models are searched as; None: they are as they are.

    Raises:
        InputError: for whatever is wrong with them or with their models.
    """
    if recipe is None:
        assert path is not None
        return PathProblem(path, sigma)
    weights = WeightProblem(recipe, genome, mean, opener, extract)
    return weights if path is None else JointProblem(weights, path, sigma)
