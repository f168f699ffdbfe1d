"""Plans as text, and what to change where one does not fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jevomerge.devices.mesh import make_mesh
from jevomerge.models.specs import heads_of
from jevomerge.planning.chips import GIB
from jevomerge.planning.measure import Plan, Use, plan_on
from jevomerge.planning.programs import refining
from jevomerge.search.setup import Setup, set_up


def lines_of(plan: Plan, where: str) -> Iterator[str]:
    """A plan for people; `where` names the devices."""
    mesh = plan.mesh
    yield (
        f"{where}: pop {mesh.shape['pop']} x model {mesh.shape['model']}, "
        f"{plan.members_per_device} member{'s' * (plan.members_per_device > 1)} per device"
    )
    total = f"{plan.peak / GIB:.2f}" + ("" if plan.limit is None else f" of {plan.limit / GIB:.2f}")
    if plan.limit is None:
        yield f"  memory per device: {total} GiB (how much there is, is not known)"
    else:
        yield f"  {'fits' if plan.fits else 'does not fit'}: {total} GiB per device" + (
            f"; {plan.failed}" if plan.failed else ""
        )
    worst = max(plan.uses, key=lambda u: u.bytes, default=None)
    kinds = {"sources": plan.sources, "prepared by the method": plan.prepared}
    if worst is not None:
        kinds |= {"merged": worst.merged, "cache": worst.cache, "temporaries": worst.temporaries}
        kinds |= {"pictures": worst.pictures} if worst.pictures else {}
    yield from (f"    {name:24}{size / GIB:9.3f} GiB" for name, size in kinds.items())
    if plan.host:
        room = "" if plan.host_limit is None else f" of {plan.host_limit / GIB:.2f}"
        eighth = ", their task vectors in eight bits" if plan.memory == "int8" else ""
        yield f"  memory: {plan.memory}: the models wait in that of the host{eighth}: {plan.host / GIB:.2f}{room} GiB"
    if plan.kept:
        yield f"  kept of pictures, not on devices: {plan.kept / GIB:.3f} GiB"
    if not plan.uses:
        return
    head = f"{'runs':>6}{'once':>6}{'TFLOP':>10}{'GB moved':>10}{'exchanged':>12}{'seconds':>9}"
    yield f"  {'program, per run and device':56}{head}"
    for use in plan.uses:
        yield _row(use)
    for axes in sorted({a for u in plan.uses for a in u.exchanged or ()}):
        sent = sum(u.runs * (u.exchanged or {}).get(axes, 0.0) for u in plan.uses)
        yield f"  exchanged over {axes}: {sent / 1e9:.4g} GB per device and generation"
    for use in plan.uses:
        if use.exchanged is None:
            yield f"  what `{use.name}` exchanges is not known (its compiled text cannot be read) and not counted"
    for name in sorted({n for u in plan.uses for n in u.unknown}):
        yield f"  how often the loop `{name}` runs is not known; it is counted once"
    if plan.failed:
        return
    work = sum(plan.work.values())
    shares = ", ".join(f"{name} {100 * flops / work:.3g} %" for name, flops in plan.work.items())
    yield f"  in the whole run: {work / 1e12:.4g} TFLOP per device ({shares})"
    yield f"  useful: {100 * plan.useful:.0f} % (of what is scored, what is of candidates)"
    if plan.generation is None or plan.rest is None or plan.utilisation is None:
        yield "  no estimate of the time: the peaks of this device are not in the table (jevomerge/planning/chips.py)"
        return
    yield (
        f"  a generation of {plan.population} candidates: {_duration(plan.generation)}; "
        f"the run, {plan.generations} generations and what is done once: "
        f"{_duration(plan.generation * plan.generations + plan.rest)}"
    )
    if plan.beside_scoring:
        yield f"  not scoring, but merging: {100 * plan.beside_scoring:.2g} % of a generation"
    yield f"  utilisation: {100 * plan.utilisation:.1f} % of the peak in bfloat16"
    for use in (u for u in plan.uses if u.drawn and u.seconds and u.runs):
        rate = use.drawn / (use.seconds or 1)
        yield f"  `{use.name}`: {rate:.3g} pictures per second, {rate / mesh.size:.3g} for each device"
    estimates = [u.estimate for u in plan.uses if u.estimate is not None]
    if estimates:
        yield f"  the compiler's own estimates, which count a loop's body once: {sum(estimates):.3g} s"


def numbers_of(plan: Plan) -> dict[str, Any]:
    """The same for programs: bytes, FLOPs and seconds; of a program as in `Use`."""
    seconds = None if plan.generation is None or plan.rest is None else plan.generation * plan.generations + plan.rest
    return {
        "fits": plan.fits,
        "failed": plan.failed,
        "mesh": dict(plan.mesh.shape),
        "members_per_device": plan.members_per_device,
        "population": plan.population,
        "generations": plan.generations,
        "peak": plan.peak,
        "limit": plan.limit,
        "sources": plan.sources,
        "prepared": plan.prepared,
        "kept_of_pictures": plan.kept,
        "memory": plan.memory,
        "host": plan.host,
        "host_limit": plan.host_limit,
        "programs": [use._asdict() | {"seconds": use.seconds} for use in plan.uses],
        "flops": plan.work,
        "seconds_per_generation": plan.generation,
        "seconds": seconds,
        "utilisation": plan.utilisation,
        "useful": plan.useful,
        "beside_scoring": plan.beside_scoring,
    }


def _row(use: Use) -> str:
    seconds = "" if use.seconds is None else f"{use.seconds:9.3g}"
    sent = "?" if use.exchanged is None else f"{sum(use.exchanged.values()) / 1e9:.3g}"
    often = f"{use.runs:5} {sum(use.once.values()):5}"  # a space in front of each: numbers may be longer
    return f"    {use.name:54} {often} {use.flops / 1e12:9.4g} {use.moved / 1e9:9.4g} {sent:>8} GB{seconds}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def summary(plan: Plan) -> str:
    """A plan on one line, for a sweep."""
    mesh = plan.mesh
    state = "fits" if plan.fits else "does not fit"
    time = "" if plan.generation is None or not plan.fits else f"  {_duration(plan.generation):>9} per generation"
    used = "" if plan.utilisation is None or not plan.fits else f"  {100 * plan.utilisation:5.1f} % utilised"
    return (
        f"{mesh.size:4} devices  pop {mesh.shape['pop']:3} x model {mesh.shape['model']:2}  "
        f"{plan.members_per_device} per device  {plan.peak / GIB:7.2f} GiB  {state:12}{time}{used}"
    )


def advice(setup: Setup, plan: Plan, devices: Sequence[jax.Device]) -> tuple[str, Plan | None]:
    """Which setting to change, and to what, so that a plan that does not fit does; found by trying.

    Behind it the plan that fits then, if one does.
    """
    setup = setup.at(plan.memory)
    config, now = setup.config, plan.mesh.shape["model"]
    if plan.members_per_device > 1 and (changed := plan_on(setup, plan.mesh, 1, chip=plan.chip)).fits:
        return "set `members_per_device: 1`", changed
    if config.refine is not None and (remedy := fewer_examples(setup, plan)):
        return remedy, None
    heads = heads_of(setup.problem.model.specs)
    ways = [n for n in (now << i for i in range(1, 9)) if n <= len(devices) and len(devices) % n == heads % n == 0]
    for model in ways:
        if (changed := plan_on(setup, make_mesh(None, model, devices), 1, chip=plan.chip)).fits:
            return f"set `mesh: {{model: {model}}}`: so many devices then share the weights of a candidate", changed
    widest = make_mesh(None, max([now, *ways]), devices)
    wide = f" and `mesh: {{model: {widest.shape['model']}}}`" if widest.shape["model"] != now else ""
    size = config.tokens_per_batch
    while (size := size // 2) >= 256:
        if _at_least(plan, size / config.tokens_per_batch) > (plan.limit or math.inf) and not ways:
            continue
        smaller = set_up(config.model_copy(update={"tokens_per_batch": size}), devices)
        smaller = dataclasses.replace(smaller, memory=setup.memory, new_tokens=setup.new_tokens)
        changed = plan_on(smaller, widest, 1, chip=plan.chip)
        if changed.fits:
            return f"set `tokens_per_batch: {size}`{wide}: fewer examples are then scored together", changed
        if config.refine is not None and (remedy := fewer_examples(smaller, changed)):
            return f"set `tokens_per_batch: {size}`{wide}; {remedy}", None
    known = "members_per_device, mesh, tokens_per_batch" + (
        "" if config.refine is None else ", refine.examples_per_step"
    )
    return f"no setting of {' or '.join(known.rsplit(', ', 1))} makes it fit: take more or larger devices", None


def _at_least(plan: Plan, share: float) -> float:
    """What a device needs, at least, if batches have this share of their rows."""
    scores = [u for u in plan.uses if u.kind == "score"]
    most = max((u.merged + u.pictures + share * (u.cache + u.temporaries) for u in scores), default=0.0)
    return plan.sources + plan.prepared + most


def fewer_examples(setup: Setup, plan: Plan) -> str | None:
    """What to set `refine.examples_per_step` to, if that makes it fit; None if that alone does not."""
    refine = setup.config.refine
    assert refine is not None
    gradients = [u for u in plan.uses if u.kind == "refine"]
    others = plan._replace(uses=[u for u in plan.uses if u not in gradients], failed=None)
    if not gradients or not others.fits:
        return None
    most = max(len(examples) for examples in setup.judge.examples["search"].values())
    size = min(refine.examples_per_step or most, most)
    while (size := size // 2) >= 1:
        fewer = {"refine": refine.model_copy(update={"examples_per_step": size})}
        smaller = dataclasses.replace(setup, config=setup.config.model_copy(update=fewer))
        if plan_on(smaller, plan.mesh, plan.members_per_device, refining, plan.chip).fits:
            return f"set `refine.examples_per_step: {size}`: a gradient keeps what each of its examples computes"
    return None
