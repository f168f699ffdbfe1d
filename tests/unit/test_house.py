"""Where code lives; which way imports point, and that they make no circles, `lint-imports` checks."""

import ast
from pathlib import Path

import pytest

import jevomerge as jm

PACKAGE = Path(jm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def test_few_modules_lie_outside_of_rooms():
    assert {p.stem for p in PACKAGE.glob("*.py")} == {"__init__", "__main__", "cli", "config", "errors", "schema"}


def test_no_room_bears_a_public_name():
    """Else importing the room would put it where the name should be."""
    tops = {p.stem for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"}
    assert not tops & set(jm.__all__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    body = ast.parse(text).body
    assert ast.get_docstring(ast.parse(text))
    if path.name == "__init__.py" and path.parent != PACKAGE:
        assert len(body) == 1  # names are imported from the modules that define them


TEXT = {"open", "fdopen", "read_text", "write_text", "NamedTemporaryFile"}  # calls that take the locale's encoding


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_texts_are_utf8_whatever_the_locale(path):
    for call in (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        if name not in TEXT or (
            getattr(getattr(call.func, "value", None), "id", None) in ("os", "images") and name == "open"
        ):
            continue
        binary = any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in call.args)
        named = any(k.arg == "encoding" for k in call.keywords) or ast.unparse(call.func) == "read_text"
        assert binary or named, f"{path}:{call.lineno}: say which encoding"
