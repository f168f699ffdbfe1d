"""The devices as a mesh (pop, model): the members of a population over one axis, the weights of each over the other.

    mesh = make_mesh(pop=4, model=2)                            # or make_mesh(), for all devices
    params = Checkpoint(folder).load(mesh)                      # every process reads the bytes of its shards
    scores = spread(mesh, score)(params, genomes)               # pure; score(params, genomes of one slice of `pop`)

The same program runs on one device and on many. Over `pop` it is manual (`jax.shard_map`): slices share nothing, so
that members whose paths or texts have different lengths never wait for each other, and no collective crosses `pop`:
results are read where they are, and processes tell each other scores; only what is made of them once, merged models,
may be made from parts that lie on all slices (`dealt`). Over `model` the compiler splits what is split in its inputs:
of every tensor experts, heads, ff or vocab, if the model axis divides it; everything else is in every device. What a
device makes of its experts is added up by `summed`, in one exchange.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jevomerge.errors import InputError

WHOLE = P()  # in a slice of `pop`: all of an array
HOST = "pinned_host"  # the kind of memory that arrays lie in which wait in that of the host


def make_mesh(pop: int | None = None, model: int | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of those given); what is not given follows from their number, `model` being 1.

    Raises:
        InputError: for a shape that does not use exactly these devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    model = model or (count // pop if pop and count % pop == 0 else 1)
    pop = pop or count // model
    if pop * model != count:
        raise InputError(f"mesh: pop {pop} x model {model} is not the number of devices, {count}; or leave it out")
    return jax.make_mesh((pop, model), ("pop", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def split(mesh: Mesh | None, parts: Iterable[int]) -> NamedSharding | None:
    """Where an array lies whose axes may be cut into so many equal parts (0: not at all); None without a mesh.

    The first axis whose parts `model` divides is split over it; every slice of `pop` has the whole array.
    """
    if mesh is None:
        return None
    can = [bool(n) and n % mesh.shape["model"] == 0 for n in parts]
    return NamedSharding(mesh, P(*("model" if here and not any(can[:i]) else None for i, here in enumerate(can))))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def dealt(where: NamedSharding, shape: Sequence[int], leading: int) -> NamedSharding:
    """The same for an array of which each slice of `pop` has a part, which `gathered` undoes.

    Along its last axis, behind `leading` ones, that is not cut yet and can be; if none can, every slice has all.
    """
    count, axes = where.mesh.shape["pop"], [*where.spec, *[None] * (len(shape) - len(where.spec))]
    free = [i for i in range(leading, len(shape)) if axes[i] is None and shape[i] % count == 0]
    if count > 1 and free:
        axes[free[-1]] = "pop"
    return NamedSharding(where.mesh, P(*axes), memory_kind=where.memory_kind)


class Dealt(NamedTuple):
    """Axes of an array, counted from the end."""

    pop: int  # that along which each slice has a part
    model: int | None  # that which is split over `model`; None: none is


def dealt_axes(x: Any) -> Dealt | None:
    """Of an array (or shape) that is `dealt`; None: it is not."""
    axes = getattr(getattr(x, "sharding", None), "spec", ())
    if "pop" not in axes:
        return None
    return Dealt(axes.index("pop") - x.ndim, axes.index("model") - x.ndim if "model" in axes else None)


def gathered(x: Array, axes: Dealt) -> Array:
    """All of an array that is `dealt`, but for what is split over `model`; in `spread`, else it is whole already."""
    around = jax.sharding.get_abstract_mesh()
    if "pop" not in around.manual_axes:
        return x

    def local(x: Array) -> Array:
        return jax.lax.all_gather(x, "pop", axis=x.ndim + axes.pop, tiled=True)

    if axes.model is None or "model" not in around.auto_axes:
        return local(x)
    where = P(*[None] * (x.ndim + axes.model), "model")  # else the compiler would gather that axis, too
    return jax.shard_map(local, in_specs=where, out_specs=where, axis_names={"model"}, check_vma=False)(x)


def on_host(x: Any) -> bool:
    """Whether an array waits in the memory of the host."""
    return bool(jax.typeof(x).memory_space == jax.memory.Space.Host)


def moved(x: Any) -> Any:
    """The same in the memory of the device."""
    return jax.device_put(x, jax.memory.Space.Device) if on_host(x) else x


def by_member(mesh: Mesh) -> NamedSharding:
    """The first axis over `pop`."""
    return NamedSharding(mesh, P("pop"))


def put(array: np.ndarray, where: NamedSharding | None) -> jax.Array:
    """An array that every process has, on the devices; None: on the first."""
    if where is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


_taken_for = contextvars.ContextVar[str | None]("taken_for", default=None)


@contextlib.contextmanager
def taken_for(name: str | None) -> Iterator[None]:
    """Devices are taken for others of this platform, in plans; None: for what they are."""
    before = _taken_for.set(name)
    try:
        yield
    finally:
        _taken_for.reset(before)


def platform() -> str:
    """What the program that is being traced will run on ("cpu", "tpu"): the devices of its mesh, or those there are."""
    if (name := _taken_for.get()) is not None:
        return name
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def spread(mesh: Mesh, f: Callable[[Any, Any], Any], shared: Any = WHOLE) -> Callable[[Any, Any], Any]:
    """`f(shared, members)` for each slice of `pop`, with its members (the first axis) only; returns those of all.

    `shared`: over what its arrays are dealt, a `PartitionSpec` for each or for several; by default each slice has all.
    """
    # Where nothing is split, nothing is left to the compiler: a method of the user's may then call back to the host.
    manual = frozenset(mesh.axis_names if mesh.shape["model"] == 1 else {"pop"})
    return jax.shard_map(
        f, mesh=mesh, in_specs=(shared, P("pop")), out_specs=P("pop"), axis_names=manual, check_vma=False
    )


def summed(f: Callable[[Any, Any, Any], Any], cut: Any, shared: Any, size: int) -> Any:
    """The sum over `model` of `f(its part of cut, shared, where that begins)`; in `spread`, else `f` of all of it.

    `cut`: arrays, `size` long along their first axis, over which they are split if that can be.
    """
    if (ways := _ways(size)) == 1:
        return f(cut, shared, 0)

    def local(cut: Any, shared: Any) -> Any:
        return jax.lax.psum(f(cut, shared, jax.lax.axis_index("model") * (size // ways)), "model")

    where = (P("model"), P())
    return jax.shard_map(local, in_specs=where, out_specs=P(), axis_names={"model"}, check_vma=False)(cut, shared)


def apart(f: Callable[[Any], Any], cut: Any, size: int) -> Any:
    """`f(cut)`, which does the same with everything along their first axis, each device with what it has of it.

    As in `summed`. A loop over that axis would bring all to every device.
    """
    if _ways(size) == 1:
        return f(cut)
    where = P("model")
    return jax.shard_map(f, in_specs=where, out_specs=where, axis_names={"model"}, check_vma=False)(cut)


def _ways(size: int) -> int:
    """Into how many parts an axis of this size is cut inside of `spread`; 1 outside."""
    around = jax.sharding.get_abstract_mesh()
    ways = around.shape["model"] if "model" in around.auto_axes else 1
    return ways if size % ways == 0 else 1
