"""That nothing goes out, as the kernel and Python's audit events tell it; a process each, for it is for good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "tests" / "data" / "parity" / "models"


def process(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    "use",
    [
        "socket.create_connection(('127.0.0.1', port))",
        "socket.create_connection(('localhost', port))",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', port))",
        "socket.socket(socket.AF_INET6).bind(('::1', 0))",
        "socket.gethostbyname('localhost')",
        "urllib.request.urlopen(f'http://127.0.0.1:{port}')",
    ],
)
def test_whatever_would_go_out_is_stopped(use):
    code = f"""
import socket, urllib.request
from jevomerge.devices.sockets import forbid
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
one, other = socket.socketpair()
forbid()
one.send(b"1")  # between processes of this machine all is as it was
assert other.recv(1) == b"1"
listener.settimeout(0)
try:
    {use}
except Exception as error:
    assert "--offline" in str(error) + str(error.__cause__), error
else:
    raise SystemExit("it went out")
"""
    done = process(code)
    assert done.returncode == 0, done.stderr


WATCHED = """
import socket, sys
def watch(event, details):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        print("SEEN", event, details, file=sys.stderr)
sys.addaudithook(watch)
from jevomerge.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_merge_opens_nothing(tmp_path):
    models = "".join(f"  - {{model: {MODELS / name}, parameters: {{weight: 1}}}}\n" for name in "ab")
    (tmp_path / "recipe.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    done = process(WATCHED, "merge", tmp_path / "recipe.yml", tmp_path / "out", "--offline")
    assert (done.returncode, "SEEN" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_hub_name_that_is_not_here_is_refused(tmp_path):
    (tmp_path / "recipe.yml").write_text("merge_method: passthrough\nmodels:\n  - {model: nobody/nothing}\n")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "merge", tmp_path / "recipe.yml", tmp_path / "out", "--offline"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HF_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 2
    assert "nobody/nothing is not a folder here" in done.stderr
    assert "SEEN" not in done.stderr


@pytest.mark.slow  # a whole search
def test_a_search_opens_nothing(tmp_path):
    arguments = ["evolve", "configs/quickstart.yaml", "--output", tmp_path / "run", "--evaluations", "15", "--offline"]
    done = process(WATCHED, *arguments)
    assert (done.returncode, "SEEN" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()
