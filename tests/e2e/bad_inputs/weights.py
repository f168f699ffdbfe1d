"""Weights: safetensors files, and the index of several."""

import gzip
import json

import numpy as np

from tests.e2e.bad_inputs.world import Input, World

FILE, INDEX = "front/model.safetensors", "front/model.safetensors.index.json"
NAME = "model.norm.weight"  # of a tensor
MERGE = "merge recipe.yaml out"


def file(name, says, change):
    return Input(name, MERGE, change, says)


def written(name, content, says="cannot be read .*(truncated|damaged|again)"):
    return file(
        name, says, lambda w: w.write(FILE, content(w.path(FILE).read_bytes()) if callable(content) else content)
    )


def header(name, change, says="cannot be read .*again"):
    """`change` of the header; a value takes its place."""
    return file(name, says, lambda w: w.header(FILE, change if callable(change) else lambda _: change))


def entry(name, says="cannot be read .*again", **changes):
    """One tensor's entry in the header; `...` removes a key."""

    def change(found):
        found[NAME] = {k: v for k, v in (found[NAME] | changes).items() if v is not ...}

    return header(name, change, says)


def tensors(name, says, change):
    return file(name, says, lambda w: w.tensors(FILE, change))


def instead(name, value, says="cannot be read .*again"):
    return header(name, lambda found: found.update({NAME: value}), says)


def doubled(found):
    text = json.dumps(found)
    return (text[:-1] + f', "{NAME}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}').encode()


def moved(first, last):
    def change(found):
        begin, end = found[NAME]["data_offsets"]
        found[NAME]["data_offsets"] = [begin + first, end + last]

    return change


def fill(value):
    return lambda found: found[NAME].fill(value)


WEIGHTS = [
    written("empty", b""),
    written("four bytes", b"1234"),
    written("no header", bytes(8)),
    written("a header of 2^63 bytes", (1 << 63).to_bytes(8, "little")),
    written("cut in its header", lambda data: data[:100]),
    written("cut in half", lambda data: data[: len(data) // 2]),
    written("without its last byte", lambda data: data[:-1]),
    written("with one byte more", lambda data: data + b"x"),
    written("compressed", gzip.compress),
    written("a page that says 404", b"<!doctype html><html><body>404: not found</body></html>"),
    written("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1044992\n"),
    written("a pickle by another name", b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s."),
    header("not JSON", b"{'a': 1}"),
    header("not UTF-8", b'{"\xff\xfe": 1}'),
    header("a list", []),
    header("null", b"null"),
    header("nested deeply", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    header("a name twice", doubled),
    instead("a tensor that is null", None),
    instead("a tensor that is a list", [1, 2]),
    instead("a tensor that is a number", 5),
    entry("no dtype", dtype=...),
    entry("no shape", shape=...),
    entry("no offsets", data_offsets=...),
    entry("a dtype that is not known", "F8_E9M9|cannot be read", dtype="F8_E9M9"),
    entry("a dtype that is a number", "cannot be read|stored as 32", dtype=32),
    entry("a dtype that is a list", dtype=["F32"]),
    entry("a shape that is a text", shape="64"),
    entry("a shape that is null", shape=None),
    entry("a negative shape", shape=[-64]),
    entry("a shape of fractions", shape=[64.0]),
    entry("a shape of booleans", shape=[64, True]),
    entry("a shape of texts", shape=["64"]),
    entry("a huge shape", shape=[1 << 62, 1 << 62]),
    entry("offsets that are texts", data_offsets=["0", "256"]),
    entry("three offsets", data_offsets=[0, 1, 2]),
    entry("offsets beyond the end", data_offsets=[10**12, 10**12 + 256]),
    entry("negative offsets", data_offsets=[-256, 0]),
    header("offsets that overlap", moved(-4, 0)),
    header("a gap between tensors", moved(4, 4)),
    header("offsets the wrong way round", lambda found: found[NAME]["data_offsets"].reverse()),
    tensors("a tensor is missing", f"{NAME} is missing", lambda found: found.pop(NAME)),
    tensors("a tensor too many", "not expected", lambda found: found.update(extra=np.zeros(3, np.float32))),
    tensors("another shape", "has shape", lambda found: found.update({NAME: np.zeros(63, np.float32)})),
    tensors("one axis more", "has shape", lambda found: found.update({NAME: np.zeros((1, 64), np.float32)})),
    tensors("whole numbers", "quantised|I32", lambda found: found.update({NAME: np.zeros(64, np.int32)})),
    tensors("bytes", "quantised|U8", lambda found: found.update({NAME: np.zeros(64, np.uint8)})),
    tensors("NaN", "NaN or infinity", fill(np.nan)),
    tensors("infinity", "NaN or infinity", fill(np.inf)),
    tensors("minus infinity", "NaN or infinity", fill(-np.inf)),
    tensors("no tensors at all", "is missing", dict.clear),
    file("a directory", "not a file|cannot be read", lambda w: w.directory(FILE)),
    file("a named pipe", "not a file|cannot be read", lambda w: w.pipe(FILE)),
    file("a link to nothing", "no model.safetensors|cannot be read|missing", lambda w: w.dangling(FILE)),
    file("missing", "no model.safetensors", lambda w: w.remove(FILE)),
    file("only a pickle", "pickle.*save_pretrained", lambda w: w.path(FILE).rename(w.path("front/pytorch_model.bin"))),
]  # fmt: skip


def index(name, says, change=lambda w: None, **values):
    """A folder with an index, of which `values` are changed."""

    def prepare(world: World):
        world.shard()
        if values:
            world.update(INDEX, **values)
        change(world)

    return Input(name, MERGE, prepare, says)


def text(name, content, says):
    return index(name, says, lambda w: w.write(INDEX, content))


def everywhere(value):
    return lambda w: w.update(INDEX, weight_map=dict.fromkeys(w.json(INDEX)["weight_map"], value))


INDICES = [
    text("a list", "[]", "must hold an object"),
    text("null", "null", "must hold an object"),
    text("a text", '"model.safetensors"', "must hold an object"),
    text("empty", "", "not valid JSON"),
    text("cut short", '{"weight_map": {', "not valid JSON"),
    text("not UTF-8", b'{"\xff": 1}', "UTF-8"),
    text("nested deeply", "[" * 100_000, "too deeply|not valid JSON"),
    text("a map given twice", '{"weight_map": {"a": "x"}, "weight_map": {"a": "y"}}', "given twice"),
    index("no map", "weight_map", weight_map=...),
    index("a map that is null", "weight_map", weight_map=None),
    index("a map that is a list", "weight_map", weight_map=["model-00001-of-00001.safetensors"]),
    index("a map that is a text", "weight_map", weight_map="model-00001-of-00001.safetensors"),
    index("an empty map", "weight_map|missing", weight_map={}),
    index("files that are numbers", "weight_map|index", everywhere(1)),
    index("files that are null", "weight_map|index", everywhere(None)),
    index("files that are lists", "weight_map|index", everywhere(["a"])),
    index("a file without a name", "index|not a file|cannot be read", everywhere("")),
    index("a file outside of the folder", r"\.\./back|outside", everywhere("../back/model.safetensors")),
    index("a file of the whole machine", "/etc/hostname|outside", everywhere("/etc/hostname")),
    index("a name with a zero byte", "index|cannot be read|shard", everywhere("a\0b")),
    index("a name of 5,000 letters", "index|too long|shard", everywhere("a" * 5000)),
    index("a file that is config.json", "cannot be read|not a safetensors|outside", everywhere("config.json")),
    index("a missing shard", "missing|again", lambda w: w.remove("front/model-00001-of-00001.safetensors")),
    index("a shard that is a directory", "not a file|cannot be read",
        lambda w: w.directory("front/model-00001-of-00001.safetensors")),
    index("a shard that is a pipe", "not a file|cannot be read",
        lambda w: w.pipe("front/model-00001-of-00001.safetensors")),
]  # fmt: skip
