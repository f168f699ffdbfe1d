"""Several runs side by side: a table, and a page with their fitness in common charts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from jevomerge.config import read_run
from jevomerge.reports.charts import runs_chart
from jevomerge.reports.heldout import Estimate, bootstrap, interval
from jevomerge.reports.record import Run, read_record, read_run_folder
from jevomerge.reports.render import render
from jevomerge.reports.words import number, thousands


class Entry(NamedTuple):
    """A run in the table."""

    name: str
    record: Run
    search: float | None  # fitness of the outcome, or the highest so far
    tokens: dict[str, int]  # by what they were for; {}: not counted
    heldout: Estimate | None  # None: not known yet
    difference: Estimate | None  # of that to the first run's, if both were judged by the same examples
    alike: bool  # judged by what judged the first run, on the held-out split

    @property
    def state(self) -> str:
        """How far it is, if not finished."""
        asked = self.record.config.search.evaluations
        return (
            "" if self.record.result else f"not finished, {len(self.record.evaluations)} of about {asked} evaluations"
        )


def find_runs(folders: Sequence[str | Path]) -> dict[str, Path]:
    """The folders of runs by the shortest names that tell them apart; of several stages or seeds all that have begun.

    Raises:
        InputError: for a folder that is no run.
    """
    found = {str(own): (name, own) for folder in folders for name, own in _runs_in(Path(folder))}
    count = Counter(name for name, _ in found.values())
    return {name if count[name] == 1 else folder: own for folder, (name, own) in found.items()}


def _runs_in(folder: Path, name: str = "") -> Iterator[tuple[str, Path]]:
    """A run, or all that a folder has of stages and seeds."""
    config = read_run_folder(folder)
    name = name or config.name
    if not config.parts:
        yield name, folder
    for part in config.parts:
        if (folder / part / "config.yaml").exists():
            yield from _runs_in(folder / part, f"{name}/{part}")


def read_runs(folders: Mapping[str, Path]) -> dict[str, Run]:
    """What is in the folders of runs, by name."""
    return {name: read_record(folder, read_run(folder / "config.yaml")) for name, folder in folders.items()}


def make_entries(runs: dict[str, Run]) -> list[Entry]:
    """A row per run, in their order."""
    (reference, first), *_ = runs.items()
    alike = {name: judged(record, "heldout") == judged(first, "heldout") for name, record in runs.items()}
    together = {n: s for n, r in runs.items() if alike[n] and (s := heldout_scores(r)) is not None}
    drawn = draw(together, first)  # the same examples for all of them
    entries = []
    for name, record in runs.items():
        own = drawn if name in drawn else draw({name: s} if (s := heldout_scores(record)) else {}, record)
        heldout = difference = None
        if name in own:
            value = heldout_of(record)
            heldout = Estimate(value, *interval(own[name]))
            if name in drawn and name != reference and reference in drawn:
                difference = Estimate(value - heldout_of(first), *interval(drawn[name] - drawn[reference]))
        tokens = {what: sum(pair) for what, pair in record.spent.items()}
        entries.append(Entry(name, record, search_of(record), tokens, heldout, difference, alike[name]))
    return entries


def judged(record: Run, split: str) -> Any:
    """What a split's scores mean: equal where scores can be compared."""
    settings = {t.name: t.model_dump(exclude={"search", "heldout"}) for t in record.config.tasks}
    return settings, record.environment.get("data", {}).get(split)


def search_of(record: Run) -> float | None:
    """The fitness of the outcome on the search split, or the highest so far."""
    if record.result is not None:
        return record.result["best"]["search"]
    return None if np.isnan(record.fitness).all() else float(record.fitness[record.best])


def heldout_of(record: Run) -> float:
    """The outcome's held-out score, where there is one."""
    assert record.heldout is not None
    return record.heldout["best"]["heldout"]


def heldout_scores(record: Run) -> dict[str, np.ndarray] | None:
    """{task: (n,)} of the outcome on the held-out examples; None before it is known, or if nothing is held out."""
    if record.heldout is None or record.heldout["best"] is None or not any(t.apart for t in record.config.tasks):
        return None
    return {t.name: np.array(record.heldout["best"]["scores"][t.name], np.float64) for t in record.config.tasks}


def draw(scores: dict[str, dict[str, np.ndarray]], record: Run) -> dict[str, np.ndarray]:
    """{run: (B,)} held-out scores of runs with the tasks of `record`, on resampled examples."""
    if not scores:
        return {}
    tasks = record.config.tasks
    stacked = {t.name: np.stack([s[t.name] for s in scores.values()]) for t in tasks}
    return dict(zip(scores, bootstrap(stacked, {t.name: t.weight for t in tasks}).T, strict=True))


# --- as a table of the terminal -----------------------------------------------------------------------------


def table(entries: Sequence[Entry]) -> Table:
    """For the terminal."""
    made = Table("run", "strategy")
    compared = any(e.difference for e in entries)
    last = (f"against {entries[0].name}",) if compared else ()
    for column in ("genes", "evaluations", "seconds", "tokens", "search", "held-out", *last):
        made.add_column(column, justify="right")
    for e in entries:
        cells = (
            str(len(e.record.genes)),
            str(len(e.record.evaluations)),
            f"{e.record.seconds.sum():.0f}",
            "\n".join(tokens_of(e)) or "–",
            number(e.search),
            written(e.heldout),
        )
        made.add_row(e.name, e.record.strategy, *cells, *((written(e.difference, True),) if compared else ()))
    return made


def tokens_of(entry: Entry) -> list[str]:
    """What a run took, in all and, if that is not the same, by what it was for."""
    each = [f"{what} {thousands(count)}" for what, count in entry.tokens.items()]
    return [thousands(sum(entry.tokens.values())), *(each if len(each) > 1 else [])] if each else []


def written(of: Estimate | None, sign: bool = False) -> str:
    """A number and, on the next line, its interval."""
    return f"{number(of.value, 4, sign)}\n{number(of.low, 3, sign)} to {number(of.high, 3, sign)}" if of else "–"


def spreads(entries: Sequence[Entry]) -> list[str]:
    """Of finished runs that differ by their seeds alone the mean, the standard deviation and the range, in lines."""
    lines = []
    for group in by_seed([e for e in entries if e.record.result is not None]):
        scores: dict[str, list[float | None]] = {"search": [e.search for e in group]}
        scores["held-out"] = [e.heldout.value for e in group if e.heldout]
        found = ", ".join(f"{split} {_spread(values)}" for split, values in scores.items() if values)
        lines.append(f"{_seeds_of(group)}, mean ± deviation (lowest to highest): {found}")
    return lines


def by_seed(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Those that differ by their seeds alone, together."""
    groups: dict[str, list[Entry]] = {}
    for e in entries:
        config = json.dumps(e.record.config.model_dump(mode="json", exclude={"seed"}), sort_keys=True)
        # Earlier stages of the same seed lie beside a run.
        groups.setdefault(config.replace(str(e.record.folder.parent.resolve()), ""), []).append(e)
    return [group for group in groups.values() if len({e.record.config.seed for e in group}) > 1]


def _seeds_of(group: Sequence[Entry]) -> str:
    return f"{group[0].record.config.name}, {len(group)} seeds"


def _spread(values: Sequence[float | None]) -> str:
    x = np.array(values, np.float64)
    return f"{number(x.mean())} ± {number(x.std(ddof=1))} ({number(x.min())} to {number(x.max())})"


def notes(entries: Sequence[Entry]) -> list[str]:
    """What is to be known of the table."""
    found = [f"{e.name}: {e.state}" for e in entries if e.state]
    if estimated := [e.name for e in entries if e.record.config.search.anchors is not None]:
        found.append(
            f"{', '.join(estimated)}: the curves are of estimates from anchors, the scores in the table are not"
        )
    for e in entries:
        if e.record.result is not None and (source := e.record.result["best"].get("source")) is not None:
            found.append(
                f"{e.name}: no candidate is better than {source} on the search split; its scores are {source}'s"
            )
    if others := [e.name for e in entries if not e.alike]:
        found.append(
            f"{', '.join(others)}: judged by other tasks or held-out examples than {entries[0].name}, so scores are no "
            "comparison"
        )
    return found


# --- as a page ----------------------------------------------------------------------------------------------


def compare_page(entries: Sequence[Entry], pages: Mapping[str, str] | None = None, live: str = "") -> str:
    """The page of several runs; those whose fitness means the same share a chart. `pages`: where each has its own."""
    groups: list[list[Entry]] = []
    for entry in entries:
        if not entry.record.evaluations:
            continue
        meaning = judged(entry.record, "search")
        for group in groups:
            if judged(group[0].record, "search") == meaning:
                group.append(entry)
                break
        else:
            groups.append([entry])
    sections = []
    for i, group in enumerate(groups):
        alike = [(_seeds_of(seeds), [e.name for e in seeds]) for seeds in by_seed(group)]
        known = [{n: row["search"] for n, row in e.record.references().items()} for e in group]
        common = {name: value for name, value in known[0].items() if all(k.get(name) == value for k in known)}
        chart = runs_chart({e.name: e.record for e in group}, alike, common, f"fitness-{i}")
        sections.append({"names": [e.name for e in group], "chart": chart, "seeds": bool(alike)})
    shown = {"entries": entries, "notes": [*spreads(entries), *notes(entries)], "sections": sections}
    tokens = {e.name: tokens_of(e) for e in entries}
    return render("compare.html.jinja", live=live, name="Runs compared", pages=pages or {}, tokens=tokens, **shown)
