"""Merge methods once more, in plain NumPy and float64, written from the papers' and mergekit's formulas.

Vectors are handled as vectors here, with none of the shortcuts of `jevomerge.methods` (no inner products prepared, no
tables, no thresholds looked up).  `METHODS[name](xs, base, paper=..., fields=..., **parameters)` takes the sources,
and for the random methods the uniform numbers that decide, one tensor per source.
"""

import itertools

import numpy as np

# --- averages and spheres -----------------------------------------------------------------------------------


def linear(xs, base, *, weight, normalize, **_):
    total = sum(w * x for w, x in zip(weight, xs, strict=True))
    return total / sum(weight) if normalize else total


def passthrough(xs, base, *, scale, **_):
    return scale[0] * xs[0]


def arc(a, b, t):
    """The point t along the great circle from the vector a to b, with interpolated length."""
    cosine = np.vdot(a, b) / max(np.linalg.norm(a), 1e-7) / max(np.linalg.norm(b), 1e-7)
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) < 1e-8:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def slerp(xs, base, *, t, **_):
    a, b = xs
    cosine = np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return (1 - t) * a + t * b if abs(cosine) > 0.9995 else arc(a, b, t)


def nuslerp(xs, base, *, weight, nuslerp_flatten, nuslerp_row_wise, **_):
    origin = 0 if base is None else base
    a, b = (x - origin for x in xs)
    t = 0.5 if abs(sum(weight)) < 1e-6 else weight[1] / sum(weight)
    if nuslerp_flatten or a.ndim < 2:
        return origin + arc(a, b, t)
    if nuslerp_row_wise:
        return origin + np.stack([arc(*columns, t) for columns in zip(a.T, b.T, strict=True)]).T
    return origin + np.stack([arc(*rows, t) for rows in zip(a, b, strict=True)])


def multislerp(xs, base, *, weight, normalize_weights, eps, **_):
    """With the logarithms and the exponential map, which turn out to do nothing."""
    origin = 0 if base is None else base
    xs = [x - origin for x in xs]
    weight = np.asarray(weight) / (sum(weight) if normalize_weights else 1)
    norms = [np.linalg.norm(x) for x in xs]
    units = [x / (n + eps) for x, n in zip(xs, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weight, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (u - np.vdot(u, mean) * mean) for w, u in zip(weight, units, strict=True))
    length = np.linalg.norm(tangent) + eps
    return origin + (mean * np.cos(length) + tangent * np.sin(length) / length) * np.dot(weight, norms)


def karcher(xs, base, *, max_iter, tol, **_):
    norms = [np.linalg.norm(x) for x in xs]
    units = [x / n for x, n in zip(xs, norms, strict=True) if n > tol]
    if not units:
        return np.zeros_like(xs[0])
    mean = sum(units) / len(units)
    mean = mean / np.linalg.norm(mean) if np.linalg.norm(mean) > 1e-3 else units[0]
    for _ in range(int(max_iter)):
        tangent = np.zeros_like(mean)
        for u in units:
            rest = u - np.vdot(u, mean) * mean  # its length is the sine
            angle = np.arctan2(np.linalg.norm(rest), np.vdot(u, mean))
            if angle >= tol and np.linalg.norm(rest) > 1e-3 * (1 - np.cos(angle)):
                tangent += angle * rest / np.linalg.norm(rest) / len(units)
        length = np.linalg.norm(tangent)
        if length < tol or length == 0:
            break
        mean = np.cos(length) * mean + np.sin(length) * tangent / length
        mean = mean / np.linalg.norm(mean)
    return np.mean(norms) * mean


def model_stock(xs, base, *, filter_wise, **_):
    if filter_wise and base.ndim > 1:
        rows = zip(*xs, base, strict=True)
        return np.stack([model_stock(r[:-1], r[-1], filter_wise=False) for r in rows])
    deltas, n = [x - base for x in xs], len(xs)
    cosine = np.mean(
        [
            np.clip(np.vdot(a, b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6), -1, 1)
            for a, b in itertools.combinations(deltas, 2)
        ]
    )
    below = 1 + (n - 1) * cosine
    t = n * cosine / below if abs(below) > 1e-6 else 0
    return t * sum(xs) / n + (1 - t) * base


# --- two models ---------------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def arcee_fusion(xs, base, **_):
    (x,) = xs
    p, q = softmax(x) + 1e-8, softmax(base) + 1e-8
    importance = np.abs(x - base) * (p * np.log(p / q)).sum(-1, keepdims=True)
    ordered = np.sort(importance.ravel())
    first, median, third = (ordered[int(s * (ordered.size - 1))] for s in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (third - first), x, base)


def nearswap(xs, base, *, t, **_):
    w = np.clip(t / np.maximum(np.abs(base - xs[0]), 1e-6), 0, 1)
    return w * xs[0] + (1 - w) * base


# --- selections of elements ---------------------------------------------------------------------------------


def sce(xs, base, *, select_topk, paper=False, **_):
    deltas = np.array([x - base for x in xs])
    variance = deltas.var(axis=0)
    if select_topk < 1:
        k = int(np.count_nonzero(variance) * select_topk)
        if k == 0:
            return base
        deltas = deltas * (variance >= np.sort(variance.ravel())[-k])
    energy = (deltas**2).mean(axis=tuple(range(1, deltas.ndim)))
    uniform = energy.sum() <= 0 if paper else energy.sum() < 1e-6
    weight = np.full(len(xs), 1 / len(xs)) if uniform else energy / energy.sum()
    weight = weight.reshape(-1, *[1] * base.ndim)
    agree = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    return base + (deltas * weight * agree).sum(0) / np.maximum((weight * agree).sum(0), 1e-6)


def ramplus_tl(xs, base, *, r, alpha, epsilon, **_):
    deltas = np.array([x - base for x in xs])
    active = np.abs(deltas) > epsilon
    count = active.sum(0)
    total = np.zeros_like(base)
    for delta, on in zip(deltas, active, strict=True):
        unique, shared = on & (count == 1), on & (count > 1)
        factor = 1 + r * np.clip(shared.sum() / max(unique.sum(), epsilon), 0, alpha)
        total[unique] += factor * delta[unique]
        total[shared] += delta[shared] / count[shared]
    return base + total


def ram(xs, base, *, epsilon, **_):
    return ramplus_tl(xs, base, r=0, alpha=0, epsilon=epsilon)


# --- task arithmetic ----------------------------------------------------------------------------------------


def keep_top(x, density, gamma=0.0):
    """The int(density * size) largest by magnitude after the int(gamma * size) largest."""
    kept = int(density * x.size)
    first = min(int(gamma * x.size), x.size - kept)
    keep = np.zeros(x.size, bool)
    keep[np.argsort(-np.abs(x.ravel()), kind="stable")[first : first + kept]] = True
    return np.where(keep.reshape(x.shape), x, 0)


def della_probability(x, density, half_width):
    rank = np.argsort(np.argsort(np.abs(x), axis=-1, kind="stable"), axis=-1)
    probability = density + half_width * (2 * rank / (x.shape[-1] - 1) - 1)
    return np.full(x.shape, 1.0) if density >= 1 else np.clip(probability, 0, 1)


def generalized(base, deltas, weight, normalize, lam, elect):
    """deltas: already sparsified."""
    weighted = np.array([w * d for w, d in zip(weight, deltas, strict=True)])
    weights = np.array([np.broadcast_to(w, base.shape) for w in weight])
    if elect:
        sign = np.where(weighted.sum(0) >= 0, 1, -1)
        agree = np.sign(weighted) == sign
        mixed, divisor = (weighted * agree).sum(0), (weights * agree).sum(0)
        divisor = np.where(divisor == 0, 1, divisor)
    else:
        mixed, divisor = weighted.sum(0), weights.sum(0)
        divisor = np.where(np.abs(divisor) < 1e-8, 1, divisor)
    if normalize:
        mixed = mixed / divisor
    return base + lam * mixed


def family(keep, elect):
    """`keep`: (delta, field, paper, own parameters) -> (kept delta, probability of every element)."""

    def merge(xs, base, *, weight, normalize, paper=False, fields=None, rescale=0, **more):
        lam = more.pop("lambda")
        deltas = []
        for i, x in enumerate(xs):
            delta = x - base
            own = {name: values[i] for name, values in more.items()}
            kept, probability = keep(delta, None if fields is None else fields[i], paper, **own)
            if rescale and paper and keep in (by_chance, by_rank):
                kept = kept / np.maximum(probability, 1e-6)
            elif rescale:
                kept = kept * np.abs(delta).sum() / np.abs(kept).sum()
            deltas.append(kept)
        return generalized(base, deltas, weight, normalize, lam, elect)

    return merge


def everything(delta, field, paper):
    return delta, 1


def largest(delta, field, paper, density, gamma=0.0):
    return keep_top(delta, density, gamma), 1


def by_chance(delta, field, paper, density):
    return np.where(field < density, delta, 0), density


def by_rank(delta, field, paper, density, epsilon):
    probability = della_probability(delta, density, epsilon / 2 if paper else epsilon)
    return np.where(field < probability, delta, 0), probability


METHODS = {
    "linear": linear,
    "passthrough": passthrough,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
    "arcee_fusion": arcee_fusion,
    "nearswap": nearswap,
    "sce": sce,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "task_arithmetic": family(everything, elect=False),
    "ties": family(largest, elect=True),
    "breadcrumbs": family(largest, elect=False),
    "breadcrumbs_ties": family(largest, elect=True),
    "dare_linear": family(by_chance, elect=False),
    "dare_ties": family(by_chance, elect=True),
    "della_linear": family(by_rank, elect=False),
    "della": family(by_rank, elect=True),
}
