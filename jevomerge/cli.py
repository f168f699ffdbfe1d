"""The command line: `jevomerge COMMAND`; `COMMANDS` are all."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jevomerge.checkpoint.remote import fetched, is_remote, is_there
from jevomerge.devices.signals import heeded
from jevomerge.devices.sockets import forbid
from jevomerge.devices.tpu import describe_tpu, tpu_is_here
from jevomerge.errors import FitnessError, InputError
from jevomerge.run.arguments import parser
from jevomerge.run.mergekit_flags import read_size

if TYPE_CHECKING:
    from jevomerge.config import RunConfig
    from jevomerge.devices.schema import MeshShape

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit on the size of files
# Arguments that name files and folders of this machine; models and data may be on the hub.
LOCAL = ("config", "recipe", "task", "run", "runs")


def reading(what: str) -> None:
    """The first word of a command, before the imports that take seconds."""
    print(f"jevomerge: reading {what} ...", file=sys.stderr, flush=True)


def check_names(args: argparse.Namespace) -> None:
    """Refuse what is not there, before the imports that take seconds."""
    for key in LOCAL:
        given = getattr(args, key, None) or []
        for name in [given] if isinstance(given, str) else given:
            if key == "task" and not os.path.splitext(name)[1]:
                continue  # one of the harness, by which it is said how these are asked for
            try:
                os.stat(os.path.expanduser(name))
            except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"{name} cannot be read ({reason}); check the name and its permissions") from None


def leave_devices() -> None:
    """For commands that only show runs: accelerators belong to those that go on, which have taken their memory."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def run_init(args: argparse.Namespace) -> None:
    """`jevomerge init`."""
    reading(", ".join(args.models))
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.init import init

    templates = {
        key: value and value.replace("\\n", "\n") for key, value in (("prompt", args.prompt), ("answer", args.answer))
    }
    init(args.models, args.data, base=args.base, name=args.name, **templates, output=args.output, observer=Terminal())


def run_evolve(args: argparse.Namespace) -> None:
    """`jevomerge evolve`."""
    if (args.config is None) == (args.resume is None):
        raise InputError("evolve: give either a CONFIG to start or --resume RUN to continue")
    if args.resume and (args.seed is not None or args.output):
        raise InputError("evolve: --resume continues a run as it began; --seed and --output do not apply")
    if args.process_id in (None, 0):
        reading(args.resume or args.config)
    from jevomerge.checkpoint.files import expanded
    from jevomerge.config import RunConfig, read_config, replaced

    given = args.config
    if args.resume:
        args.folder = expanded(args.resume)
        if not (args.folder / "config.yaml").exists():
            raise InputError(f"--resume: {args.folder} is not a run folder, it has no config.yaml")
        given = fetched(f"{args.folder}/config.yaml") if is_remote(args.folder) else args.folder / "config.yaml"
    config = read_config(given)  # what is wrong costs no JAX
    from jevomerge.devices.hosts import first, join

    explicit = (args.coordinator, args.num_processes, args.process_id)
    if args.distributed or any(value is not None for value in explicit):
        if args.offline:
            raise InputError("--offline: several processes talk over a network; leave one of the two out")
        if not args.distributed and None in explicit:
            raise InputError("evolve: --coordinator, --num-processes and --process-id go together")
        join(*explicit)
    from jevomerge.fitness.people import PeopleScore
    from jevomerge.observers.observer import SILENT
    from jevomerge.observers.terminal import Terminal
    from jevomerge.reports.writer import PageWriter
    from jevomerge.run.stages import evolve_config  # after joining, for evosax computes when it is imported

    if args.offline and (asked := [task.name for task in config.tasks if isinstance(task.score, PeopleScore)]):
        raise InputError(f"--offline: people judge {asked[0]} in a page, behind a socket; leave one of the two out")
    if args.seed is not None:
        config = replaced(config, seed=args.seed)
    if args.mesh is not None:
        config = replaced(config, mesh=read_mesh(args.mesh))
    if args.evaluations is not None:
        if not isinstance(config, RunConfig):
            raise InputError("--evaluations: each stage has its own; change the file, before the stage begins")
        config = replaced(config, search={**dict(config.search), "evaluations": args.evaluations})
    if not args.resume:
        args.folder = expanded(args.output) if args.output else Path("runs") / config.name
    observer = PageWriter(Terminal()) if first() else SILENT
    evolve_config(config, args.folder, observer, resume=args.resume is not None)
    if isinstance(config, RunConfig) and config.seeds == 1:
        for line in next_steps(args.folder, config):
            observer.line(line)


def next_steps(folder: Path, config: RunConfig) -> list[str]:
    """What one may do with a finished run."""
    from jevomerge.checkpoint.files import split_adapter

    run, more = shlex.quote(str(folder)), 2 * config.search.evaluations
    model = ""
    if config.recipe is not None and config.recipe.adapter is not None:  # the result is one, behind its model
        model = shlex.quote(split_adapter(config.recipe.stack[0].sources[0].model)[0]) + "+"
    steps = {
        f"cat {run}/best/README.md": "how to load it, and what it scores",
        f"jevomerge evaluate {model}{run}/best --task TASK.yaml": "judge it by something else",
        f"jevomerge export {run} --genome N OUT": "write another candidate, such as the page lists",
    }
    if config.refine is None:  # whose last candidates would have been others in a longer search
        steps[f"jevomerge evolve --resume {run} --evaluations {more}"] = "search on"
    width = max(map(len, steps))
    return ["Next:", *(f"  {step:{width}}  {what}" for step, what in steps.items())]


def read_mesh(text: str) -> MeshShape:
    """ "4x2" -> pop 4, model 2."""
    from jevomerge.devices.schema import MeshShape

    if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise InputError(f"--mesh: `{text}` is not POPxMODEL, such as 4x2")
    return MeshShape(pop=int(match[1]), model=int(match[2]))


def run_merge(args: argparse.Namespace) -> None:
    """`jevomerge merge`."""
    out = args.out or args.out_path
    if out is None and not args.explain:
        raise InputError("merge: give the folder to write, OUT, or --explain")
    shard_bytes = None if args.out_shard_size is None else read_size(args.out_shard_size)
    reading(args.recipe)
    from jevomerge.recipe.schema import read_stages

    read_stages(args.recipe)  # what is wrong there costs no JAX
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.merge import explain, merge_folder

    for note in args.ignored:
        Terminal().note(note)
    if not args.explain:
        merge_folder(args.recipe, out, seed=args.random_seed, shard_bytes=shard_bytes, observer=Terminal())
        return
    for line in explain(args.recipe):
        Terminal().line(line)


def run_evaluate(args: argparse.Namespace) -> None:
    """`jevomerge evaluate`."""
    reading(args.model)
    from jevomerge.fitness.tasks import read_tasks

    read_tasks(args.task)  # what is wrong there costs no JAX
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.evaluate import evaluate

    evaluate(args.model, args.task, args.split, args.json, pooled_from=args.pooled_from, observer=Terminal())


def run_generate(args: argparse.Namespace) -> None:
    """`jevomerge generate`."""
    size = None if args.size is None else read_pixels(args.size)
    reading(args.model)
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.generate import generate

    same = {key: getattr(args, key) for key in ("negative", "steps", "guidance", "like", "pooled_from", "dtype")}
    more = {"size": size, "seeds": args.seed or (0,), "rule": args.scheduler, "observer": Terminal()}
    generate(args.model, args.prompt, args.output, **same, **more)


def read_pixels(text: str) -> tuple[int, int]:
    """ "1024" or "768x1024" -> height and width."""
    if not (match := re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)):
        raise InputError(f"--size: `{text}` is neither a number of pixels nor HEIGHTxWIDTH, such as 768x1024")
    return int(match[1]), int(match[2] or match[1])


def run_export(args: argparse.Namespace) -> None:
    """`jevomerge export`."""
    reading(args.run)
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.export import export

    export(args.run, args.genome, args.out, observer=Terminal())


def run_report(args: argparse.Namespace) -> None:
    """`jevomerge report`."""
    reading(args.run)
    leave_devices()
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.report import report

    Terminal().line(f"Report: {report(args.run, args.output)}")


def run_watch(args: argparse.Namespace) -> None:
    """`jevomerge watch`."""
    if args.offline:
        raise InputError("--offline: a page is served through a socket, if only of this machine; leave --offline out")
    reading(", ".join(args.runs))
    leave_devices()
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.report import watch

    watch(args.runs, args.port, observer=Terminal())


def run_compare(args: argparse.Namespace) -> None:
    """`jevomerge compare`."""
    reading(", ".join(args.runs))
    leave_devices()
    from jevomerge.observers.terminal import Terminal
    from jevomerge.reports.compare import notes, spreads, table
    from jevomerge.run.compare import compare

    terminal, entries = Terminal(), compare(args.runs, args.output)
    terminal.table(table(entries))
    for line in spreads(entries):
        terminal.line(line)
    for note in notes(entries):
        terminal.note(note)
    terminal.line(f"Page: {args.output}")


def run_card(args: argparse.Namespace) -> None:
    """`jevomerge card`."""
    reading(args.run)
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.card import card

    Terminal().line(f"Card: {card(args.run)}")


def run_push(args: argparse.Namespace) -> None:
    """`jevomerge push`."""
    if args.offline:
        raise InputError("--offline: `push` talks to the hub; leave one of the two out")
    reading(args.run)
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.push import push

    options = {"private": args.private, "accept_licence": args.accept_licence}
    Terminal().line(f"Published: {push(args.run, args.name, **options, observer=Terminal())}")


def run_plan(args: argparse.Namespace) -> None:
    """`jevomerge plan`."""
    reading(args.config)
    from jevomerge.config import read_plannable

    read_plannable(args.config)  # what is wrong there costs no JAX
    from jevomerge.observers.terminal import Terminal
    from jevomerge.planning.chips import assumed_chip
    from jevomerge.run.plan import plan

    known = args.device_memory, args.device_bandwidth, args.device_flops, args.host_bandwidth
    chip = None if args.device_memory is None else assumed_chip(*known)
    more = {"new_tokens": args.new_tokens, "numbers": args.json}
    plan(args.config, args.topology, args.sweep, args.measure, chip=chip, observer=Terminal(), **more)


def run_translate(args: argparse.Namespace) -> None:
    """`jevomerge translate`."""
    reading(args.config)
    from jevomerge.run.translate import translate

    print(translate(args.config), end="")


COMMANDS = {
    "init": run_init,
    "evolve": run_evolve,
    "merge": run_merge,
    "evaluate": run_evaluate,
    "generate": run_generate,
    "export": run_export,
    "report": run_report,
    "watch": run_watch,
    "compare": run_compare,
    "card": run_card,
    "push": run_push,
    "plan": run_plan,
    "translate": run_translate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; messages go to standard error."""
    args = parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch, which nobody needs
    if args.offline:
        forbid()
    if not tpu_is_here():
        describe_tpu("v5e")
    if argv is None:  # a command of its own: names are shown in any locale
        for stream in (sys.stdout, sys.stderr):
            cast(TextIOWrapper, stream).reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        check_names(args)
        with heeded():
            COMMANDS[args.command](args)
        return 0
    except KeyboardInterrupt:
        print(f"jevomerge: interrupted{_remedy(args)}", file=sys.stderr)
        return 1
    except SystemExit:
        print(f"jevomerge: terminated{_remedy(args)}", file=sys.stderr)
        raise
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, InputError):
            print(f"jevomerge: {error}", file=sys.stderr)
            return 2
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            print(f"jevomerge: the disk is full ({error}): free some space{_remedy(args)}", file=sys.stderr)
            return 2
        if isinstance(error, OSError) and error.filename is not None:  # no permission, a name too long, a file's child
            hint = "choose another path, or change its permissions"
            print(f"jevomerge: {error.filename}: {error.strerror}; {hint}{_remedy(args)}", file=sys.stderr)
            return 2
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            hint = "use fewer or smaller models, a smaller batch (tokens_per_batch), or a machine with more"
            print(f"jevomerge: there is not enough memory; {hint}{_remedy(args)}", file=sys.stderr)
            return 2
        kind = "" if isinstance(error, FitnessError) else f"{type(error).__name__}: "
        print(f"jevomerge: {kind}{error} (--debug shows where){_remedy(args)}", file=sys.stderr)
        return 1


def _remedy(args: argparse.Namespace) -> str:
    """How a run that stopped is continued, if one had begun."""
    folder = getattr(args, "folder", None)
    begun = folder is not None and is_there(folder / "config.yaml")
    return f"; continue with `jevomerge evolve --resume {folder}`" if begun else ""
