"""Models and run folders on gs://, by `etils.epath`, which reaches them with gcsfs (the extra `gs`) or TensorFlow.

A store of objects has no appending, no locks and no renaming of folders, by which our files outlive whatever stops us.
So a model is copied to this machine before it is opened, once for all of its processes; and a run works in a folder of
the machine of its first process, and what has changed there is copied to the store again and again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jevomerge.errors import InputError

SCHEME = "gs://"
EVERY = 30.0  # seconds from one copy of a run folder to the next
LAST = ("config.yaml", "result.json")  # they say that a run has begun, or has ended: what they speak of is there first
PIECE = 1 << 24  # bytes


def is_remote(path: object) -> bool:
    """Whether that is on gs://."""
    return str(path).startswith(SCHEME)


def reach(path: str | Path) -> Any:
    """An `epath.Path`.

    Raises:
        InputError: if nothing is installed that reaches it, or it may not be looked at.
    """
    from etils import epath  # imported late: few need it

    found = epath.Path(path)
    with _reached(path):
        found.exists()
    return found


@contextmanager
def _reached(path: object) -> Iterator[None]:
    try:
        yield
    except InputError:  # --offline
        raise
    except ImportError as error:
        remedy = "pip install 'jevomerge[gs]'"
        raise InputError(f"{path} cannot be reached without gcsfs: {remedy} ({error})") from None
    except Exception as error:  # each library has its own
        if getattr(error, "errno", None) == errno.ENOSPC:  # on a disk of this machine
            raise
        text = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be reached: {type(error).__name__}: {text[:200]}; are bucket, rights and "
            "`gcloud auth application-default login` in order?"
        ) from error


def is_there(path: Any) -> bool:
    """Whether a file or folder exists, here or on gs://; False also for what nobody can know."""
    with suppress(Exception):
        return bool(path.exists())
    return False


def files_below(folder: Any) -> dict[str, Any]:
    """{path from the folder on: each file}, none that is hidden or half-written; of a file, itself as ""."""
    if not folder.is_dir():
        return {"": folder} if folder.exists() else {}
    found: dict[str, Any] = {}
    for path in folder.iterdir():
        if path == folder or path.name.startswith(".") or ".orbax-checkpoint-tmp" in path.name:
            continue  # some stores have an object for the folder itself
        found |= {"/".join(filter(None, (path.name, below))): file for below, file in files_below(path).items()}
    return found


def fetched(reference: str, without: Sequence[str] = ()) -> Path:
    """The copy on this machine of a folder or file on gs://, which is made if there is none, or it has changed.

    It lies below ~/.cache/jevomerge (`XDG_CACHE_HOME`), and is never removed. `without`: suffixes of files that are
    not copied.

    Raises:
        InputError: if it does not exist, or cannot be reached.
    """
    with _reached(reference):
        found = {n: f for n, f in files_below(reach(reference)).items() if not f.name.endswith(tuple(without))}
        stats = {name: found[name].stat() for name in sorted(found)}
    if not found:
        raise InputError(f"{reference} does not exist, or is empty")
    listing = json.dumps({name: [stat.length, stat.mtime] for name, stat in stats.items()})
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jevomerge"
    own = cache / hashlib.sha256(f"{reference}\n{listing}".encode()).hexdigest()[:16]
    place = own / reference.rstrip("/").rpartition("/")[2]
    own.mkdir(parents=True, exist_ok=True)
    with (own / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of this machine wait, and find it
        if not place.exists():
            partial = own / ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            size = sum(stat.length for stat in stats.values())
            with _reached(reference), _progress(f"copying {reference}", size) as told:
                for name, file in found.items():
                    _copy(file, partial / "it" / name if name else partial / "it", told)
            (partial / "it").rename(place)
            partial.rmdir()
    return place


@contextmanager
def _progress(what: str, size: int) -> Iterator[Any]:
    """What is called with numbers of bytes, as they are copied."""
    from tqdm.auto import tqdm  # as for what comes from the hub

    with tqdm(desc=what, total=size, unit="B", unit_scale=True) as bar:
        yield bar.update


def _copy(source: Any, target: Any, told: Any = lambda count: None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file, target.open("wb") as out:
        while piece := file.read(PIECE):
            out.write(piece)
            told(len(piece))


class Mirror:
    """A run folder on gs://, and the folder of this machine in which its run works."""

    def __init__(self, home: str, folder: Path):
        """Of `home`, in `folder`, which need not exist."""
        self.home, self.folder = home.rstrip("/"), folder
        self._sent: dict[str, tuple[int, int]] | None = None  # what the files of `home` are copies of
        self._lock = threading.Lock()

    def pull(self, resume: bool) -> None:
        """Begin where nothing is, or go on with what is there.

        Raises:
            InputError: if something is there, or if nothing is.
        """
        with _reached(self.home):
            found = files_below(reach(self.home))
            if not resume and found:
                raise InputError(f"{self.home} exists already and is not overwritten; choose another name or remove it")
            if resume and "config.yaml" not in found:
                raise InputError(f"{self.home} is not a run that can be resumed: it has no config.yaml")
            for name, file in found.items():
                _copy(file, self.folder / name)
        self._sent = {name: _state(file) for name, file in files_below(self.folder).items()}

    def push(self) -> None:
        """Bring there what has changed here since `pull`, and remove there what is gone here and was ours."""
        with self._lock, _reached(self.home):
            if (sent := self._sent) is None:
                return
            here, home = files_below(self.folder), reach(self.home)
            for name in sorted(sent.keys() - here.keys(), key=_order, reverse=True):
                (home / name).unlink(missing_ok=True)
                del sent[name]
            for name in sorted(here, key=_order):
                with suppress(FileNotFoundError):  # gone meanwhile
                    if (state := _state(here[name])) != sent.get(name):
                        _copy(here[name], home / name)
                        sent[name] = state


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _order(name: str) -> tuple[bool, int, str]:
    """Files that speak of others come after them, those of stages before those of all."""
    last = name.rpartition("/")[2] in LAST
    return last, -name.count("/") if last else 0, name


@contextmanager
def mirrored(home: str, first: bool) -> Iterator[Mirror]:
    """A run folder on gs://, which the `first` process of a run keeps up to date until the end of the block.

    What fails on the way is tried again after `EVERY` seconds.

    Raises:
        InputError: if the last copy fails; what could not be copied stays on this machine, and the message says where.
    """
    name = home.rstrip("/").rpartition("/")[2]
    if not first:
        yield Mirror(home, Path(name))
        return
    scratch = Path(tempfile.mkdtemp(prefix="jevomerge-"))
    mirror, done = Mirror(home, scratch / name), threading.Event()

    def keep() -> None:
        while not done.wait(EVERY):
            with suppress(Exception):
                mirror.push()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        done.set()
        thread.join()
        try:
            mirror.push()
        except InputError as error:
            raise InputError(f"{error}. What could not be copied is in {mirror.folder}") from error
        shutil.rmtree(scratch)
