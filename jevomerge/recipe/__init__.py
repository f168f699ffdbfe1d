"""mergekit's YAML <-> which tensors are merged with which coefficients."""

from jevomerge.recipe.resolve import Numbers
from jevomerge.recipe.schema import Recipe, read_recipe, read_stages
from jevomerge.recipe.sources import Sources, Tensor
from jevomerge.recipe.write import explain, write_recipe

__all__ = ["Numbers", "Recipe", "Sources", "Tensor", "explain", "read_recipe", "read_stages", "write_recipe"]
