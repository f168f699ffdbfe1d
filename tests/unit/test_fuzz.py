"""Headers, JSON and YAML of any shape: read as what they say, or refused with an `InputError`."""

import json

import numpy as np
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.safetensors_file import read_header
from jevomerge.errors import InputError
from jevomerge.schema import load_yaml

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
WHOLE = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float16)}, {"format": "pt"})
SIZE = int.from_bytes(WHOLE[:8], "little")
numbers = st.integers(-2, 30) | st.sampled_from([2.0, True, 1 << 62, "1", None])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "I8", "F8_E4M3", "", None, 5, []]),
        "shape": st.lists(numbers, max_size=3) | scalars,
        "data_offsets": st.lists(numbers, max_size=3) | scalars,
    },
)


def outcome(read, path):
    """What is read, None if it is refused by name; anything else fails."""
    try:
        return read(path)
    except InputError as error:
        if str(path) not in str(error):
            raise
        return None


def as_the_library(path):
    """{name: (dtype, shape)} as the format's own reader sees it, None if it refuses."""
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except SafetensorError:
        return None


def check_header(path, data):
    """What is read is what the format's own reader reads."""
    path.write_bytes(data)
    if (found := outcome(read_header, path)) is not None:
        assert {name: (stored.code, stored.shape) for name, stored in found.items()} == as_the_library(path)


@quick
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.integers(0, len(WHOLE)))
def test_damaged_safetensors(tmp_path, place, byte, length):
    data = bytearray(WHOLE)
    data[place] = byte
    check_header(tmp_path / "x.safetensors", bytes(data[:length] if length % 3 == 0 else data))


@quick
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), entries | values, max_size=3) | values)
def test_any_header(tmp_path, header):
    text = json.dumps(header).encode()
    check_header(tmp_path / "x.safetensors", len(text).to_bytes(8, "little") + text + WHOLE[8 + SIZE :])


@quick
@given(st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
def test_any_json(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    if (found := outcome(read_json, path)) is not None:
        assert found == json.loads(data)
        assert isinstance(found, dict)


words = st.sampled_from(
    [*"{}[]:,-&*!|>#%?'\"\n ", "\n  ", "- ", "a: ", "&a ", "*a", "<<: ", "!!int ", "!!set", "---\n", "1"]
)


@quick
@given(st.binary(max_size=40) | st.lists(words, max_size=25).map(lambda w: "".join(w).encode()))
def test_any_yaml(tmp_path, data):
    path = tmp_path / "run.yaml"
    path.write_bytes(data)
    if (found := outcome(load_yaml, path)) is not None:
        assert [value for value, _ in found] == [d for d in yaml.safe_load_all(data.decode()) if d is not None]
