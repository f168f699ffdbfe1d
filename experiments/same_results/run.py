"""Whether two checkouts of the code come to the same results, to the last bit.

    python experiments/same_results/run.py BEFORE [AFTER] [--work DIR] [--results FILE] [--only NAME ...]

Runs and merges of both are compared, file by file; README.md says which and what came out.  Models, data and configs
are those of the checkout that this script lies in, for both sides: nothing but the code differs.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from differences import MERGED, compared, differences
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = HERE / "results.json"
MODELS = ROOT / "experiments" / "japanese_math_mini" / "models"
TOKENIZERS = ROOT / "tests" / "data" / "tokenizers" / "models"
READ = (  # by every run; a cached result is of these very files
    MODELS,
    MODELS.parent / "data",
    TOKENIZERS,
    HERE / "configs" / "tasks",
    ROOT / "configs" / "tasks",
)
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "evosax", "optax", "transformers", "safetensors")


class Run(NamedTuple):
    """`jevomerge evolve` with a config of this folder."""

    kill: tuple[str, int] | None = None  # kill -9 once this file has so many lines, to be resumed by the other checkout
    devices: int = 1


RUNS = {
    "quickstart": Run(("evaluations.jsonl", 160)),  # behind the first checkpoint, as all of these
    "path": Run(("evaluations.jsonl", 50)),
    "paths": Run(),
    "joint": Run(("evaluations.jsonl", 30)),
    "front": Run(("evaluations.jsonl", 30)),
    "anchors": Run(("evaluations.jsonl", 30)),
    "gradient": Run(),
    "racing": Run(),
    "minibatch": Run(("evaluations.jsonl", 30)),
    "dare_ties": Run(),
    "union": Run(),
    "strategies": Run(),
    "stages": Run(("flow/evaluations.jsonl", 28)),
    "harness": Run(),
    "devices": Run(devices=4),
}
MERGES = "merges"  # the case that is not a run

# --- merges -------------------------------------------------------------------------------------------------


def recipe(method: str, models: Iterable[str] = ("japanese", "mathematics", "addition"), **more: Any) -> dict[str, Any]:
    """A recipe with `base` as its base; in `each`, parameters of each model."""
    each = more.pop("each", {})
    listed = [
        {"model": str(MODELS / m), "parameters": {name: values[i] for name, values in each.items()}}
        for i, m in enumerate(models)
    ]
    return {"merge_method": method, "base_model": str(MODELS / "base"), "models": listed, "dtype": "float32"} | more


def without_base(recipe: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in recipe.items() if k != "base_model"}


def layers(*slices: tuple[str, int, int]) -> list[dict[str, Any]]:
    return [{"sources": [{"model": str(MODELS / m), "layer_range": [a, b]}]} for m, a, b in slices]


def tokenizers(**more: Any) -> dict[str, Any]:
    models = [
        {"model": str(TOKENIZERS / m), "parameters": {"weight": w}} for m, w in (("a", 0.5), ("b", 0.3), ("c", 0.2))
    ]
    return {"merge_method": "linear", "models": models, "dtype": "float32"} | more


def recipes(adapter: Path) -> dict[str, list[dict[str, Any]]]:
    """By name, the documents of each recipe."""
    weights = {"weight": (0.5, 0.3, 0.4)}
    sparse = {"each": {**weights, "density": (0.5, 0.7, 0.4)}}
    pair = ("japanese", "mathematics")
    found = {
        "linear": without_base(recipe("linear", each=weights, dtype="bfloat16")),
        "linear_sum": without_base(recipe("linear", each=weights, parameters={"normalize": False}, dtype="float16")),
        "slerp": {
            **without_base(recipe("slerp", pair)),
            "base_model": str(MODELS / "japanese"),
            "parameters": {"t": [{"filter": "mlp", "value": [0, 0.7, 1]}, {"value": 0.4}]},
        },
        "nuslerp": recipe("nuslerp", pair, each={"weight": (0.7, 0.4)}),
        "nuslerp_rows": without_base(
            recipe("nuslerp", pair, each={"weight": (0.7, 0.4)}, parameters={"nuslerp_flatten": False})
        ),
        "multislerp": recipe("multislerp", each=weights),
        "karcher": without_base(recipe("karcher")),
        "passthrough": {
            "merge_method": "passthrough",
            "slices": layers(("japanese", 0, 3), ("addition", 1, 4)),
            "parameters": {"scale": [{"filter": "down_proj", "value": 0.8}, {"value": 1}]},
            "dtype": "bfloat16",
        },
        "model_stock": recipe("model_stock"),
        "model_stock_rows": recipe("model_stock", parameters={"filter_wise": True}),
        "arcee_fusion": recipe("arcee_fusion", ["japanese"]),
        "nearswap": recipe("nearswap", ["japanese"], parameters={"t": 0.01}),
        "ram": recipe("ram"),
        "ramplus_tl": recipe("ramplus_tl", parameters={"r": 0.3, "alpha": 0.5, "epsilon": 0.001}),
        "task_arithmetic": recipe("task_arithmetic", each=weights, parameters={"lambda": 1.3}),
        "breadcrumbs": recipe("breadcrumbs", **sparse, parameters={"gamma": 0.05}),
        "breadcrumbs_ties": recipe("breadcrumbs_ties", **sparse),
        "gradients": recipe(
            "dare_ties",
            each={"weight": ([0.2, 0.8],) * 3, "density": ([1, 0.5, 0.3],) * 3},
            out_dtype="bfloat16",
            seed=5,
        ),
        "lora": without_base(recipe("linear", [f"japanese+{adapter}", "addition"], each={"weight": (0.5, 0.5)})),
        "chat": recipe("task_arithmetic", each=weights, chat_template="chatml", tokenizer_source="base"),
        "union": tokenizers(tokenizer_source="union"),
        "padded": tokenizers(base_model=str(TOKENIZERS / "b"), tokenizer={"source": "union", "pad_to_multiple_of": 16}),
        "tokens": tokenizers(
            tokenizer={
                "source": "union",
                "tokens": {
                    "<|im_end|>": {"source": str(TOKENIZERS / "c")},
                    "<s>": {"source": str(TOKENIZERS / "a"), "force": True},
                    "</think>": {"source": {"kind": "zero"}},
                },
            }
        ),
    }
    for semantics, ending in (("mergekit", ""), ("paper", "_paper")):
        for method in ("ties", "dare_linear", "dare_ties", "della", "della_linear"):
            found[method + ending] = recipe(method, **sparse, semantics=semantics)
        found["sce" + ending] = recipe("sce", parameters={"select_topk": 0.4}, semantics=semantics)
    first = recipe("task_arithmetic", each=weights, name="first")
    second = without_base(recipe("linear", each=weights))
    second["models"][0]["model"] = "first"
    return {name: [document] for name, document in found.items()} | {"two_documents": [first, second]}


def write_adapter(folder: Path) -> None:
    """A LoRA adapter of random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, width = np.random.default_rng(0), json.loads((MODELS / "base" / "config.json").read_text())["hidden_size"]
    tensors = {}
    for layer in range(4):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora"
        tensors[f"{name}_A.weight"] = rng.normal(0, 0.1, (4, width)).astype(np.float32)
        tensors[f"{name}_B.weight"] = rng.normal(0, 0.1, (width, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings) + "\n")


# Many commands in one process, for one takes two seconds to begin; what those with a file print is kept there.
COMMANDS = """
import contextlib, json, runpy, sys
for arguments, file in json.loads(sys.argv[1]):
    sys.argv = ["jevomerge", *arguments]
    with contextlib.ExitStack() as stack:
        if file:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(file, "w"))))
        try:
            runpy.run_module("jevomerge", run_name="__main__")
        except SystemExit as ending:
            if ending.code:
                sys.exit(ending.code)
"""


def merge_command(work: Path, folder: Path) -> list[str]:
    """A command that merges by all recipes, each into a folder of its own in `folder`."""
    written = work / "recipes"
    written.mkdir(exist_ok=True)
    write_adapter(work / "adapter")
    commands: list[tuple[list[str], str | None]] = []
    for name, documents in recipes(work / "adapter").items():
        path = written / f"{name}.yaml"
        path.write_text("---\n".join(yaml.safe_dump(d, sort_keys=False) for d in documents))
        commands.append((["merge", str(path), str(folder / MERGED / name)], None))
        if len(documents) == 1:  # of several, temporary folders are named
            commands.append((["merge", str(path), "--explain"], str(folder / MERGED / f"{name}.txt")))
    return ["-c", COMMANDS, json.dumps(commands)]


# --- running ------------------------------------------------------------------------------------------------


class Checkout:
    """A checkout of the code."""

    def __init__(self, folder: Path, lock: int):
        """In `folder`; whatever it starts keeps the lock, should this process be killed."""
        self.folder, self.lock = folder.resolve(), lock
        found = self.python(["-c", "import importlib.util as u; print(u.find_spec('jevomerge').origin)"], self.folder)
        if not found.stdout.startswith(str(self.folder)):
            raise SystemExit(f"{folder} is not a checkout of jevomerge: its code would be {found.stdout}{found.stderr}")

    def identity(self) -> str:
        """Its commit; with uncommitted changes also a digest of the code."""

        def git(*arguments: str) -> str:
            command = ["git", "-C", str(self.folder), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        commit = git("rev-parse", "--short", "HEAD")
        return (
            f"{commit}+{digest([self.folder / 'jevomerge'])}" if git("status", "--porcelain", "jevomerge") else commit
        )

    def popen(self, arguments: list[str], where: Path, devices: int = 1) -> subprocess.Popen[str]:
        """Start Python with this checkout's code, whatever is installed."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "PYTHON"))}
        own = {"PYTHONPATH": str(self.folder), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        return subprocess.Popen(
            [sys.executable, "-P", *arguments],  # -P: no code from the working folder
            env=kept | own | {"HF_HUB_OFFLINE": "1"},
            cwd=where,
            pass_fds=[self.lock],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, arguments: list[str], where: Path, devices: int = 1) -> subprocess.CompletedProcess[str]:
        process = self.popen(arguments, where, devices)
        try:
            out, err = process.communicate()
        finally:
            process.kill()  # of Ctrl-C; else it has ended
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def digest(paths: Iterable[Path], *texts: str) -> str:
    """Of the files at or in `paths` and of texts."""
    sha = hashlib.sha256()
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                sha.update(f"{file} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    sha.update("\n".join(texts).encode())
    return sha.hexdigest()[:12]


class Bench:
    """Two checkouts, and a folder in which they work, one after the other and in the same place."""

    def __init__(self, before: Checkout, after: Checkout, work: Path):
        self.before, self.after, self.work = before, after, work
        # Exports name the folders of their sources, some of which are results: so both write to the same place.
        self.here, self.results = work / "here", work / "after"
        for folder in (self.here, self.results):
            folder.mkdir(exist_ok=True)
        versions = [f"{name} {version(name)}" for name in PACKAGES]
        self.inputs = digest(READ, str(work), *versions)

    def config(self, name: str) -> Path:
        return (ROOT if name == "quickstart" else HERE) / "configs" / f"{name}.yaml"

    def command(self, name: str) -> list[str]:
        """What makes the results of a case."""
        if name == MERGES:
            return merge_command(self.work, self.here / name)
        return ["-m", "jevomerge", "evolve", str(self.config(name)), "--output", str(self.here / name)]

    def devices(self, name: str) -> int:
        return RUNS[name].devices if name in RUNS else 1

    def clear(self, name: str) -> Path:
        """The place of a case's results, empty."""
        shutil.rmtree(self.here / name, ignore_errors=True)
        if name == MERGES:
            (self.here / name / MERGED).mkdir(parents=True)
        return self.here / name

    def whole(self, checkout: Checkout, name: str) -> tuple[float, str | None]:
        """Make a case's results; the seconds that it took, and why it failed, if it did."""
        self.clear(name)
        began = time.perf_counter()
        ended = checkout.python(self.command(name), self.work, self.devices(name))
        return round(time.perf_counter() - began, 1), failure(ended)

    def cached(self, name: str) -> Path:
        """The folder of BEFORE's results of a case: run/, of a run that was killed killed/, and seconds.json."""
        kill = RUNS[name].kill if name in RUNS else None
        if name == MERGES:
            text = json.dumps([COMMANDS, recipes(self.work / "adapter")])
        else:
            text = self.config(name).read_text()
        key = digest([], self.inputs, text, str(self.devices(name)))
        folder = self.work / "before" / self.before.identity() / f"{name}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "run").exists():
            seconds, failed = self.whole(self.before, name)
            if failed:
                raise SystemExit(f"{name}: BEFORE {failed}")
            (folder / "seconds.json").write_text(json.dumps(seconds) + "\n")
            (self.here / name).rename(folder / "run")
        if kill is not None and not (folder / f"killed-{kill[1]}").exists():
            self.killed(name, *kill).rename(folder / f"killed-{kill[1]}")
        return folder

    def killed(self, name: str, log: str, lines: int) -> Path:
        """A run of BEFORE that is killed once its log has so many lines."""
        folder = self.clear(name)
        process = self.before.popen(self.command(name), self.work, self.devices(name))
        try:
            while not (folder / log).exists() or (folder / log).read_bytes().count(b"\n") < lines:
                if process.poll() is not None:
                    raise SystemExit(f"{name}: BEFORE ended before it could be killed")
                time.sleep(0.01)
        finally:
            process.kill()
            process.communicate()
        if (folder / "result.json").exists():
            raise SystemExit(f"{name}: BEFORE ended before it could be killed")
        return folder

    def compare(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """What came out of a case, and of the same begun by BEFORE, killed, and resumed by AFTER."""
        folder, now = self.cached(name), {"before": self.before.identity(), "after": self.after.identity()}
        seconds, failed = self.whole(self.after, name)
        took = {"before": json.loads((folder / "seconds.json").read_text()), "after": seconds}
        found = [f"AFTER {failed}"] if failed else differences(folder / "run", self.here / name)
        row: dict[str, Any] = {**now, "same": not found, "differences": found, "seconds": took}
        yield name, row | contents(folder / "run") | self.changed(now["after"])
        self.keep(name, name)
        for killed in folder.glob("killed-*"):
            begun = lines_of(killed)
            shutil.copytree(killed, self.clear(name), symlinks=True)
            began = time.perf_counter()
            command = ["-m", "jevomerge", "evolve", "--resume", str(self.here / name)]
            ended = self.after.python(command, self.work, self.devices(name))
            took = {"after": round(time.perf_counter() - began, 1)}
            row = {**now, "same": True, "differences": [], "seconds": took, "evaluations when killed": begun}
            message = ended.stderr.strip().rpartition("\n")[2]
            if ended.returncode == 2 and "version" in message:
                row |= {"refused": message}
            else:
                failed = failure(ended)
                found = [f"AFTER {failed}"] if failed else differences(folder / "run", self.here / name)
                notes = [line for line in ended.stdout.splitlines() if "ignored" in line]  # such as a checkpoint
                row |= {"same": not found, "differences": found} | ({"notes": notes} if notes else {})
            yield f"{name}, resumed", row | self.changed(now["after"])
            self.keep(name, f"{name}, resumed")

    def changed(self, identity: str) -> dict[str, bool]:
        """Whether someone has worked on AFTER in the meantime."""
        return {} if self.after.identity() == identity else {"changed": True}

    def keep(self, name: str, kept: str) -> None:
        """AFTER's latest results stay, to be looked at."""
        shutil.rmtree(self.results / kept, ignore_errors=True)
        if (self.here / name).exists():
            (self.here / name).rename(self.results / kept)


def failure(ended: subprocess.CompletedProcess[str]) -> str | None:
    """How a command failed, if it did."""
    said = ended.stderr.strip().rpartition("\n")[2]
    return f"fails with exit status {ended.returncode}: {said}" if ended.returncode else None


def lines_of(folder: Path) -> int:
    return sum(len(p.read_bytes().splitlines()) for p in folder.rglob("evaluations.jsonl"))


def contents(folder: Path) -> dict[str, Any]:
    """What was compared: how many files, and what the lines of the archive are about."""
    found: dict[str, Any] = {"files": len(compared(folder))}
    logs = [p.read_text().splitlines() for p in folder.rglob("evaluations.jsonl")]
    if records := [json.loads(line) for log in logs for line in log]:
        found["evaluations"] = len(records)
        some = Counter(key for record in records for key in record)
        found |= {key: some[key] for key in ("copy_of", "stopped", "refined", "estimate", "examples") if key in some}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a checkout; its results are kept in DIR")
    parser.add_argument("after", type=Path, metavar="AFTER", nargs="?", default=ROOT, help="default: this checkout")
    parser.add_argument("--work", type=Path, metavar="DIR", default=Path("runs/same_results"))
    parser.add_argument("--results", type=Path, metavar="FILE", default=OUT, help="default: results.json beside this")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*RUNS, MERGES], help="these of the cases")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what it started is ended too
    failed = False
    with locked(work) as lock:
        bench = Bench(Checkout(arguments.before, lock), Checkout(arguments.after, lock), work)
        for case in arguments.only or [*RUNS, MERGES]:
            for name, row in bench.compare(case):
                failed |= not row["same"]
                record(arguments.results, name, row)
                print(f"{name:20} {row['seconds']['after']:5.1f} s  {verdict(row)}", flush=True)
    sys.exit(failed)


@contextlib.contextmanager
def locked(work: Path) -> Iterator[int]:
    """The right to write to `work`, for two at once would write to the same places; gives the lock's descriptor."""
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another comparison in {work}; with another --work there is none", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def record(file: Path, name: str, row: dict[str, Any]) -> None:
    """Write a comparison down, beside those that are there, also of others that run now."""
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(results | {name: row}, indent=1, ensure_ascii=False) + "\n")
    new.replace(file)


def verdict(row: dict[str, Any]) -> str:
    """One line about a comparison."""
    changed = "(AFTER was changed meanwhile) " if row.get("changed") else ""
    if found := row["differences"]:
        return changed + found[0] + (f" (and {len(found) - 1} files more)" if len(found) > 1 else "")
    if "refused" in row:
        return f"{changed}refused: {row['refused']}"
    return f"{changed}identical" + "".join(f"; {note}" for note in row.get("notes", []))


if __name__ == "__main__":
    main()
