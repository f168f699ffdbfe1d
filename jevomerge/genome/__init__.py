"""Search vectors <-> named coefficients, and paths."""
