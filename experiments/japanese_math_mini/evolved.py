"""Evolves the quickstart's merge for both effects, with per-layer genes and with whole-model genes, over three seeds.

python experiments/japanese_math_mini/evolved.py          # about 12 runs of one to four minutes; continues where it was

Writes evolved.json: the search and held-out score of every run, in per cent, as each ends.
"""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from jevomerge.config import read_run
from jevomerge.console import Terminal
from jevomerge.evolve.run import evolve

HERE = Path(__file__).parent
QUICKSTART = HERE.parents[1] / "configs" / "quickstart.yaml"
OUT = HERE / "evolved.json"
SEEDS = (0, 1, 2)
GENOMES: dict[str, Any] = {
    "one weight per source": [0, 1],
    "per layer and component": {"range": [0, 1], "layers_per_group": 1, "by": "component"},
}


def main() -> None:
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    for seed, task, genome in itertools.product(SEEDS, ("japanese_math", "two_skills"), GENOMES):
        runs = results.setdefault(task, {}).setdefault(genome, {})
        if str(seed) in runs:
            continue
        with tempfile.TemporaryDirectory() as folder:
            values = yaml.safe_load(QUICKSTART.read_text())
            values |= {"seed": seed, "genome": {"weight": GENOMES[genome]}, "tasks": [f"tasks/mini_{task}.yaml"]}
            path = QUICKSTART.parent / f".{task}-{seed}.yaml"  # beside the original: its paths are relative
            try:
                path.write_text(yaml.safe_dump(values))
                config = read_run(path)
            finally:
                path.unlink(missing_ok=True)
            result = evolve(config, Path(folder) / "run", Terminal())
        runs[str(seed)] = {
            **{split: round(100 * result["best"][split], 1) for split in ("search", "heldout")},
            "evaluations": result["evaluations"],
            "seconds": result["seconds"],
        }
        OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
