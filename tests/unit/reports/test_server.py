"""`jevomerge watch`: what it serves, to whom, and that it only reads."""

import html
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
import yaml

from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.reports.server import Pages, serve
from jevomerge.search.archive import Archive
from tests.unit.reports.test_compare import write_run
from tests.unit.reports.test_page import Page


@pytest.fixture
def served():
    """Serves the pages of some folders; the address."""
    servers = []

    def start(*folders):
        servers.append(serve(Pages(list(folders)), 0))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def get(url, **headers):
    """Status, tag and text of what is there."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.headers["ETag"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["ETag"], error.read().decode()


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def test_a_run_is_shown_as_it_goes_on_and_nothing_is_written(served, tmp_path):
    write_run(tmp_path / "run", 1, finished=False)
    before = files(tmp_path)
    url = served(tmp_path / "run")
    status, tag, text = get(f"{url}/")
    page = Page(text)
    assert (status, len(page.charts["fitness"]["datasets"]["candidates"])) == (200, 7)
    assert f'<body data-live="{html.escape(tag)}">'.replace("&quot;", "&#34;") in text
    assert "connect-src 'self'" in page.policy
    assert get(f"{url}/", **{"If-None-Match": tag})[0] == 304
    assert files(tmp_path) == before
    with Archive(tmp_path / "run" / "evaluations.jsonl") as archive:
        archive.append([archive.records[-1] | {"member": 3, "fitness": 7.5}])
    status, newer, text = get(f"{url}/", **{"If-None-Match": tag})
    assert (status, newer != tag) == (200, True)
    assert [row["fitness"] for row in Page(text).charts["fitness"]["datasets"]["candidates"]][-1] == 7.5
    assert get(f"{url}/", Host="127.0.0.1.evil.example:80")[0] == 403  # a name that has come to mean this machine
    assert get(f"{url}/run/else")[0] == 404
    (tmp_path / "run" / "environment.json").write_text("{")
    status, _, text = get(f"{url}/")
    assert (status, "environment.json is not valid JSON" in text) == (500, True)


def test_seeds_are_shown_together_and_one_by_one(served, tmp_path):
    """As far as they have begun."""
    config = None
    for seed in (4, 5):
        write_run(tmp_path / "all" / f"seed_{seed}", seed, name="all", finished=seed == 4)
        own = tmp_path / "all" / f"seed_{seed}" / "config.yaml"
        config = yaml.safe_load(own.read_text())
        own.write_text(yaml.safe_dump(config | {"seed": seed}))
    (tmp_path / "all" / "config.yaml").write_text(yaml.safe_dump(config | {"seed": 4, "seeds": 3}))
    url = served(tmp_path / "all")
    page = Page(get(f"{url}/")[2])
    assert page.links[-2:] == ["/run/all%2Fseed_4", "/run/all%2Fseed_5"]
    (chart,) = page.charts.values()
    assert {row["run"] for row in chart["datasets"]["bands"]} == {"all, 2 seeds"}
    status, _, text = get(url + page.links[-1])
    assert (status, "not finished: 7 of about 12 evaluations" in text) == (200, True)
    write_run(tmp_path / "all" / "seed_6", 6, name="all", finished=False)
    assert Page(get(f"{url}/")[2]).links[-1] == "/run/all%2Fseed_6"


def test_what_cannot_be_shown_is_said_at_once(tmp_path, capsys):
    write_run(tmp_path / "run", 1)
    (tmp_path / "seeds").mkdir()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    (tmp_path / "seeds" / "config.yaml").write_text(yaml.safe_dump(config | {"seeds": 2}))
    write_run(tmp_path / "broken", 1)
    (tmp_path / "broken" / "heldout.json").write_text(json.dumps({"examples": 1}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refusals = {
            (tmp_path / "none",): "none cannot be read (No such file or directory)",
            (tmp_path / "seeds",): "none of its stages or seeds has begun",
            (tmp_path / "broken",): "heldout.json",
            (tmp_path / "run", "--port", port): f"--port {port}: ",
            (tmp_path / "run", "--port", "70000"): "--port 70000: ",
        }
        for arguments, expected in refusals.items():
            assert main(["watch", *map(str, arguments)]) == 2, arguments
            said = capsys.readouterr().err
            assert expected in said
            assert "Traceback" not in said


def test_it_is_not_for_those_who_want_no_socket(tmp_path):
    command = [sys.executable, "-m", "jevomerge", "watch", str(tmp_path), "--offline"]  # which holds for a process
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "leave --offline out" in done.stderr) == (2, True)


def test_ctrl_c_ends_it(tmp_path, capfd):
    write_run(tmp_path / "run", 1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert main(["watch", str(tmp_path / "run")]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "http://127.0.0.1:" in capfd.readouterr().out


def test_it_listens_on_this_machine_alone(tmp_path):
    write_run(tmp_path / "run", 1)
    with serve(Pages([tmp_path / "run"]), 0) as server:
        assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(InputError, match="choose another"):
        serve(Pages([tmp_path / "run"]), -1)
