"""Search vectors <-> named coefficients."""

from jevomerge.genome.space import Space, express, make_space

__all__ = ["Space", "express", "make_space"]
