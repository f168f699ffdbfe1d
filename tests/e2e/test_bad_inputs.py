"""Whatever a user can hand in and that cannot be right is refused: exit 2, one message, nothing left behind."""

import shutil
import signal
import subprocess
import tempfile

import pytest

from jevomerge.cli import main
from tests.e2e.bad_inputs import KINDS, Input, make_world
from tests.e2e.bad_inputs.outcome import as_process, judged, prepare
from tests.e2e.bad_inputs.world import RECIPE, place_of

INPUTS = [pytest.param(given, id=f"{kind}: {given.name}") for kind, inputs in KINDS.items() for given in inputs]
OFTEN = INPUTS[::5] + INPUTS[2::5]  # some 270, of all kinds
SELDOM = [pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) for p in INPUTS if p not in OFTEN]
ONE_OF_EACH = [pytest.param(inputs[0], id=kind) for kind, inputs in KINDS.items()]
RIGHT = ("merge recipe.yaml --explain", "report begun", "compare begun finished")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder in which everything is right."""
    folder = tmp_path_factory.mktemp("bad_inputs") / "right"
    make_world(folder)
    return folder


def hand_in(given, template, monkeypatch, capsys):
    """What becomes of an input in this process."""
    folder, words, before = prepare(template, given)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))

    def hangs(*_):
        raise TimeoutError("still reading")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    try:
        status = main(words)
    finally:
        signal.alarm(0)
    return judged(status, capsys.readouterr().err, before, folder)


def test_there_are_many():
    names = [(kind, given.name) for kind, inputs in KINDS.items() for given in inputs]
    assert len(set(names)) == len(names) >= 600
    assert len(OFTEN) >= 250


@pytest.mark.parametrize("command", RIGHT)
def test_what_is_right_is_accepted(command, template, monkeypatch, capsys):
    assert hand_in(Input("nothing", command, lambda world: None, ""), template, monkeypatch, capsys).status == 0


@pytest.mark.parametrize("given", OFTEN + SELDOM)
def test_bad_inputs_are_refused(given, template, monkeypatch, capsys):
    assert hand_in(given, template, monkeypatch, capsys).fault(given) is None


@pytest.mark.parametrize("given", ONE_OF_EACH)
def test_one_of_each_kind_as_a_process(given, template):
    assert as_process(template, given).fault(given) is None


@pytest.mark.slow
@pytest.mark.parametrize("given", INPUTS)
def test_all_as_processes(given, template):
    assert as_process(template, given).fault(given) is None


# --- what is around: the machine's memory, its disks, its locale ----------------------------------------------------


def large(world):
    """A model whose embeddings are 4 GB of zeros, which take no room."""
    rows, width = 1 << 24, 64

    def grow(header):
        first = header.pop("model.embed_tokens.weight")
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        assert first["data_offsets"][0] == 0
        shift = rows * width * 4 - first["data_offsets"][1]
        for name, entry in header.items():
            if name != "__metadata__":
                entry["data_offsets"] = [offset + shift for offset in entry["data_offsets"]]
        header["model.embed_tokens.weight"] = {**first, "shape": [rows, width], "data_offsets": [0, rows * width * 4]}
        sizes.append(end + shift)

    sizes: list[int] = []
    world.header("front/model.safetensors", grow)
    path = world.path("front/model.safetensors")
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with path.open("r+b") as file:
        file.truncate(start + sizes[0])
    world.update("front/config.json", vocab_size=rows)
    world.write("recipe.yaml", "merge_method: passthrough\nmodels: [{model: front}]\n")


def test_too_little_memory(template):
    given = Input("4 GB", "merge recipe.yaml out", large, "not enough memory.*smaller")
    assert as_process(template, given, data=2 << 30).fault(given) is None


def test_a_run_folder_that_cannot_be_written(template):
    def read_only(world):
        begun = world.path("begun").rename(world.path("copy"))
        world.path("begun").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", world.path("begun")], check=True)
        shutil.copytree(begun, world.path("begun"), dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", world.path("begun")], check=True)

    given = Input("read-only", "evolve --resume begun", read_only, "read-only|written")
    try:
        assert as_process(template, given).fault(given) is None
    except subprocess.CalledProcessError:
        pytest.skip("may not mount a disk")
    finally:
        subprocess.run(["umount", place_of(template) / "begun"], capture_output=True)


ELSEWHERE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_texts_are_utf8_in_any_locale(template):
    def foreign(world):
        world.write("recipe.yaml", RECIPE + "# レシピ\nchat_template: \"{{ 'é' }}\"\n")

    merged = as_process(template, Input("", "merge recipe.yaml out", foreign, ""), **ELSEWHERE)
    assert merged.status == 0, merged.message
    out = place_of(template) / "out"
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == "{{ 'é' }}"
    assert "é" in (out / "recipe.yaml").read_text(encoding="utf-8")
    given = Input("", "merge recipe.yaml out", lambda w: w.write("recipe.yaml", RECIPE.replace("front", "無")), "無")
    assert as_process(template, given, **ELSEWHERE).fault(given) is None
