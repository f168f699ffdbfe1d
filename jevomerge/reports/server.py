"""Pages of runs that go on, for a browser on this machine: nothing is written, and no other machine is listened to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

from jevomerge.config import read_run
from jevomerge.errors import InputError
from jevomerge.reports.compare import compare_page, find_runs, make_entries, read_runs
from jevomerge.reports.page import run_page
from jevomerge.reports.record import read_paths, read_record

HOST = "127.0.0.1"
FILES = ("config.yaml", "environment.json", "evaluations.jsonl", "heldout.json", "result.json")  # that a page shows


class Pages:
    """The pages of some runs by their paths: / and, of several, one for each; made anew when their files change."""

    def __init__(self, folders: Sequence[Path]):
        """Read all of them once.

        Raises:
            InputError: for a folder that is no run, has not begun or is broken.
        """
        self._folders = folders
        self._made: dict[str, tuple[str, str]] = {}  # by path: what it shows, and the page
        self._lock = threading.Lock()  # matplotlib draws for one at a time
        self.get("/")

    def get(self, path: str) -> tuple[str, str] | None:
        """What the page of a path shows, as a tag, and the page; None: there is none.

        Raises:
            InputError: for a run that is broken by now.
        """
        with self._lock:
            found = find_runs(self._folders)
            if not found:
                raise InputError(f"{self._folders[0]}: none of its stages or seeds has begun; wait until one has")
            if path != "/":
                name = unquote(path.removeprefix("/run/"))
                if len(found) == 1 or name not in found:
                    return None
                found = {name: found[name]}
            tag = tag_of(list(found.values()))
            if self._made.get(path, ("", ""))[0] != tag:
                self._made[path] = tag, make_page(found, tag)
            return self._made[path]


def make_page(folders: dict[str, Path], tag: str) -> str:
    """That of a run, or of several with links to those of each."""
    if len(folders) > 1:
        pages = {name: f"/run/{quote(name, safe='')}" for name in folders}
        return compare_page(make_entries(read_runs(folders)), pages, live=tag)
    (folder,) = folders.values()
    record = read_record(folder, read_run(folder / "config.yaml"))
    paths = read_paths(record) if record.config.path is not None and record.evaluations else None
    return run_page(record, paths, live=tag)


def tag_of(folders: Sequence[Path]) -> str:
    """Changes as soon as a file of the runs does."""
    files = [folder / name for folder in folders for name in FILES]
    states = [(str(f), s.st_mtime_ns, s.st_size) for f in files if f.exists() for s in (f.stat(),)]
    return f'"{hashlib.sha256(repr(states).encode()).hexdigest()[:16]}"'


def serve(pages: Pages, port: int) -> ThreadingHTTPServer:
    """A server of the pages, on this machine alone; port 0: any that is free.

    Raises:
        InputError: for a port that cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of another site whose name has come to mean this machine is not answered.
            if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
                return self.answer(403, "for http://127.0.0.1 only")
            try:
                found = pages.get(self.path)
            except (InputError, OSError) as error:  # the latter of a folder that goes away in between
                return self.answer(500, str(error))
            if found is None:
                return self.answer(404, "there is no such page")
            if self.headers.get("If-None-Match") == found[0]:
                return self.answer(304, "")
            return self.answer(200, found[1], found[0])

        def answer(self, status: int, text: str, tag: str = "") -> None:
            body = text.encode()
            self.send_response(status)
            kind = "html" if status == 200 else "plain"
            headers = {"Content-Type": f"text/{kind}; charset=utf-8", "Content-Length": str(len(body)), "ETag": tag}
            for name, value in (headers | {"Cache-Control": "no-store"}).items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # who has asked may be gone by now
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: the terminal is the reader's."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port}: {error}; choose another") from None
    server.daemon_threads = True
    return server
