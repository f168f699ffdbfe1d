"""A user's own merge method that fails for some coefficients, and the command that knows it.

`python -m tests.e2e.ailing evolve ...` is `jevomerge evolve ...` with the method `ailing`, the plain average weighted
by the sources' `weight`; where that of the first source is above 0.5, it does what the environment's AILMENT says.
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jevomerge as jm
from jevomerge.cli import main


def merge(sources, base, coefficients, prepared, keys):
    weight = coefficients["weight"]
    shape = jax.ShapeDtypeStruct(weight.shape, weight.dtype)
    weight = jax.pure_callback(suffer, shape, weight, vmap_method="sequential")
    return sum(w * x.astype(jnp.float32) for w, x in zip(weight, sources, strict=True))


def suffer(weight):
    weight = np.asarray(weight)
    if weight[0] > 0.5:
        match os.environ.get("AILMENT"):
            case "raises":
                raise ArithmeticError("the first weight is too large for me")
            case "hangs":
                time.sleep(10**6)
            case "nan":
                return np.full_like(weight, np.nan)
            case "infinite":
                return np.full_like(weight, np.inf)
    return weight


AILING = jm.register(jm.MergeMethod("ailing", (jm.Parameter("weight", None, per_model=True),), merge))

if __name__ == "__main__":
    sys.exit(main())
