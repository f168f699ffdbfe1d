"""Image pipelines, and tasks for which they draw."""

import json
import shutil

from tests.e2e.bad_inputs.world import Input, World
from tests.pipelines import write_minis

TASK = """\
name: sketches
search: {path: sketches.jsonl, rows: [0, 2]}
heldout: {path: sketches.jsonl, rows: [2, 4]}
prompts: "{what}"
steps: 2
guidance: 2
negative: a blot
size: 8
seeds: [0, 1]
scheduler: euler
score: operator:eq
"""
RUN = """\
name: drawing
recipe: {merge_method: linear, models: [{model: pencil}, {model: ink}]}
genome: {weight: {range: [0, 1]}}
tasks: [draw.yaml]
search: {evaluations: 8, population: 4}
"""


def make_drawing(world: World) -> None:
    """`pencil` and `ink`, which draw; prompts, a task and a run."""
    write_minis(world.folder, ("pencil", "ink"))
    world.write("sketches.jsonl", "".join(json.dumps({"what": f"a cat {i}"}) + "\n" for i in range(4)))
    world.write("draw.yaml", TASK)
    world.write("drawn.yaml", RUN)


EVALUATE, EVOLVE = "evaluate pencil --task draw.yaml", "evolve drawn.yaml --output out"


def task(name, old, new, says, command=EVALUATE):
    return Input(name, command, lambda w: w.replace("draw.yaml", old, new), says)


def model(name, says, change, command=EVOLVE):
    return Input(name, command, change, says)


def config(name, says, file, **values):
    return model(name, says, lambda w: w.update(f"pencil/{file}", **values))


DRAWING = [
    task("steps of a fraction", "steps: 2", "steps: 2.5", r"draw.yaml:5: `steps`"),
    task("no steps", "steps: 2", "steps: 0", r"`steps`.*greater than 0"),
    task("no guidance said", "guidance: 2\n", "", r"`guidance`"),
    task("guidance that is none", "guidance: 2", "guidance: -1", r"`guidance`"),
    task("a negative prompt that nobody looks at", "guidance: 2", "guidance: 1", "`negative` takes `guidance` above 1"),
    task("a size that cannot be", "size: 8", "size: 0", "`size`"),
    task("a size of three sides", "size: 8", "size: [8, 8, 8]", "`size`"),
    task("seeds twice", "[0, 1]", "[1, 1]", "each seed once"),
    task("no seed", "[0, 1]", "[]", "one seed or more"),
    task("a seed that is no number", "[0, 1]", "[a]", "`seeds`"),
    task("a scheduler that is not known", "euler", "ddim", "`scheduler`"),
    task("a field that is not there", "{what}", "{which}", "sketches.jsonl, row [02] .*`which` is missing"),
    task("a prompt held out that is seen", "[2, 4]", "[1, 3]", "1 of 2 held-out examples are also", EVOLVE),
    task("a judge of texts", "operator:eq", "{function: 'operator:eq', of: texts}", "judges no pictures"),
    task("a judge that is not there", "operator:eq", "operator:judge", "cannot be imported"),
    task("a judge of one thing", "operator:eq", "operator:neg", r"is called with \(pictures, rows\)"),
    task("a scorer that is not known", "operator:eq", "aestetic", "did you mean `aesthetic`"),
    task("a head without weights", "operator:eq", "aesthetic", "`weights` is missing"),
    task("a scorer that is not there", "operator:eq", "{}", "`score", EVOLVE),
    task("weights of a function", "size: 8", "weights: pencil", "`weights` is of a scorer"),
    task("weights that are none", "operator:eq", "clip\nweights: draw.yaml", "draw.yaml"),
    task("weights of another model", "operator:eq", "clip\nweights: front", "model_type"),
    task("more steps than there are", "steps: 2", "steps: 1001", "steps: 1001: must be 1 to 1000"),
    Input("a picture task for a text model", "evaluate front --task draw.yaml", lambda w: None, "models are none"),
    Input("a text task for a pipeline", "evaluate pencil --task task.yaml", lambda w: None, "write no texts"),
    model("a text task in a run", "write no texts", lambda w: w.replace("drawn.yaml", "draw.yaml", "task.yaml")),
    model("a picture task in a run of texts", "these models are none",
          lambda w: w.replace("run.yaml", "task.yaml", "draw.yaml"), "evolve run.yaml --output out"),
    task("another scheduler's numbers", "scheduler: euler\n", "", "PNDMScheduler.*can name a `scheduler`", EVOLVE),
    model("no tokenizer", "no tokenizer|is missing", lambda w: w.remove("pencil/tokenizer")),
    model("no scheduler", "no model has scheduler/scheduler_config.json", lambda w: [
        w.remove(f"{m}/scheduler/scheduler_config.json") for m in ("pencil", "ink")
    ]),
    model("a U-Net alone", "no model has model_index.json.*`take`", lambda w: [
        shutil.rmtree(w.path(f"{m}/{part}")) for m in ("pencil", "ink") for part in ("text_encoder", "tokenizer")
    ] + [w.remove(f"{m}/model_index.json") for m in ("pencil", "ink")]),
    model("a text encoder of another width", "of the text encoders 16",
          lambda w: w.update("pencil/text_encoder/config.json", hidden_size=16)),
    model("NaN in a text encoder", "NaN or infinity", lambda w: w.tensors(
        "pencil/text_encoder/model.safetensors", lambda t: t["text_model.final_layer_norm.bias"].fill(float("nan"))
    ), EVALUATE),
    config("a prediction that is not known", "prediction_type", "scheduler/scheduler_config.json",
           prediction_type="flow"),
]  # fmt: skip
