"""TensorBoard and Weights & Biases: what evaluations.jsonl says, shown by the tools that many have open anyway.

Trackers are part of a run's configuration, so that `--resume` goes on with them. They follow the run folder, which is
the truth: a run that is resumed tells them everything from the beginning, and that replaces what a tracker has kept on
this machine. So a step is never there twice, whatever a process that was killed had or had not written.

Scalars by step, which is the number of the evaluation, from 0:
  fitness  of this candidate, if it has one
  best     the highest until here
  seconds  of search until here
  tokens   scored until here
  mean     of the generation that ends here
"""

from __future__ import annotations

import importlib
import io
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from jevomerge.config import RunConfig
from jevomerge.errors import InputError
from jevomerge.observers.observer import Observer

# What is imported of them; Python would also take a mere folder wandb/ for "wandb".
NEEDED = {"tensorboard": "tensorboard.summary.writer.record_writer", "wandb": "wandb.sdk"}


class Tracker(Protocol):
    """Where scalars go."""

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Scalars at a step, that many seconds of search after the beginning; steps never decrease."""

    def close(self, finished: bool) -> None:
        """The run is finished, or this process has to stop."""


def check_trackers(names: Sequence[str]) -> None:
    """Whether they can be used here; nothing is sent anywhere.

    Raises:
        InputError: for a package that is missing, or nobody being logged in.
    """
    for name in names:
        try:
            importlib.import_module(NEEDED[name])
        except ImportError as error:
            raise InputError(
                f"trackers: {name} cannot be imported ({error}); pip install 'jevomerge[trackers]', or leave it out of "
                "`trackers` (of a run that is resumed, in its config.yaml)"
            ) from None
        if name == "wandb":
            check_login()


def check_login() -> None:
    """A run of days must not wait for somebody to type a password.

    Raises:
        InputError: if W&B is to be online and knows no key.
    """
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise InputError("trackers: nobody is logged in to wandb; `wandb login`, or set WANDB_MODE=offline")


@contextmanager
def tracked(observer: Observer, config: RunConfig, folder: Path) -> Iterator[Observer]:
    """The observer, and with it the trackers of a run, until the end of the block."""
    if not config.trackers:
        yield observer
        return
    makers: dict[str, Callable[[RunConfig, Path], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
    both = Tracked(observer, {name: lambda make=makers[name]: make(config, folder) for name in config.trackers})  # type: ignore[misc]
    try:
        yield both
    finally:
        both.close()


class Tracked(Observer):
    """An observer and trackers; one that fails is left out from then on."""

    def __init__(self, observer: Observer, makers: Mapping[str, Callable[[], Tracker]]):
        """Open the trackers, {name: what opens it}."""
        self._observer, self._trackers = observer, dict[str, Tracker]()
        self._best, self._seconds, self._tokens = -math.inf, 0.0, 0
        self._generation, self._members, self._last = -1, list[float](), 0  # what it scores, and its last step so far
        for name, make in makers.items():
            self._guarded(name, lambda name=name, make=make: self._trackers.update({name: make()}))  # type: ignore[misc]

    def stage(self, text: str) -> None:
        """For the observer."""
        self._observer.stage(text)

    def note(self, text: str) -> None:
        """For the observer."""
        self._observer.note(text)

    def line(self, text: str) -> None:
        """For the observer."""
        self._observer.line(text)

    def counter(self, label: str, unit: str = "tensors") -> Callable[[int, int], None]:
        """For the observer."""
        return self._observer.counter(label, unit)

    def searching(self, size: int, source: float) -> None:
        """For the observer."""
        self._observer.searching(size, source)

    def evaluated(self, done: int, total: int, best: float, mean: float) -> None:
        """For the observer."""
        self._observer.evaluated(done, total, best, mean)

    def scored(self, number: int, record: Mapping[str, Any]) -> None:
        """The scalars of an evaluation."""
        self._observer.scored(number, record)
        fitness, values = record["fitness"], dict[str, float]()
        if record["generation"] != self._generation:
            self._end_generation()
            self._generation, self._members = record["generation"], []
        self._last = number
        self._seconds += record["seconds"]
        if fitness is not None:
            self._members.append(fitness)
            self._best = max(self._best, fitness)
            values["fitness"] = fitness
        if self._best > -math.inf:
            values["best"] = self._best
        values["seconds"] = self._seconds
        if "tokens" in record:  # not in runs of earlier versions
            self._tokens += sum(record["tokens"].values())
            values["tokens"] = self._tokens
        self._log(number, values)

    def finished(self, result: Mapping[str, Any], folder: Path) -> None:
        """The outcome, at the last step."""
        self._observer.finished(result, folder)
        self._end_generation()
        average = {} if result["average"] is None else {"plain average": result["average"]}
        models = {**result["sources"], **average, "evolved merge": result["best"]}
        values = {f"{split}/{name}": row[split] for name, row in models.items() for split in ("search", "heldout")}
        self._log(self._last, {k: v for k, v in values.items() if v is not None and math.isfinite(v)})
        self.close(finished=True)

    def stages_finished(self, results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
        """For the observer: each stage has trackers of its own."""
        self._observer.stages_finished(results, folder)

    def close(self, finished: bool = False) -> None:
        """Nothing follows."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker.close(finished))  # type: ignore[misc]
        self._trackers.clear()

    def _end_generation(self) -> None:
        if self._members:
            self._log(self._last, {"mean": sum(self._members) / len(self._members)})

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(step, values, self._seconds))  # type: ignore[misc]

    def _guarded(self, name: str, f: Callable[[], Any]) -> None:
        """A run of days does not end because somebody cannot watch it."""
        try:
            f()
        except Exception as error:
            if (tracker := self._trackers.pop(name, None)) is not None:
                with suppress(Exception):
                    tracker.close(finished=False)
            self._observer.note(f"{name}: {type(error).__name__}: {error}; the run goes on without it")


class WholeFile(io.FileIO):
    """A file without a buffer, to which everything is written or an error raised."""

    def write(self, data: Any) -> int:
        """All of the bytes."""
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        return len(data)


class TensorBoard:
    """RUN/tensorboard/, one event file; its times are those of the search, without the pauses before a run is resumed.

    It is written at once, not by a thread: that of a SummaryWriter, once the disk is full, would let the run wait for
    ever.
    """

    def __init__(self, config: RunConfig, folder: Path):
        """Replace the event file."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._began = (folder / "environment.json").stat().st_mtime
        own = folder / "tensorboard"
        own.mkdir(exist_ok=True)
        for old in own.glob("events.out.tfevents.*"):
            old.unlink()
        # Names are in the order of time: a TensorBoard that is open goes on to the later one.
        path = own / f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}"
        self._writer = RecordWriter(WholeFile(path, "wb"))
        self._write(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=0, session_log=start)  # it forgets what it had read of the earlier one

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """One event."""
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(seconds, step=step, summary=self._summary(value=scalars))

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, seconds: float = 0.0, **event: Any) -> None:
        self._writer.write(self._event(wall_time=self._began + seconds, **event).SerializeToString())


class WandB:
    """A run of Weights & Biases; WANDB_MODE, WANDB_PROJECT and its other variables are respected.

    Its id is kept in RUN/wandb/id. Online, a run that is resumed is told only what it does not know yet; offline, one
    folder RUN/wandb/offline-run-* holds everything.
    """

    def __init__(self, config: RunConfig, folder: Path):
        """Start the run, or go on with it."""
        import wandb

        own = folder / "wandb"
        own.mkdir(exist_ok=True)
        if not (own / "id").exists():
            (own / "id").write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jevomerge"),
            name=os.environ.get("WANDB_NAME", config.name),
            id=(own / "id").read_text(encoding="utf-8"),
            resume="allow",
            dir=folder,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(console="off", quiet=True),  # the terminal is the run's
        )
        self._known = self._run.starting_step
        if self._run.settings.mode == "offline":
            for old in own.glob(f"offline-run-*-{self._run.id}*"):
                if old != Path(self._run.dir).parent:
                    shutil.rmtree(old, ignore_errors=True)

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Hand them over; they are sent in the background."""
        if step >= self._known:
            self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if finished else 1)
