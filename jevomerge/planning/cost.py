"""What a traced program computes and moves, counted from its jaxpr: loops multiplied, nothing compiled.

XLA's own `cost_analysis` counts the body of a loop once, and a search is loops: over layers, tokens and members.

Matrix products and convolutions are exact: 2 x the elements of the result x what each of them sums. Every other
arithmetic operation counts one per element of its result (of its input where it reduces). Bytes are those of a good
compiler: elementwise chains, casts, slices and the reductions that end them are fused and never stored, so that a value
moves when a matrix product, a reduction, a sort, a loop or the result needs it; an update in place moves the part that
is written. Shapes inside `jax.shard_map` are those of one slice of its manual axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from jevomerge.devices.collectives import bare

Reads = dict[int, int]  # {a stored value: bytes of it that are needed}

# Move or rename values; free inside a fusion.
LAYOUT = {
    "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p",
    "device_put", "dynamic_slice", "expand_dims", "gather", "iota", "optimization_barrier", "pad", "pvary", "reshape",
    "rev", "sharding_constraint", "slice", "split", "squeeze", "stop_gradient", "transpose",
}  # fmt: skip
SLICES = {"slice", "dynamic_slice", "gather", "split"}
REDUCTIONS = {"reduce", "argmax", "argmin", *(f"reduce_{kind}" for kind in ("sum", "max", "min", "prod", "and", "or"))}
STORED = {
    "all_gather",
    "sort",
    "cumsum",
    "cumprod",
    "cummax",
    "scatter",
    "scatter-add",
    "top_k",
}  # never fused with what follows


class Cost(NamedTuple):
    """What a program does in one slice of the population, all `model` devices together."""

    matmul: float = 0.0  # FLOPs of matrix products
    other: float = 0.0  # other arithmetic operations
    bytes: float = 0.0  # read from and written to memory
    fetched: float = 0.0  # bytes from the memory of the host
    unknown: frozenset[str] = frozenset()  # loops whose trip count is not known, counted once

    @property
    def flops(self) -> float:
        """All arithmetic."""
        return self.matmul + self.other

    def __add__(self, other: Any) -> Cost:
        matmul, rest, moved, fetched = (a + b for a, b in zip(self[:4], other[:4], strict=True))
        return Cost(matmul, rest, moved, fetched, self.unknown | other.unknown)

    def times(self, n: float) -> Cost:
        """The same n times."""
        return Cost(self.matmul * n, self.other * n, self.bytes * n, self.fetched * n, self.unknown)


def cost_of(jaxpr: core.ClosedJaxpr, trips: Mapping[str, float] | None = None) -> Cost:
    """Count a program, e.g. `cost_of(jax.jit(f).trace(*args).jaxpr)`.

    Args:
        jaxpr: of the program.
        trips: how often loops run whose length is dynamic, by the `jax.named_scope` around them; of a choice which
            branch it takes in the mean, the dearest if that is not said.
    """
    walk = _Walk(trips or {})
    inner = jaxpr.jaxpr
    env = _Env(inner, [walk.stored(v.aval) for v in inner.invars], [walk.stored(v.aval) for v in inner.constvars])
    total = walk.body(inner, env)
    return total + walk.sink([env.read(v) for v in inner.outvars], inner.outvars)


class _Value(NamedTuple):
    reads: Reads  # what must be read to have it
    computed: bool  # more than moved: where it is needed whole it must be stored


class _Env:
    """The values of one jaxpr's variables."""

    def __init__(self, jaxpr: Any, inputs: Sequence[_Value], consts: Sequence[_Value]):
        self.values = dict(zip(jaxpr.invars, inputs, strict=True)) | dict(zip(jaxpr.constvars, consts, strict=True))

    def read(self, var: Any) -> _Value:
        return _Value({}, False) if isinstance(var, core.Literal) else self.values[var]


class _Walk:
    def __init__(self, trips: Mapping[str, float]):
        self.trips = trips
        self.count = 0

    def stored(self, aval: Any) -> _Value:
        """A new value in memory."""
        self.count += 1
        return _Value({self.count: size_of(aval)}, False)

    def sink(self, values: Sequence[_Value], variables: Sequence[Any]) -> Cost:
        """Values that leave: what was computed is written, and what that needs is read."""
        moved = 0
        for value, var in zip(values, variables, strict=True):
            if value.computed:
                moved += sum(value.reads.values()) + size_of(var.aval)
        return Cost(bytes=moved)

    def body(self, jaxpr: Any, env: _Env) -> Cost:
        total = Cost()
        for eqn in jaxpr.eqns:
            total += self.equation(eqn, env)
        return total

    def equation(self, eqn: Any, env: _Env) -> Cost:
        name, inputs = eqn.primitive.name, [env.read(v) for v in eqn.invars]
        if name == "scan":
            return self.scan(eqn, env, inputs)
        if name == "while":
            return self.loop(eqn, env, inputs)
        if name == "cond":
            return self.cond(eqn, env, inputs)
        if (inner := _inner(eqn)) is not None:  # a function that is called: as if it were written here
            jaxpr = getattr(inner, "jaxpr", inner)
            if len(jaxpr.invars) == len(inputs):
                if name == "shard_map":  # of what is stored, each slice reads its own
                    inputs = [self.stored(v.aval) for v in jaxpr.invars]
                inside = _Env(jaxpr, inputs, [self.stored(v.aval) for v in jaxpr.constvars])
                cost = self.body(jaxpr, inside)
                env.values |= {v: inside.read(o) for v, o in zip(eqn.outvars, jaxpr.outvars, strict=True)}
                return cost
        out = eqn.outvars[0].aval if eqn.outvars else None
        if name in PRODUCTS:
            cost = Cost(matmul=PRODUCTS[name](eqn), bytes=size_of(out))
            for var, value in zip(eqn.invars, inputs, strict=True):
                cost += self.needed(var, value, env)
            env.values[eqn.outvars[0]] = self.stored(out)
            return cost
        if name in STORED or name in REDUCTIONS:
            cost = Cost(
                other=float(eqn.invars[0].aval.size),
                bytes=sum(_merged(inputs).values()) + sum(size_of(v.aval) for v in eqn.outvars),
            )
            env.values |= {v: self.stored(v.aval) for v in eqn.outvars}
            return cost
        if name == "dynamic_update_slice":
            cost = Cost(bytes=sum(inputs[1].reads.values()) + size_of(eqn.invars[1].aval))
            env.values[eqn.outvars[0]] = inputs[0]._replace(computed=False)
            return cost
        reads = _merged(inputs)
        if name in SLICES:  # where it begins is no part of it
            inputs = inputs[:1]
            whole = size_of(eqn.invars[0].aval)
            share = min(1.0, sum(size_of(v.aval) for v in eqn.outvars) / len(eqn.outvars) / whole) if whole else 1.0
            reads = {root: int(n * share) for root, n in inputs[0].reads.items()}
        computed = any(v.computed for v in inputs) or name not in LAYOUT
        env.values |= {v: _Value(reads, computed) for v in eqn.outvars}
        fetched = sum(size_of(v.aval) for v in eqn.invars if name == "device_put" and waits(v.aval))
        counted = 0 if name in LAYOUT else sum(v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
        return Cost(other=float(counted), fetched=float(fetched))

    def needed(self, var: Any, value: _Value, env: _Env) -> Cost:
        """An operand of what cannot be fused with its producer: stored, if it was computed, and read."""
        if isinstance(var, core.Literal):
            return Cost()
        if not value.computed:
            return Cost(bytes=sum(value.reads.values()))
        env.values[var] = self.stored(var.aval)
        return Cost(bytes=sum(value.reads.values()) + 2 * size_of(var.aval))

    def scan(self, eqn: Any, env: _Env, inputs: Sequence[_Value]) -> Cost:
        jaxpr, consts, carry = eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"], eqn.params["num_carry"]
        length = eqn.params["length"]
        total = Cost()
        for var, value in zip(eqn.invars, inputs, strict=True):
            if value.computed:
                total += self.needed(var, value, env)
        inside = [env.read(v) for v in eqn.invars[: consts + carry]]
        rows = [self.stored(v.aval) for v in jaxpr.invars[consts + carry :]]
        scope = _Env(jaxpr, [*inside, *rows], [self.stored(v.aval) for v in jaxpr.constvars])
        once = self.body(jaxpr, scope)
        once += self.sink([scope.read(v) for v in jaxpr.outvars], jaxpr.outvars)
        env.values |= {v: self.stored(v.aval) for v in eqn.outvars}
        return total + once.times(length)

    def loop(self, eqn: Any, env: _Env, inputs: Sequence[_Value]) -> Cost:
        jaxpr, first = eqn.params["body_jaxpr"].jaxpr, eqn.params["cond_nconsts"]
        scope_name = scope_of(eqn)
        n = self.trips.get(scope_name)
        total = Cost(unknown=frozenset() if n is not None else frozenset({scope_name or "while"}))
        for var, value in zip(eqn.invars, inputs, strict=True):
            if value.computed:
                total += self.needed(var, value, env)
        inside = [env.read(v) for v in eqn.invars[first:]]
        scope = _Env(jaxpr, inside, [self.stored(v.aval) for v in jaxpr.constvars])
        once = self.body(jaxpr, scope)
        once += self.sink([scope.read(v) for v in jaxpr.outvars], jaxpr.outvars)
        env.values |= {v: self.stored(v.aval) for v in eqn.outvars}
        return total + once.times(1.0 if n is None else n)

    def cond(self, eqn: Any, env: _Env, inputs: Sequence[_Value]) -> Cost:
        branches = []
        for branch in eqn.params["branches"]:
            jaxpr = branch.jaxpr
            scope = _Env(jaxpr, inputs[1:], [self.stored(v.aval) for v in jaxpr.constvars])
            cost = self.body(jaxpr, scope)
            branches.append(cost + self.sink([scope.read(v) for v in jaxpr.outvars], jaxpr.outvars))
        env.values |= {v: self.stored(v.aval) for v in eqn.outvars}
        taken = self.trips.get(scope_of(eqn))
        if taken is None:
            return max(branches, key=lambda c: (c.flops, c.bytes))
        taken = min(taken, len(branches) - 1.0)
        lower = math.floor(taken)
        return branches[lower].times(1 - taken + lower) + branches[math.ceil(taken)].times(taken - lower)


def _merged(values: Sequence[_Value]) -> Reads:
    reads: Reads = {}
    for value in values:
        for root, n in value.reads.items():
            reads[root] = max(n, reads.get(root, 0))
    return reads


def scope_of(eqn: Any) -> str:
    """The name of the innermost scope."""
    return bare(str(eqn.source_info.name_stack).rpartition("/")[2])


def _inner(eqn: Any) -> Any:
    return next((eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None)


def _dot_flops(eqn: Any) -> float:
    (left, _), _ = eqn.params["dimension_numbers"]
    inner = math.prod(eqn.invars[0].aval.shape[i] for i in left)
    return 2.0 * inner * eqn.outvars[0].aval.size


def _conv_flops(eqn: Any) -> float:
    kernel, layout = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
    return 2.0 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[layout[0]]


PRODUCTS = {"dot_general": _dot_flops, "conv_general_dilated": _conv_flops}


def waits(aval: Any) -> bool:
    """Whether it is in the memory of the host."""
    return bool(getattr(aval, "memory_space", None) == jax.memory.Space.Host)


def size_of(aval: Any) -> int:
    """Bytes of an array of this shape and dtype; 0 for what is no array."""
    shape, dtype = getattr(aval, "shape", None), getattr(aval, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 0)
    return 0 if shape is None else math.prod(shape) * itemsize
