"""Merging as pure functions: sources and coefficients in, one model out."""
