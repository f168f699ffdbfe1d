"""Merge methods once more, in plain NumPy and float64, written from the papers' and mergekit's formulas."""

import numpy as np


def linear(xs, weight, normalize):
    total = sum(w * x for w, x in zip(weight, xs, strict=True))
    return total / sum(weight) if normalize else total


def slerp(a, b, t):
    u, v = a.ravel(), b.ravel()
    cosine = u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def keep_top(x, density):
    """The int(density * size) largest by magnitude."""
    keep = np.zeros(x.size, bool)
    keep[np.argsort(-np.abs(x.ravel()), kind="stable")[: int(density * x.size)]] = True
    return np.where(keep.reshape(x.shape), x, 0)


def generalized(base, deltas, weight, normalize, lam, elect):
    """deltas: already sparsified."""
    weighted = np.array([w * d for w, d in zip(weight, deltas, strict=True)])
    weights = np.array(weight).reshape(-1, *[1] * base.ndim)
    if elect:
        sign = np.where(weighted.sum(0) >= 0, 1, -1)
        agree = np.sign(weighted) == sign
        mixed, divisor = (weighted * agree).sum(0), (weights * agree).sum(0)
        divisor = np.where(divisor == 0, 1, divisor)
    else:
        mixed, divisor = weighted.sum(0), weights.sum()
        divisor = 1 if abs(divisor) < 1e-8 else divisor
    if normalize:
        mixed = mixed / divisor
    return base + lam * mixed
