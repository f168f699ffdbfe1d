"""Everything that a user can hand in, and that cannot be right, is refused: exit 2, one message, nothing left behind."""

import shutil
import signal
import tempfile

import pytest

from jevomerge.cli import main
from tests.e2e.bad_inputs import KINDS, make_world
from tests.e2e.bad_inputs.outcome import as_process, judged, prepare

INPUTS = [pytest.param(given, id=f"{kind}: {given.name}") for kind, inputs in KINDS.items() for given in inputs]
ONE_OF_EACH = [pytest.param(inputs[0], id=kind) for kind, inputs in KINDS.items()]
RIGHT = ("merge recipe.yaml --explain", "report begun", "compare begun finished")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder in which everything is right."""
    folder = tmp_path_factory.mktemp("right")
    make_world(folder)
    return folder


@pytest.fixture
def world(template, tmp_path, monkeypatch):
    """Where a copy of it will be, the working directory of this process."""
    folder = tmp_path / "world"
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    return folder


def hand_in(given, template, folder, monkeypatch, capsys):
    words, before = prepare(template, folder, given)
    monkeypatch.chdir(folder)

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
    assert len(set(names)) == len(names) >= 250


@pytest.mark.parametrize("command", RIGHT)
def test_what_is_right_is_accepted(command, template, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "world"))
    assert main(command.split()) == 0


@pytest.mark.parametrize("given", INPUTS)
def test_bad_inputs_are_refused(given, template, world, monkeypatch, capsys):
    assert hand_in(given, template, world, monkeypatch, capsys).fault(given) is None


@pytest.mark.parametrize("given", ONE_OF_EACH)
def test_one_of_each_kind_as_a_process(given, template, tmp_path):
    assert as_process(template, tmp_path / "world", given).fault(given) is None


@pytest.mark.slow
@pytest.mark.parametrize("given", INPUTS)
def test_all_as_processes(given, template, tmp_path):
    assert as_process(template, tmp_path / "world", given).fault(given) is None
