"""What all experiments share: how their command lines read, and results that are on file as soon as they are there.

    args = make_parser(__doc__, __file__, seeds=5).parse_args()
    for seed in range(args.seeds):
        if known(args.output, "planted", str(seed)) is None:
            record(args.output, planted(seed), "planted", str(seed))

The folder of each experiment has a link to this file, so that its scripts can import it.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def make_parser(
    doc: str | None,
    script: str,
    output: str | None = "results.json",
    *,
    work: bool = False,
    seeds: int | str | None = None,
    parts: Iterable[str] = (),
    table: bool = False,
) -> argparse.ArgumentParser:
    """The parser of a script, which may add what only it needs.

    Args:
        doc: the script's docstring, whose first line describes it.
        script: its `__file__`.
        output: its results, a file beside it; None: it has none.
        work: whether it keeps something between two runs, beside results.
        seeds: how many there are, unless more or fewer are asked for (in words where parts differ: then None is
            what is parsed); None: it has no seeds.
        parts: names of what can be run by itself.
        table: whether it can print its tables without measuring.
    """
    file, names = Path(script), list(parts)

    def part(text: str) -> str:  # `choices` would not let through that none is given
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of them: {', '.join(names)}")
        return text

    parser = argparse.ArgumentParser(description=(doc or "").strip().splitlines()[0])
    if names:
        several = f"one or several of: {', '.join(names)} (default: all)"
        parser.add_argument("parts", nargs="*", metavar="PART", type=part, default=names, help=several)
    if output is not None:
        what = f"results; what it has is not measured again (default: {output} beside the script)"
        parser.add_argument("--output", type=Path, metavar="FILE", default=file.parent / output, help=what)
    if work:
        where = Path("runs") / file.parent.name
        kept = f"what is kept from one run to the next (default: {where})"
        parser.add_argument("--work", type=Path, metavar="DIR", default=where, help=kept)
    if seeds is not None:
        count = None if isinstance(seeds, str) else seeds
        parser.add_argument("--seeds", type=int, metavar="N", default=count, help=f"how many seeds (default: {seeds})")
    if table:
        parser.add_argument("--table", action="store_true", help="only print the tables of the results")
    return parser


def known(path: Path, *keys: str) -> Any:
    """What a file of results has there; None: nothing, or there is no file."""
    found = json.loads(path.read_text()) if path.exists() else None
    for key in keys:
        found = None if found is None else found.get(key)
    return found


def record(path: Path, value: Any, *keys: str) -> None:
    """Put a result in its place; others may be added by other processes meanwhile, if not at this very moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = known(path) or {}
    at = results
    for key in keys[:-1]:
        at = at.setdefault(key, {})
    at[keys[-1]] = value
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    new.replace(path)  # a script that is killed leaves what it had
