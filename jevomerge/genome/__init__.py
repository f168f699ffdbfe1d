"""Search vectors <-> named coefficients."""

from jevomerge.genome.space import Space, express, make_space, start_of

__all__ = ["Space", "express", "make_space", "start_of"]
