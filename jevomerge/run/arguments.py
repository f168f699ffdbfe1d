"""What the command line takes: every command with its flags, for `cli` and for shells that complete them."""

from __future__ import annotations

import argparse
from typing import Any

from jevomerge.run.mergekit_flags import add_flags

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
        "take as they are: a search with a budget that fits, on two thirds of the rows, judged on the others. In a "
        "terminal it asks what it would have to guess.",
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
    for drawing in (evaluate, generate):
        drawing.add_argument(
            "--pooled-from",
            type=int,
            choices=(1, 2),
            help="the text encoder whose pooled vector is used, if both have one",
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
    plan.add_argument("config", help="a run's YAML, see configs/evollm_jp.yaml, or a recipe for `merge`")
    plan.add_argument("--topology", metavar="CHIP:SHAPE", help="a slice such as v5e:4x8 (default: this machine)")
    plan.add_argument(
        "--sweep",
        action="store_true",
        help="one line for each slice of that chip, from CHIP:SHAPE on, and each members_per_device",
    )
    plan.add_argument(
        "--measure", action="store_true", help="also score some candidates here, and say how long it takes"
    )
    plan.add_argument(
        "--new-tokens",
        type=int,
        metavar="N",
        help="how long texts are taken to be (default: as the task's `expected_new_tokens` says, else as the sources "
        "wrote in a run of that name in runs/, else as long as they may be)",
    )
    plan.add_argument("--json", metavar="FILE", help="write all numbers there, too: bytes, FLOPs, seconds")
    plan.add_argument("--device-memory", metavar="SIZE", help="instead: one device with so much, such as 24GiB, ...")
    plan.add_argument(
        "--device-bandwidth", type=float, default=1.0, metavar="TB/s", help="... of such speed (default: 1)"
    )
    plan.add_argument("--device-flops", type=float, default=150.0, metavar="TFLOP/s", help="in bfloat16 (default: 150)")
    plan.add_argument(
        "--host-bandwidth", type=float, default=25.0, metavar="GB/s", help="from the host's memory (default: 25)"
    )

    translate = command(
        "translate",
        "print the config of a mergekit-evolve run as one of ours",
        "Print the YAML of a run that searches what a config of mergekit-evolve does, for `jevomerge evolve`; its "
        "comments say what differs.",
    )
    translate.add_argument("config", help="mergekit-evolve's YAML")
    return top
