"""How long a command takes until it says a word, and a run until it has a fitness; beside another checkout."""

import os
import resource
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from arguments import known, make_parser, record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
QUICKSTART = ["evolve", str(ROOT / "configs" / "quickstart.yaml"), "--output"]
MODEL = ROOT / "experiments" / "japanese_math_mini" / "models" / "base"
TICK = os.sysconf("SC_CLK_TCK")
LATE = 300  # seconds after which something is wrong


class Command:
    """`jevomerge` of a checkout with some arguments, started."""

    def __init__(self, checkout: Path, arguments: list[str]):
        """Start it, without a cache of compiled programs."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jevomerge", *arguments],
            cwd=checkout,
            env=environment | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def now(self) -> dict[str, float]:
        """Seconds until now, by the clock and of the processors, and whether JAX is there."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        jax = "jaxlib" in Path(f"/proc/{self.process.pid}/maps").read_text()
        return {"wall": time.perf_counter() - self.began, "cpu": sum(map(int, fields[11:15])) / TICK, "jax": jax}

    def until_a_word(self) -> dict[str, float]:
        """Until the first letter on either stream."""
        with selectors.DefaultSelector() as streams:
            for stream in (self.process.stdout, self.process.stderr):
                streams.register(stream, selectors.EVENT_READ)
            assert streams.select(LATE)
        return self.now()

    def until(self, done: Callable[[], bool]) -> dict[str, float]:
        """Until something can be seen from outside."""
        while not done():
            assert self.process.poll() is None, self.process.stderr.read().decode()
            assert time.perf_counter() - self.began < LATE
            time.sleep(0.002)
        return self.now()

    def kill(self) -> None:
        """What follows is not of interest."""
        self.process.kill()
        self.process.communicate()


def help_of(checkout: Path) -> dict[str, float]:
    """Of `--help`, to its end."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "jevomerge", "--help"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall": time.perf_counter() - began,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def first_word(checkout: Path, arguments: list[str]) -> dict[str, float]:
    """Of a command, which is then killed."""
    command = Command(checkout, arguments)
    try:
        return command.until_a_word()
    finally:
        command.kill()


def first_fitness(checkout: Path, run: Path) -> dict[str, float]:
    """Of the quickstart, which is then killed."""
    log = run / "evaluations.jsonl"
    command = Command(checkout, [*QUICKSTART, str(run)])
    try:
        return command.until(lambda: log.exists() and b"\n" in log.read_bytes())
    finally:
        command.kill()


def commands(runs: list[Path], out: Path) -> dict[str, list[str]]:
    """What is asked of each checkout, with two runs that were begun."""
    (out / "recipe.yaml").write_text(f"merge_method: passthrough\nmodels: [{{model: {MODEL}}}]\n")
    return {
        "evolve": [*QUICKSTART, str(out / "new")],
        "merge": ["merge", str(out / "recipe.yaml"), str(out / "merged")],
        "evaluate": ["evaluate", str(MODEL), "--task", str(ROOT / "configs" / "tasks" / "mini_japanese_math.yaml")],
        "export": ["export", str(runs[0]), "--genome", "0", str(out / "exported")],
        "report": ["report", str(runs[0]), "--output", str(out / "report.html")],
        "compare": ["compare", *map(str, runs), "--output", str(out / "compare.html")],
        "plan": ["plan", str(ROOT / "configs" / "quickstart.yaml")],
    }


def beside(rounds: int, measure: Callable[[str], dict[str, float]], sides: dict[str, Path]) -> dict[str, dict]:
    """In turns, each side first every other time; of each the least (but of `jax` whether ever), and the ratios."""
    found: dict[str, list] = {side: [] for side in sides}
    for i in range(rounds):
        for side in [*sides][:: 1 if i % 2 else -1]:
            found[side].append(measure(side))
    pairs = zip(found["before"], found["after"], strict=True)
    ratios = sorted(after["cpu"] / max(before["cpu"], 1 / TICK) for before, after in pairs)
    least: dict[str, dict] = {side: {} for side in sides}
    for side, several in found.items():
        for key in several[0]:
            values = [f[key] for f in several]
            least[side][key] = any(values) if key == "jax" else round(min(values), 3)
    spread = {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
    return least | {"after / before": {name: round(ratio, 3) for name, ratio in spread.items()}}


def main(before: Path, rounds: int, output: Path) -> None:
    """Measure what the results do not have yet."""
    sides = {"before": before.resolve(), "after": ROOT}
    for checkout in sides.values():  # nobody waits for Python to compile a module
        subprocess.run([sys.executable, "-m", "compileall", "-q", "jevomerge"], cwd=checkout, check=True)
    with tempfile.TemporaryDirectory() as work:
        begun: list[Path] = []

        def fitness(side: str) -> dict[str, float]:
            begun.append(Path(work) / f"run{len(begun)}")
            return first_fitness(sides[side], begun[-1])

        def word(side: str, name: str) -> dict[str, float]:
            while len(begun) < 2:  # measured before, by a script that was stopped
                fitness("after")
            out = Path(work) / "out"
            out.mkdir()
            try:
                return first_word(sides[side], commands(begun[:2], out)[name])
            finally:
                shutil.rmtree(out)

        rows: dict[str, Callable[[str], dict[str, float]]] = {
            "help": lambda side: help_of(sides[side]),
            "first_fitness": fitness,
        }
        for name in commands([Path(work)] * 2, Path(work)):
            rows[f"first_word, {name}"] = partial(word, name=name)
        for name, measure in rows.items():
            if known(output, name) is None:
                record(output, beside(rounds, measure, sides), name)
            print(name, known(output, name), flush=True)


if __name__ == "__main__":
    parser = make_parser(__doc__, __file__)
    parser.add_argument("--before", type=Path, required=True, help="another checkout, such as of a88ca7d")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    main(args.before, args.rounds, args.output)
