"""What a page says in words: numbers, what was searched, what a score is, where it ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jevomerge.config import RunConfig
from jevomerge.genome.names import GeneName
from jevomerge.reports.record import Paths, Run


def number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A score for a table; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def thousands(count: float) -> str:
    """1234567 -> "1 234 567", with spaces at which no line breaks."""
    return f"{count:,.0f}".replace(",", "\u202f")


def cut(text: str, head: int = 360, tail: int = 160) -> str:
    """A long text without its middle: what is asked is often at the end."""
    return text if len(text) <= head + tail + 3 else f"{text[:head]} … {text[-tail:]}"


def searched(record: Run, paths: Paths | None) -> str:
    """In a sentence, what was searched and how."""
    config, parts = record.config, []
    if config.recipe is not None:
        names = {GeneName.parse(g).source for g in record.genes[: record.num_weight_genes]} - {""}
        sources = [m.model for m in config.recipe.models] or sorted(config.recipe.references)
        known = [n for n in (Path(s).name for s in sources) if n in names] or sorted(names)
        merge = f"the coefficients of a {config.recipe.merge_method} merge"
        parts.append(f"{merge} of {enumerated(known)}" if known else merge)
    if config.path is not None:
        through = paths.space.models if paths else [Path(m).name for m in config.path.models]
        parts.append(f"a path through the layers of {enumerated(through)}")
    size = f"generations of {record.environment['population']}, seed {config.seed}"
    return f"Searched: {' and '.join(parts)}; {len(record.genes)} genes by {record.strategy} in {size}."


def judged_by(config: RunConfig) -> str:
    """In a few sentences, what the fitness is."""
    weights = {task.weight for task in config.tasks}
    names = [t.name if len(weights) == 1 else f"{t.name} (weight {t.weight:g})" for t in config.tasks]
    alike: dict[str, list[str]] = {}
    for task in config.tasks:
        alike.setdefault(task.meaning, []).append(task.name)
    scores = [f"{f' of {enumerated(own)}' if len(alike) > 1 else ''} scores {what}" for what, own in alike.items()]
    mean = "mean" if len(weights) == 1 else "weighted mean"
    same = [task.name for task in config.tasks if not task.apart]
    nothing = f" Of {enumerated(same)} nothing is held out." if same else ""
    return f"Fitness: the {mean} score of {enumerated(names)}. An example{'; one'.join(scores)}.{nothing}"


def gene_names(genes: Sequence[str]) -> list[str]:
    """The genes' names for people: without the parameter where there is only one, sources first."""
    names = [GeneName.parse(name) for name in genes]
    several = len({name.parameter for name in names}) > 1
    return [" · ".join(filter(None, (n.source, n.group, n.parameter if several else ""))) for n in names]


def enumerated(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def ran_on(environment: Mapping[str, Any]) -> str:
    """The devices and the versions that numbers depend on, in a line; "" where nothing is known."""
    packages = environment.get("packages", {})
    parts = [", ".join(environment.get("devices", ()))]
    parts += [f"{name} {packages[name]}" for name in ("jevomerge", "jax", "transformers") if name in packages]
    parts += [f"Python {environment['python']}"] if "python" in environment else []
    return " · ".join(filter(None, [*parts, environment.get("platform", "")]))
