"""Snapshots of a search's state.

They are only a short cut: without one a resumed search is replayed from its evaluations. So nothing that goes wrong
here ends a run, it is noted. Orbax does not notice every flipped bit, and what it does notice it reports in pages of
tracebacks from its threads: so each checkpoint has a digest of its files, and only those that match are read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jevomerge.checkpoint.files import write_atomically
from jevomerge.checkpoint.orbax_tree import quiet

KEPT = 2  # the newest, and one to fall back to
DIGEST = "sha256"  # the file in a checkpoint's folder with the digest of all others
ROOM = 1 << 20  # bytes; a checkpoint is a dozen small files


class Snapshots:
    """The newest checkpoints of one search, for its first process: folders named by their step, generations told."""

    def __init__(self, folder: Path, note: Callable[[str], None]):
        """In `folder`, which appears with the first of them; `note` is told what went wrong."""
        self._folder, self._note, self._last = folder.absolute(), note, 0

    def load(self, state: Any, known: Callable[[int], bool]) -> tuple[int, Any]:
        """The newest checkpoint that is whole and whose step is `known`, as (step, state).

        `state` is a pytree of arrays with the structure, shapes and dtypes of what was saved; if no checkpoint can be
        used, it is returned as that of step 0.
        """
        import orbax.checkpoint as ocp  # imported late, for a quick --help

        for step in reversed(self._steps()):
            try:
                if not known(step):
                    raise ValueError("it is ahead of evaluations.jsonl")
                folder = self._folder / str(step)
                if (folder / DIGEST).read_bytes() != digest(folder).encode():
                    raise ValueError("it is damaged")
                with quiet(), _orbax() as orbax:
                    found = orbax.restore(folder, args=ocp.args.PyTreeRestore(state, _as_numpy(state)))
            except Exception as error:  # Orbax raises many
                self._note(f"checkpoint {step} cannot be used and is ignored: {_brief(error)}")
                continue
            self._last = step
            return step, found
        return 0, state

    def save(self, step: int, state: Any) -> None:
        """Write the state of a step, unless that was done; keep the newest few."""
        import orbax.checkpoint as ocp

        if step == self._last:
            return
        with quiet():
            try:
                steps = self._steps()
                later = [self._folder / str(s) for s in steps if s > self._last]  # those that could not be used
                for leftover in (*later, *self._folder.glob("*.orbax-checkpoint-tmp*")):
                    shutil.rmtree(leftover)
                self._folder.mkdir(exist_ok=True)
                needed = ROOM + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
                if shutil.disk_usage(self._folder).free < needed:  # Orbax would fill the screen with tracebacks
                    raise OSError("the disk is full")
                folder = self._folder / str(step)
                with _orbax() as orbax:
                    orbax.save(folder, args=ocp.args.PyTreeSave(state))
                write_atomically(folder / DIGEST, digest(folder))  # without it, the checkpoint does not count
                for old in self._steps()[:-KEPT]:
                    shutil.rmtree(self._folder / str(old))
                self._last = step
            except Exception as error:
                self._note(f"checkpoint {step} cannot be written: {_brief(error)}")

    def _steps(self) -> list[int]:
        """What lies there, in ascending order."""
        names = (p.name for p in self._folder.iterdir()) if self._folder.is_dir() else ()
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)


def digest(folder: Path) -> str:
    """SHA-256, in hexadecimal, of a checkpoint's step and of the names and contents of its files."""
    sha = hashlib.sha256(folder.name.encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / DIGEST:
            content = hashlib.sha256(path.read_bytes())
            sha.update(f"\n{path.relative_to(folder)} {content.hexdigest()}".encode())
    return sha.hexdigest()


def _orbax() -> Any:
    """A checkpointer that works in the first of several processes alone (that of Orbax's v1 waits for all)."""
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="jevomerge"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _as_numpy(state: Any) -> Any:
    """How the leaves are to be read."""
    import orbax.checkpoint as ocp

    return jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype), state)


def _brief(error: Exception) -> str:
    """One line of what may be a page."""
    text = " ".join(str(error).split())
    return f"{text[:200]}..." if len(text) > 200 else text or type(error).__name__
