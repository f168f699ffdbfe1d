"""The command line: `jevomerge COMMAND`; `COMMANDS` are all."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jevomerge.devices.signals import heeded
from jevomerge.devices.sockets import forbid
from jevomerge.devices.tpu import describe_tpu, tpu_is_here
from jevomerge.errors import FitnessError, InputError
from jevomerge.run.mergekit_flags import add_flags, read_size

if TYPE_CHECKING:
    from jevomerge.devices.schema import MeshShape

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit on the size of files
EPILOG = (
    "Exit status: 0 on success, 2 for bad input, a full disk or too little memory, 143 when terminated, 1 for anything "
    "else. Nothing that exists is overwritten."
)


class Completion(argparse.Action):
    """Prints the script of a shell, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        """Whatever else was given."""
        import shtab  # imported late: it takes longer than all else here

        print(shtab.complete(parser, shell=values))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    top = argparse.ArgumentParser(
        prog="jevomerge", description="Evolve merges of Hugging Face models, in pure JAX.", epilog=EPILOG
    )
    top.add_argument(
        "--print-completion",
        action=Completion,
        choices=("bash", "zsh", "tcsh", "fish"),
        help="print what completes commands and flags in this shell, for its startup file",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=description, epilog=EPILOG)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.add_argument("--offline", action="store_true", help="open no connection: hub names only as far as cached")
        return sub

    init = command(
        "init",
        "write a config for your models and data",
        "Look at models and data, time a candidate, and write NAME.yaml and tasks/NAME.yaml, which `plan` and `evolve` "
        "take as they are: a search with a budget that fits, on two thirds of the rows, judged on the others.",
    )
    init.add_argument("models", metavar="MODEL", nargs="+", help="Hugging Face folders, or hub names")
    init.add_argument("--data", required=True, metavar="FILE", help="questions and answers: JSONL, CSV, TSV, Parquet")
    init.add_argument(
        "--base", metavar="MODEL", help="from which the others were made (default: whom their cards name)"
    )
    init.add_argument("--name", default="my_merge", help="of the run (default: my_merge)")
    init.add_argument(
        "--prompt", metavar="TEMPLATE", help='such as "Q: {question}\nA:" (default: by the names of fields)'
    )
    init.add_argument("--answer", metavar="TEMPLATE", help='such as " {answer}"')
    init.add_argument("--output", metavar="FOLDER", default=".", help="where to write (default: here)")

    evolve = command(
        "evolve",
        "search for the best merge of some models",
        "Search for the best merge of some models and write a run folder: config.yaml, evaluations.jsonl, "
        "result.json, report.html and best/, an ordinary Hugging Face folder.",
    )
    evolve.add_argument("config", nargs="?", help="a run's YAML; see configs/quickstart.yaml")
    evolve.add_argument("--output", metavar="RUN", help="the run folder (default: runs/NAME)")
    evolve.add_argument("--seed", type=int, help="instead of the config's")
    evolve.add_argument(
        "--evaluations", type=int, metavar="N", help="instead of the config's; with --resume also of a finished run"
    )
    evolve.add_argument("--resume", metavar="RUN", help="continue this run, with its own config")
    evolve.add_argument(
        "--mesh", metavar="POPxMODEL", help="instead of the config's, such as 4x2; here or when resuming"
    )
    hosts = evolve.add_argument_group(
        "several processes", "Start the same command once per process; the first one writes, all read models and data."
    )
    hosts.add_argument("--distributed", action="store_true", help="as SLURM, Open MPI or a TPU slice says")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="or so: where the first process is, ...")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="... how many there are, ...")
    hosts.add_argument("--process-id", type=int, metavar="I", help="... and which this is, from 0")

    merge = command(
        "merge",
        "merge models by a fixed recipe",
        "Merge models by a recipe in mergekit's YAML format, one tensor in memory at a time. Of a recipe with several "
        "documents, the results of all but the last live in a temporary folder beside OUT.",
    )
    merge.add_argument("recipe", help="the recipe's YAML")
    merge.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        help="the folder, or the .safetensors of an image model, to write; it must not exist",
    )
    merge.add_argument(
        "--explain", action="store_true", help="only print which inputs and coefficients make each tensor"
    )
    add_flags(merge)

    evaluate = command(
        "evaluate",
        "score a model on a task",
        "Score any supported model folder on a task, or as lm-evaluation-harness does on tasks of its own.",
    )
    evaluate.add_argument("model", help="a Hugging Face folder, that or the file of an image pipeline, or a hub name")
    evaluate.add_argument("--task", required=True, metavar="TASK.yaml", help="see configs/tasks/")
    evaluate.add_argument("--split", choices=("search", "heldout"), help="default: heldout")
    evaluate.add_argument("--json", metavar="FILE", help="also write the score of every example to this file")

    generate = command(
        "generate",
        "draw pictures with an image model",
        "Draw each prompt with the noise of each seed and write prompt_1_seed_0.png, ... A picture depends on the "
        "model, its prompt, its seed and these settings, and on nothing that is drawn beside it.",
    )
    generate.add_argument(
        "model", metavar="MODEL", help="a diffusers folder, a .safetensors file or a hub name; with a LoRA MODEL+LORA"
    )
    generate.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="may be given several times")
    generate.add_argument("--negative", metavar="TEXT", help="what is not to be seen; needs --guidance")
    generate.add_argument("--steps", type=int, default=4, metavar="N", help="from noise to picture (default: 4)")
    generate.add_argument("--guidance", type=float, default=0.0, metavar="X", help="above 1 it guides (default: 0)")
    generate.add_argument("--size", metavar="N|HxW", help="in pixels (default: what the model is made for)")
    generate.add_argument(
        "--seed", type=int, action="append", metavar="N", help="may be given several times (default: 0)"
    )
    generate.add_argument("--scheduler", choices=("euler", "lightning", "lcm"), help="default: the model's own")
    generate.add_argument("--like", metavar="MODEL", help="lends what MODEL lacks: of a single file the tokenizers")
    generate.add_argument(
        "--pooled-from", type=int, choices=(1, 2), help="the text encoder whose pooled vector is used, if both have one"
    )
    dtypes = ("float32", "bfloat16", "float16")
    generate.add_argument("--dtype", choices=dtypes, default="float32", help="of activations (default: float32)")
    generate.add_argument("--output", metavar="FOLDER", required=True, help="the folder to write; it must not exist")

    export = command(
        "export",
        "write a genome of a run as a model folder",
        "Merge a genome of a run again and write it as a Hugging Face folder.",
    )
    export.add_argument("run", metavar="RUN", help="a run folder")
    export.add_argument("--genome", required=True, metavar="best|N", help="the best, or the N-th evaluation (from 0)")
    export.add_argument("out", metavar="OUT", help="the folder to write; it must not exist")

    report = command(
        "report",
        "show a run on one page",
        "Write RUN/report.html, a page that needs nothing but a browser, with charts to hover, zoom and filter: how "
        "the fitness went, the front, the coefficients, the path (also as RUN/path.png), candidates with the commands "
        "that export them, which genes matter, held-out scores with their intervals, examples won and lost, the cost. "
        "`evolve` writes it at its end; here, RUN may also be unfinished. Of several stages each gets a page. An "
        "earlier report is replaced.",
    )
    report.add_argument("run", metavar="RUN", help="a run folder")
    report.add_argument("--output", metavar="FILE", help="write the page here instead, and no path.png")

    watch = command(
        "watch",
        "show runs in the browser while they go on",
        "Serve the page of a run, or of several with what they have in common, to browsers on this machine (127.0.0.1) "
        "until Ctrl-C: as report.html, and always as new as the run. Of several stages or seeds each is a run. It only "
        "reads, and does not touch the devices that the runs are on.",
    )
    watch.add_argument("runs", metavar="RUN", nargs="+", help="run folders, finished or not")
    watch.add_argument("--port", type=int, default=0, metavar="N", help="default: one that is free")

    compare = command(
        "compare",
        "show several runs side by side",
        "Print a table of several runs, finished or not: what they searched, what that cost, how good the outcome is "
        "on the search and on the held-out split (with a 95 % bootstrap interval), and by how much it is better than "
        "the first run's, paired on the held-out examples, where these are the same. Also write a page that needs "
        "nothing but a browser, with the best fitness of all runs against evaluations, seconds and tokens. Of several "
        "stages each is a run. An earlier report in the page's place is replaced.",
    )
    compare.add_argument("runs", metavar="RUN", nargs="+", help="two run folders or more")
    compare.add_argument("--output", metavar="FILE", default="compare.html", help="the page (default: compare.html)")

    card = command(
        "card",
        "write a run's model card again",
        "Write README.md and bom.cdx.json of RUN/best again, as `evolve` did at its end: scores with their intervals, "
        "what was made of what, and what the sources' licences ask for, by what their cards say now. A card that "
        "somebody has changed is left alone.",
    )
    card.add_argument("run", metavar="RUN", help="the folder of a finished run")

    push = command(
        "push",
        "put a run's result on the Hugging Face hub",
        "Upload RUN/best, or a folder that `merge` or `export` wrote, as a new model on the hub, with the token of "
        "`hf auth login` or HF_TOKEN. Nothing on the hub is overwritten.",
    )
    push.add_argument("run", metavar="RUN", help="the folder of a finished run, or a merged model's")
    push.add_argument("name", metavar="OWNER/NAME", help="what it will be called")
    push.add_argument("--private", action="store_true", help="for nobody else to see")
    push.add_argument(
        "--accept-licence", action="store_true", help="although a source's licence forbids it, or asks for another name"
    )

    plan = command(
        "plan",
        "say what a run needs: memory, time, and what to change if it does not fit",
        "Compile the programs of a run, from the shapes in its models' headers, for a TPU slice that need not be there "
        "(with the compiler of `pip install 'jevomerge[plan]'`) or for this machine, and print the memory of each "
        "device by kind, arithmetic, traffic and, for TPUs, the time that their peaks allow: the longer of computing "
        "and moving, and then exchanging. No weights are read.",
    )
    plan.add_argument("config", help="a run's YAML; see configs/evollm_jp.yaml")
    plan.add_argument("--topology", metavar="CHIP:SHAPE", help="a slice such as v5e:4x8 (default: this machine)")
    plan.add_argument(
        "--sweep",
        action="store_true",
        help="one line for each slice of that chip, from CHIP:SHAPE on, and each members_per_device",
    )
    plan.add_argument(
        "--measure", action="store_true", help="also score some candidates here, and say how long it takes"
    )

    plan.add_argument("--device-memory", metavar="SIZE", help="instead: one device with so much, such as 24GiB, ...")
    plan.add_argument(
        "--device-bandwidth", type=float, default=1.0, metavar="TB/s", help="... of such speed (default: 1)"
    )
    plan.add_argument("--device-flops", type=float, default=150.0, metavar="TFLOP/s", help="in bfloat16 (default: 150)")

    translate = command(
        "translate",
        "print the config of a mergekit-evolve run as one of ours",
        "Print the YAML of a run that searches what a config of mergekit-evolve does, for `jevomerge evolve`; its "
        "comments say what differs.",
    )
    translate.add_argument("config", help="mergekit-evolve's YAML")
    return top


def reading(what: str) -> None:
    """The first word of a command, before the imports that take seconds."""
    print(f"jevomerge: reading {what} ...", file=sys.stderr, flush=True)


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
    if args.resume:
        if args.seed is not None or args.output:
            raise InputError("evolve: --resume continues a run as it began; --seed and --output do not apply")
        args.folder = Path(os.path.expanduser(args.resume))
        if not (args.folder / "config.yaml").exists():
            raise InputError(f"--resume: {args.folder} is not a run folder, it has no config.yaml")
    if args.process_id in (None, 0):
        reading(args.resume or args.config)
    from jevomerge.devices.hosts import first, join

    explicit = (args.coordinator, args.num_processes, args.process_id)
    if args.distributed or any(value is not None for value in explicit):
        if args.offline:
            raise InputError("--offline: several processes talk over a network; leave one of the two out")
        if not args.distributed and None in explicit:
            raise InputError("evolve: --coordinator, --num-processes and --process-id go together")
        join(*explicit)
    from jevomerge.config import RunConfig, read_config, replaced
    from jevomerge.observers.observer import SILENT
    from jevomerge.observers.terminal import Terminal
    from jevomerge.reports.writer import PageWriter
    from jevomerge.run.stages import evolve_config  # after joining, for evosax computes when it is imported

    config = read_config(args.folder / "config.yaml" if args.resume else args.config)
    if args.seed is not None:
        config = replaced(config, seed=args.seed)
    if args.mesh is not None:
        config = replaced(config, mesh=read_mesh(args.mesh))
    if args.evaluations is not None:
        if not isinstance(config, RunConfig):
            raise InputError("--evaluations: each stage has its own; change the file, before the stage begins")
        config = replaced(config, search={**dict(config.search), "evaluations": args.evaluations})
    if not args.resume:
        args.folder = Path(os.path.expanduser(args.output)) if args.output else Path("runs") / config.name
    observer = PageWriter(Terminal()) if first() else SILENT
    evolve_config(config, args.folder, observer, resume=args.resume is not None)


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
    from jevomerge.observers.terminal import Terminal
    from jevomerge.run.evaluate import evaluate

    evaluate(args.model, args.task, args.split, args.json, observer=Terminal())


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
    from jevomerge.observers.terminal import Terminal
    from jevomerge.planning.chips import assumed_chip
    from jevomerge.run.plan import plan

    known = args.device_memory, args.device_bandwidth, args.device_flops
    chip = None if args.device_memory is None else assumed_chip(*known)
    plan(args.config, args.topology, args.sweep, args.measure, chip=chip, observer=Terminal())


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
    begun = folder is not None and os.path.exists(folder / "config.yaml")  # also of names that cannot be
    return f"; continue with `jevomerge evolve --resume {folder}`" if begun else ""
