"""Models with eyes, and tasks with pictures."""

import json
import os
import shutil

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from jevomerge.checkpoint.export import write_model
from jevomerge.models.families import read_model, read_seeing
from tests.e2e.bad_inputs.world import Input, World

MARK = "<image>"
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 14, "patch_size": 7,
}  # fmt: skip
PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 14}, "crop_size": 14}
RECIPE = """\
merge_method: linear
models:
  - {model: seeing, parameters: {weight: 0.5}}
  - {model: front, parameters: {weight: 0.5}}
"""
TASK = """\
name: look
search: {path: looks.jsonl, rows: [0, 2]}
heldout: {path: looks.jsonl, rows: [2, 4]}
image: "{image}"
prompt: "<image> {begin}"
answer: "{end}"
score: likelihood
"""


def make_seeing(world: World) -> None:
    """`seeing`: the language model of the others, with a tower and one token more; pictures, a task and a recipe."""
    text = world.json("front/config.json")
    values = {"model_type": "llava", "image_token_index": 512, "vision_config": VISION}
    values |= {"text_config": text | {"vocab_size": 513}, "tie_word_embeddings": True, "vision_feature_layer": -2}
    stored, rng = load_file(world.path("front/model.safetensors")), np.random.default_rng(0)
    table = read_seeing(values).specs

    def tensor(name, path, at):
        shape = next(s.shape for s in table if s.path == path)
        known = stored.get(f"model.{name.removeprefix('language_model.model.')}", np.zeros((0, *shape[1:]), np.float32))
        return np.concatenate([known, rng.normal(size=(shape[0] - len(known), *shape[1:])).astype(np.float32) / 4])

    world.path("seeing").mkdir()
    write_model(world.path("seeing"), {"config.json": values}, table, "float32", tensor)
    tokenizer = world.json("front/tokenizer.json")
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 512, "content": MARK})
    world.dump("seeing/tokenizer.json", tokenizer)
    world.dump("seeing/tokenizer_config.json", world.json("front/tokenizer_config.json"))
    world.dump("seeing/preprocessor_config.json", PROCESSOR)
    for i in range(2):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(world.path(f"{i}.png"))
    rows = [{"image": f"{i % 2}.png", "begin": f"Once {i}", "end": " Tom."} for i in range(4)]
    world.write("looks.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    world.write("look.yaml", TASK)
    world.write("seeing.yaml", RECIPE)


MERGE, LOOK = "merge seeing.yaml out", "evaluate seeing --task look.yaml --split search"


def second(world, **values):
    """Another model that sees, and a recipe of both and `front`."""
    shutil.copytree(world.path("seeing"), world.path("other"), copy_function=os.link)
    world.update("other/config.json", **values)
    world.write("seeing.yaml", RECIPE + "  - {model: other, parameters: {weight: 0.5}}\n")


def towers(world, **values):
    second(world, **values)
    both = "models: [{model: seeing, parameters: {weight: 1}}, {model: other, parameters: {weight: 1}}]"
    parts = "".join(f"  {part}: {{{both}}}\n" for part in ("text_decoder", "vision_tower"))
    world.write("seeing.yaml", f"merge_method: linear\ncarry: seeing\nmodules:\n{parts}")


def narrow(world):
    """`front` in another width."""
    values = world.json("front/config.json") | {"hidden_size": 32}
    table = read_model(values).specs
    world.remove("front/model.safetensors")
    write_model(
        world.path("front"),
        {},
        table,
        "float32",
        lambda name, path, at: np.zeros(next(s.shape for s in table if s.path == path), np.float32),
    )
    world.dump("front/config.json", values)


def knows_the_mark(world):
    """`front` has the string, for another token."""
    tokenizer = world.json("front/tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    del vocabulary[last := next(token for token, i in vocabulary.items() if i == 511)]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in tokenizer["model"]["merges"]]
    tokenizer["model"]["merges"] = [pair for pair in pairs if last not in (*pair, "".join(pair))]
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 511, "content": MARK})
    world.dump("front/tokenizer.json", tokenizer)


def bomb(world):
    """A picture of 100,000 x 100,000 pixels, as its header says."""
    data = bytearray(world.path("0.png").read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    world.write("0.png", bytes(data))


def picture(name, says, change):
    return Input(name, LOOK, change, says)


def task(name, old, new, says):
    return Input(name, LOOK, lambda w: w.replace("look.yaml", old, new), says)


def file(name, says, kind, **values):
    return Input(name, LOOK, lambda w: w.update(f"seeing/{kind}", **values), says)


def recipe(name, says, text):
    return Input(name, MERGE, lambda w: w.write("seeing.yaml", RECIPE + text), says)


def blind(world):
    """A text model among those whose towers are merged."""
    towers(world)
    world.write("seeing.yaml", world.path("seeing.yaml").read_text().replace("other", "front"))


PROCESSORS, CONFIG = "preprocessor_config.json", "config.json"
NO_PICTURE = "cannot be read as a picture"
NUMBERS = json.dumps({"image": 5, "begin": "a", "end": "b"}) + "\n"
PICTURES = [
    picture("missing", "0.png is no file", lambda w: w.remove("0.png")),
    picture("cut short", NO_PICTURE, lambda w: w.write("0.png", w.path("0.png").read_bytes()[:500])),
    picture("empty", NO_PICTURE, lambda w: w.write("0.png", b"")),
    picture("a text", NO_PICTURE, lambda w: w.write("0.png", "Once upon a time")),
    picture("a directory", "is no file", lambda w: w.directory("0.png")),
    picture("a named pipe", "is no file", lambda w: w.pipe("0.png")),
    picture("a link to nothing", "is no file", lambda w: w.dangling("0.png")),
    picture("of ten billion pixels", f"too many pixels|{NO_PICTURE}", bomb),
    picture("a number", "a picture is", lambda w: w.write("looks.jsonl", NUMBERS * 4)),
    task("a prompt without a mark", "<image> {begin}", "{begin}", "<image> 0 times for 1 pictures"),
    task("a prompt with more marks", "<image> {begin}", "<image> <image> {begin}", "<image> 2 times for 1 pictures"),
    task("a field that is not there", "{image}", "{photo}", "photo"),
    Input("a model without eyes", LOOK.replace("seeing", "front"), lambda w: None, "front has no eyes"),
    picture("no processor", "no preprocessor_config.json", lambda w: w.remove(f"seeing/{PROCESSORS}")),
    file("a processor of other views", "the model's tower takes 14 x 14", PROCESSORS, crop_size=28),
    file("a processor that is not known", "Spiral", PROCESSORS, image_processor_type="Spiral"),
    file("a tower that is not known", "spiral", CONFIG, vision_config={**VISION, "model_type": "spiral"}),
    file("a text_config that is a list", "text_config", CONFIG, text_config=[]),
    file("a picture's token that is not there", "no token 600", CONFIG, image_token_index=600),
    Input("two towers", MERGE, second, "say whose with `carry`"),
    Input("towers that compute otherwise", MERGE, lambda w: towers(w, vision_config={**VISION, "hidden_act": "gelu"}),
          r"differ in their eyes \(vision.hidden_act\)"),
    Input("a tower of a text model", MERGE, blind, "front has no eyes"),
    Input("a text model of another width", MERGE, narrow, "only models of one shape"),
    Input("the picture's token in a text model", MERGE, knows_the_mark, "a token '<image>' too"),
    recipe("eyes of a text model", "front has no parts", "vision: front\n"),
    recipe("another's token for the picture", "take its tokenizer", "tokenizer_source: front\n"),
]  # fmt: skip
