"""From a run folder to its page, report.html."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure

from jevomerge.checkpoint.files import write_atomically
from jevomerge.config import RunConfig, StagedConfig
from jevomerge.errors import InputError
from jevomerge.reports.candidates import candidates
from jevomerge.reports.charts import Chart, fitness_chart
from jevomerge.reports.front import front_charts, front_table
from jevomerge.reports.genes import (
    coefficient_charts,
    coefficients_of,
    gene_histories,
    history_charts,
    importance_chart,
    parallel_chart,
    slot_histories,
)
from jevomerge.reports.headline import headline
from jevomerge.reports.heldout import best_parent, other_scores, scores_by_task, standings, wins_and_losses
from jevomerge.reports.importance import importance
from jevomerge.reports.look import png, svg
from jevomerge.reports.path_history import path_history
from jevomerge.reports.path_picture import path_figure
from jevomerge.reports.record import Paths, Run, read_paths, read_record, read_run_folder
from jevomerge.reports.render import MARK, render
from jevomerge.reports.sheet import sheet_figure, sheets
from jevomerge.reports.words import judged_by, ran_on, searched, thousands
from jevomerge.schema import read_text
from jevomerge.strategies.strategy import PARETO

PAGE, PICTURE, SHEET = "report.html", "path.png", "sheet.png"


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write a run's page, path.png if paths were searched, sheet.png if pictures were drawn.

    Of several stages each gets a page, and there is one that links them.

    Args:
        folder: a run folder, finished or not.
        output: where to write the page, without the pictures; by default report.html in the folder.

    Returns:
        the page.

    Raises:
        InputError: for a folder that is no run, or a file in the way that is no report.
    """
    folder = Path(folder)
    page = Path(output) if output is not None else folder / PAGE
    config = read_run_folder(folder)
    if config.parts:
        if output is not None:
            names = ", ".join(str(folder / part) for part in config.parts)
            raise InputError(f"{folder} has several runs, each with a page of its own; with --output name one: {names}")
        check_replaceable(page)
        write_atomically(page, parts_page(config, folder))
        return page
    assert isinstance(config, RunConfig)
    check_replaceable(page)
    record = read_record(folder, config)
    paths = read_paths(record) if record.config.path is not None and record.evaluations else None
    if paths is not None and output is None:
        (folder / PICTURE).write_bytes(png(picture_of(record, paths)))
    if output is None and (found := sheets(record.shown, record.config.tasks)):
        (folder / SHEET).write_bytes(png(sheet_figure(found[0])))
    write_atomically(page, run_page(record, paths))
    return page


def check_replaceable(page: Path) -> None:
    """Only a report is ever overwritten.

    Raises:
        InputError: for anything else in its place.
    """
    if not page.parent.is_dir():
        raise InputError(f"{page.parent} is not a folder; make it, or choose another --output")
    if page.is_dir() or (page.exists() and MARK.encode() not in page.read_bytes()[:200]):
        raise InputError(f"{page} exists and is no report, it is not overwritten; choose another --output")


def parts_page(config: RunConfig | StagedConfig, folder: Path) -> str:
    """The page that links those of the stages or seeds, which are written too."""
    rows = []
    for part in config.parts:
        own, record = folder / part, None
        if begun := (own / "config.yaml").exists():
            write_report(own)
            inner = read_run_folder(own)
            record = read_record(own, inner) if isinstance(inner, RunConfig) else None
        rows.append({"name": part, "page": f"{part}/{PAGE}", "begun": begun, "record": record})
    return render("stages.html.jinja", name=config.name, stages=rows, seeds=config.seeds > 1)


def run_page(record: Run, paths: Paths | None, live: str = "") -> str:
    """The page of one run."""
    tasks = record.config.tasks
    apart = [task for task in tasks if task.apart]
    heldout = record.heldout if apart else None  # else nothing is held out
    recipes = [p for name in ("recipe.yaml", "path.txt") if (p := record.folder / "best" / name).exists()]
    found = importance(record, paths) if record.result else None  # while a run goes on, it is stale at once
    return render(
        "run.html.jinja",
        live=live,
        name=record.config.name,
        record=record,
        headline=headline(record),
        notes=record.result.get("notes", []) if record.result else [],  # not in runs of earlier versions
        searched=searched(record, paths),
        judged=judged_by(record.config),
        paths=paths,
        charts=charts(record, paths),
        path=svg(picture_of(record, paths), "The best path, hop by hop, through the models' layers") if paths else None,
        candidates=candidates(record),
        importance=found,
        importance_chart=importance_chart(found) if found and found.rows else None,
        apart=bool(apart),
        front=front_table(record) if several_goals(record) else [],
        history=path_history(record, paths) if paths else None,
        standings=standings(heldout, tasks) if heldout else [],
        parent=best_parent(heldout) if heldout else None,
        others=other_scores(heldout, tasks) if heldout else [],
        sheets=sheets(record.shown, tasks),
        cases=[c for t in apart if (c := wins_and_losses(heldout, t)) is not None] if heldout else [],
        by_task=scores_by_task(heldout) if heldout and len(tasks) > 1 else {},
        recipes={path.name: read_text(path) for path in recipes},
        cost=cost(record),
        ran_on=ran_on(record.environment),
        config=yaml.safe_dump(record.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        environment=json.dumps({k: v for k, v in record.environment.items() if k != "genes"}, indent=2),
    )


def several_goals(record: Run) -> bool:
    """Whether a front was searched, and there is something to show of it."""
    return record.config.search.strategy == PARETO and not np.isnan(record.fitness).all()


def cost(record: Run) -> dict[str, str]:
    """What the run took."""
    searching, count = record.seconds.sum(), len(record.evaluations)
    rows = {"evaluations": f"{count} in {len(record.generations)} generations"}
    if failed := int(np.isnan(record.fitness).sum()):
        rows["without a fitness"] = f"{failed} (not a number)"
    if broken := [sum(e["broken"].values()) for e in record.evaluations if "broken" in e and "copy_of" not in e]:
        rows["broken pictures"] = f"{sum(broken)}, not finite or of one colour, of {len(broken)} candidates"
    if copies := sum("copy_of" in e for e in record.evaluations):
        rows["known already"] = f"{copies}, the same candidates as earlier ones, at no cost"
    if stopped := sum("stopped" in e and "copy_of" not in e for e in record.evaluations):
        rows["stopped by racing"] = f"{stopped}, before all examples were scored"
    if estimated := sum("estimate" in e for e in record.evaluations):
        rows["estimated from anchors"] = f"{estimated}; the finalists were then scored on all examples"
    if refined := sum("refined" in e for e in record.evaluations):
        rows["refined by gradients"] = str(refined)
    rows["seconds of search"] = f"{searching:.1f}"
    if searching:
        rows["evaluations per second"] = f"{count / searching:.2f}"
    if spent := record.spent:
        prompt, answer = spent["search"]
        rows["tokens of search"] = f"{thousands(prompt + answer)}, without padding"
        rows["among them"] = f"{thousands(prompt)} of prompts, {thousands(answer)} of answers"
        if searching:
            rows["tokens per second"] = thousands((prompt + answer) / searching)
        others = [name for name in spent if name != "search"]
        rows |= {f"tokens of {name}": f"{thousands(sum(spent[name]))}, {WHERE[name]}" for name in others}
        if others:
            rows["tokens in all"] = thousands(sum(map(sum, spent.values())))
    if record.result is not None:
        rows["seconds in all"] = f"{record.result['seconds']:.1f}, with the sources' scores and the export"
    return rows


WHERE = {
    "gradients": "each step's; a gradient costs about three forward passes",
    "finalists": "on the whole search split",
    "sources": "with their average, on both splits",
    "result": "on both splits",
}


# --- charts -------------------------------------------------------------------------------------------------


def charts(record: Run, paths: Paths | None) -> dict[str, list[Chart]]:
    """The page's charts by what they show, those that the run has something for."""
    if not record.evaluations:
        return {}
    made = {"fitness": [fitness_chart(record)]}
    several = len(record.generations) > 1
    if several_goals(record):
        made["front"] = front_charts(record)
    if record.num_weight_genes:
        made["coefficients"] = coefficient_charts(coefficients_of(record))
        if several:
            made["genes"] = history_charts(gene_histories(record), "genes", "share of the range")
        if (across := parallel_chart(record)) is not None:
            made["parallel"] = [across]
    if paths is not None and several:
        made["slots"] = history_charts(slot_histories(record, paths), "slots", "share with the slot on")
    return made


def picture_of(record: Run, paths: Paths) -> Figure:
    """The figure of the best path."""
    return path_figure(paths.space.models, paths.space.depths, paths.hops(record.best), paths.passes(record.best))
