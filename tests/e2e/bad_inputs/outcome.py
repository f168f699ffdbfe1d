"""What becomes of a bad input: handed in, and judged."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.bad_inputs.world import Input, World, place_of

# Runs jevomerge without PyTorch, which is here for tests alone, and writes down the most memory that was resident: what
# the parent is told counts the memory of this process, of which the command was a copy when it began.
LAUNCH = """
import atexit, re, runpy, sys
def report(path=sys.argv.pop(1)):
    with open("/proc/self/status") as status, open(path, "w") as file:
        file.write(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])
atexit.register(report)
sys.modules["torch"] = None
runpy.run_module("jevomerge", run_name="__main__", alter_sys=True)
"""
CPU_SECONDS, RESIDENT = 5.0, 10**9  # that a refusal may take, imports included
LIMIT = 300  # seconds after which a process hangs


class Outcome(NamedTuple):
    """Of one command."""

    status: int
    message: str  # on standard error, but for the line that says what is read
    left: frozenset[str]  # paths that are new, gone or others
    seconds: float = 0.0  # of the processors
    resident: int = 0  # bytes, at most

    def fault(self, given: Input) -> str | None:
        """What is wrong with how an input was refused; None: nothing."""
        if self.status == 0:
            return "accepted"
        if self.status != 2:
            return f"exit status {self.status}: {self.message}"
        if "Traceback" in self.message or not re.match("jevomerge: ", self.message):
            return f"not one message: {self.message}"
        if re.search(r"\n(jevomerge: |.*Warning|.*Error:)", self.message):
            return f"more than one message: {self.message}"
        if not re.search(given.says, self.message, re.IGNORECASE):
            return f"does not say `{given.says}`: {self.message}"
        if self.left:
            return f"leaves something behind: {', '.join(sorted(self.left))}"
        if self.seconds > CPU_SECONDS or self.resident > RESIDENT:
            return f"took {self.seconds:.1f} s and {self.resident / 1e6:.0f} MB"
        return None


def prepare(template: Path, given: Input) -> tuple[Path, list[str], dict[str, tuple[int, ...]]]:
    """A world with the input in it, made of links to that in `template`: its folder, the command, all files."""
    folder = place_of(template)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, copy_function=os.link)
    (folder / "tmp").mkdir()
    given.change(World(folder))
    return folder, shlex.split(given.command), files(folder)


def files(folder: Path) -> dict[str, tuple[int, ...]]:
    """What lies there, and by what a change of it is noticed."""
    found = {}
    for path in folder.rglob("*"):
        if path.name == ".lock":  # of a run folder, which stays there
            continue
        status = path.lstat()
        found[str(path.relative_to(folder))] = (
            (status.st_mode,) if path.is_dir() else (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)
        )
    return found


def judged(status: int, err: str, before: dict, folder: Path, seconds: float = 0.0, resident: int = 0) -> Outcome:
    """The outcome of a command that ended."""
    after = files(folder)
    left = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    message = "".join(line for line in err.splitlines(keepends=True) if not line.startswith("jevomerge: reading "))
    return Outcome(status, message, frozenset(left), seconds, resident)


def as_process(template: Path, given: Input, **options: Any) -> Outcome:
    """Hand it in as a user does; where that takes too long, up to three times: other processes only ever add to it."""
    outcomes = [_as_process(template, given, **options)]
    while outcomes[-1].seconds > CPU_SECONDS and len(outcomes) < 3:
        outcomes.append(_as_process(template, given, **options))
    return min(outcomes, key=lambda outcome: outcome.seconds)


def _as_process(template: Path, given: Input, *, data: int = 8 << 30, **environment: str) -> Outcome:
    """Hand it to a process that may have so many bytes of `data` and is ended if it hangs."""
    folder, words, before = prepare(template, given)
    with tempfile.TemporaryFile() as err, tempfile.NamedTemporaryFile("r") as peak:
        shell = f'ulimit -d {data >> 10}; exec timeout {LIMIT} "$@"'
        process = subprocess.Popen(
            ["sh", "-c", shell, "sh", sys.executable, "-c", LAUNCH, peak.name, *words], cwd=folder,
            stdout=subprocess.DEVNULL, stderr=err, env=os.environ | {"TMPDIR": str(folder / "tmp")} | environment,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        text, resident = err.read().decode(errors="replace"), int(peak.read() or 0) * 1024
    seconds = usage.ru_utime + usage.ru_stime
    return judged(process.returncode, text, before, folder, seconds, resident)
