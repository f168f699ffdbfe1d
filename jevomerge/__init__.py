"""Evolutionary model merging as pure JAX."""
