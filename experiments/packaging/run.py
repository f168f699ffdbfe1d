"""Whether pip finds packages for this one and its extras, for Pythons that need not be here; nothing is installed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from arguments import known, make_parser, record

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = ("", "tasks", "rouge", "harness", "vision", "people", "gs", "trackers", "plan", "tpu", "cuda")
SHOWN = ("jax", "flax", "transformers", "libtpu", "jax-cuda13-plugin")


def resolved(requirement: str, python: str) -> dict[str, str]:
    """The versions that pip would install, of what is worth knowing, or the last thing that it says."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-",
            "--only-binary=:all:", "--python-version", python, "--target", folder, requirement,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return {"error": said[-1] if said else done.stderr[-300:]}
    found = {entry["metadata"]["name"]: entry["metadata"]["version"] for entry in json.loads(done.stdout)["install"]}
    return {name: found[name] for name in SHOWN if name in found}


def main() -> None:
    """Every extra with every Python, and flax with the newest JAX."""
    args = make_parser(__doc__, __file__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(build, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        wanted = {extra or "jevomerge": f"{wheel}[{extra}]" if extra else str(wheel) for extra in EXTRAS}
        wanted["flax and a newer jax"] = "flax>=0.12.8"
        for extra, requirement in wanted.items():
            for python in PYTHONS:
                if known(args.output, extra, python) is None:
                    record(args.output, resolved(requirement, python), extra, python)
                    print(extra, python, known(args.output, extra, python), flush=True)


if __name__ == "__main__":
    main()
