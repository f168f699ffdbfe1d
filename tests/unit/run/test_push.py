"""A run's card is written again, and put with its model on a hub that listens on this machine."""

import base64
import http.server
import json
import shutil
import threading

import pytest

from jevomerge.cli import main, parser, run_push
from jevomerge.errors import InputError
from jevomerge.run.card import card
from jevomerge.run.push import push
from tests.unit.run.test_search import evolve

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # huggingface_hub's own


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks for, as the hub's server answers; `server.files` is what was committed."""

    def do_GET(self):
        files = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.server.files]
        self.answer(files if "/tree/" in self.path else {"id": "me/m", "siblings": []})

    def do_PUT(self):
        self.server.stored[self.path.removeprefix("/lfs/")] = self.body()
        self.answer({})

    def do_POST(self):
        asked = self.body()
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(asked)
            self.answer({"url": f"{self.server.address}/me/m", "id": "me/m"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = {f["path"]: "lfs" if "safetensors" in f["path"] else "regular" for f in json.loads(asked)["files"]}
            self.answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif self.path.endswith("/objects/batch"):
            upload = [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/lfs/{o['oid']}"}}}
                for o in json.loads(asked)["objects"]
            ]
            self.answer({"objects": upload, "transfer": "basic"})
        elif "/commit/" in self.path:
            for line in map(json.loads, asked.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.stored[value["oid"]]
            self.answer({"commitUrl": f"{self.server.address}/me/m/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.answer({"error": self.path}, 404)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.files, server.stored, server.made = {}, {}, None
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return evolve(tmp_path_factory.mktemp("run"), 0.3, [0, 1]).folder


def test_a_result_has_a_card_and_a_bill_of_materials(run):
    best = run / "best"
    written = (best / "README.md").read_text()
    assert "| this model | " in written
    assert "└─ judged by" in written
    model = json.loads((best / "bom.cdx.json").read_text())["metadata"]["component"]
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["slice"] == "search"


def test_all_of_it_is_on_the_hub(run, hub):
    assert push(run, "me/m", private=True) == f"{hub.address}/me/m"
    assert (hub.made["organization"], hub.made["name"], hub.made["visibility"]) == ("me", "m", "private")
    wanted = {str(p.relative_to(run / "best")): p.read_bytes() for p in (run / "best").rglob("*") if p.is_file()}
    assert hub.files == wanted
    assert any(name.endswith(".safetensors") for name in wanted)
    with pytest.raises(InputError, match=r"me/m has .* already and is not overwritten"):
        push(run, "me/m")


def test_the_hub_s_refusals_are_said(run, hub, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(run), "me/m"]) == 2
    assert (
        "me/m: the hub answered 401 (Invalid username or password.); log in with `hf auth login`"
        in capfd.readouterr().err
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "me/m"]) == 2
    assert "me/m: uploading failed (" in capfd.readouterr().err
    assert main(["push", str(run), "m"]) == 2
    assert "m: the hub's names are OWNER/NAME" in capfd.readouterr().err
    with pytest.raises(InputError, match="--offline: `push` talks to the hub"):  # whose hook would stay here
        run_push(parser().parse_args(["push", str(run), "me/m", "--offline"]))
    assert hub.files == {}


def test_a_licence_may_forbid_it(run, hub, tmp_path, capfd):
    shutil.copytree(run / "best", tmp_path / "m")
    bill = json.loads((tmp_path / "m" / "bom.cdx.json").read_text())
    bill["components"][0]["licenses"] = [{"license": {"id": "CC-BY-NC-ND-4.0"}}]
    (tmp_path / "m" / "bom.cdx.json").write_text(json.dumps(bill))
    assert main(["push", str(tmp_path / "m"), "me/m"]) == 2
    said = capfd.readouterr().err
    assert "cc-by-nc-nd-4.0 (base) allows no changed version. Read these licences" in said
    assert hub.files == {}
    assert main(["push", str(tmp_path / "m"), "me/m", "--accept-licence"]) == 0
    said = capfd.readouterr()
    assert f"Published: {hub.address}/me/m" in said.out
    assert "nobody states the licence of a, b" in said.out
    assert hub.made.get("visibility") != "private"


def test_what_has_no_bill_is_not_published(run, tmp_path):
    with pytest.raises(InputError, match=r"has no bom.cdx.json, .*; give a run, or a folder that was merged here"):
        push(tmp_path, "me/m")
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "best" / "bom.cdx.json").unlink()
    with pytest.raises(InputError, match=r"`jevomerge card .*` writes it"):
        push(tmp_path / "run", "me/m")
    (tmp_path / "run" / "result.json").unlink()
    for command in (lambda: push(tmp_path / "run", "me/m"), lambda: card(tmp_path / "run")):
        with pytest.raises(InputError, match="is not finished; continue it with `jevomerge evolve --resume"):
            command()
    with pytest.raises(InputError, match="is not a run folder"):
        card(tmp_path)
