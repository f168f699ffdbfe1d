"""The notebooks run from top to bottom, in a process with JAX as everybody has it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "experiments" / "tutorial"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted(TUTORIAL.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebook_runs(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(codes) >= 5
    assert all(cell.get("outputs", []) == [] for cell in cells)  # nothing of one machine is committed
    run = subprocess.run([sys.executable, "-c", "\n".join(codes)], cwd=TUTORIAL, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
