"""Run folders, where results go, and what things are called."""

import json
import zlib

from tests.e2e.bad_inputs.world import Input

RESUME, REPORT, EXPORT = "evolve --resume begun", "report begun", "export begun --genome 0 out"
ENVIRONMENT, LOG = "environment.json", "begun/evaluations.jsonl"
ON_TOP = {"empty": "", "null": "null", "a list": "[]", "cut short": '{"genes": [', "not UTF-8": b'{"\xff": 1}'}


def line(value):
    """A line of evaluations.jsonl with a right checksum."""
    body = json.dumps(value)[:-1].encode() if not isinstance(value, bytes) else value
    return body + b', "crc32": "%08x"}\n' % zlib.crc32(body)


def environment(name, command=RESUME, says=ENVIRONMENT, **values):
    return Input(
        f"{name} ({command.split()[0]})", command, lambda w: w.update("begun/environment.json", **values), says
    )


def logged(name, change, command=REPORT, says="evaluations.jsonl"):
    """One line more in the log; `change` of a good one, or bytes."""

    def prepare(world):
        data = world.path(LOG).read_bytes()
        first = json.loads(data.splitlines()[0])
        first = (
            change
            if isinstance(change, bytes)
            else {k: v for k, v in (first | change).items() if v is not ... and k != "crc32"}
        )
        world.write(LOG, data + line(first))

    return Input(f"{name} ({command.split()[0]})", command, prepare, says)


def file(path, name, content, command, says=None):
    return Input(f"{path}: {name} ({command.split()[0]})", command, lambda w: w.write(path, content), says or path)


def result(name, **values):
    return Input(name, "report finished", lambda w: w.update("finished/result.json", **values), "result.json")


def heldout(name, **values):
    return Input(name, "report finished", lambda w: w.update("finished/heldout.json", **values), "heldout.json")


RUNS = [
    Input("a folder that is no run (evolve)", "evolve --resume front", lambda w: None, "no config.yaml"),
    Input("a folder that is no run (report)", "report front", lambda w: None, "no config.yaml"),
    Input("a folder that is no run (export)", "export front --genome best out", lambda w: None, "run folder"),
    Input("a folder that is no run (compare)", "compare front begun", lambda w: None, "no config.yaml"),
    Input("a run that is nowhere (evolve)", "evolve --resume nowhere", lambda w: None, "nowhere"),
    Input("a run that is nowhere (report)", "report nowhere", lambda w: None, "nowhere"),
    Input("a run that is a file", "report in_the_way", lambda w: None, "in_the_way"),
    Input("a run that is finished", "evolve --resume finished", lambda w: None, "is finished"),
    Input("one run to compare", "compare begun", lambda w: None, "two runs or more"),
    Input("a run with itself", "compare begun begun", lambda w: None, "two runs or more"),
    Input("the best of what is not finished", "export begun --genome best out", lambda w: None, "not finished"),
    Input("a genome that there is not", "export begun --genome 99 out", lambda w: None, "--genome"),
    Input("a genome below 0", "export begun --genome=-1 out", lambda w: None, "--genome"),
    Input("a genome that is a word", "export begun --genome worst out", lambda w: None, "--genome"),
    Input("a genome in other digits", "export begun --genome ² out", lambda w: None, "--genome"),
    *(file("begun/environment.json", name, text, RESUME, ENVIRONMENT) for name, text in ON_TOP.items()),
    *(file("begun/environment.json", name, text, REPORT, ENVIRONMENT) for name, text in ON_TOP.items()),
    *(file("finished/result.json", name, text, "report finished", "result.json") for name, text in ON_TOP.items()),
    *(file("finished/result.json", name, text, "export finished --genome best out", "result.json") for name,
        text in ON_TOP.items()),
    *(file("finished/heldout.json", name, text, "report finished", "heldout.json") for name, text in ON_TOP.items()),
    *(file("begun/config.yaml", name, text, RESUME, "config.yaml") for name, text in ON_TOP.items()),
    *(file("begun/config.yaml", name, text, REPORT, "config.yaml") for name, text in ON_TOP.items()),
    Input("no environment (evolve)", RESUME, lambda w: w.remove("begun/environment.json"), ENVIRONMENT),
    Input("no environment (report)", REPORT, lambda w: w.remove("begun/environment.json"), ENVIRONMENT),
    Input("no environment (compare)", "compare begun finished", lambda w: w.remove("begun/environment.json"),
        ENVIRONMENT),
    environment("genes that are a number", REPORT, genes=5),
    environment("no genes", REPORT, genes=...),
    environment("fewer genes than the genomes have", REPORT, "genes", genes=["model/front/weight"]),
    environment("a population that is a text", REPORT, population="4"),
    environment("a population of 0", REPORT, population=0),
    environment("sources that are a list", sources=[1]),
    environment("data that is null", data=None),
    environment("splits that are texts", data={"search": "x", "heldout": "y"}),
    *(
        logged(name, change, command)
        for command in (REPORT, EXPORT, RESUME)
        for name, change in {
            "an empty object": b"{",
            "null": b"null",
            "a list": b"[1, 2]",
            "no generation": {"generation": ...},
            "a generation that is a text": {"generation": "9"},
            "a genome that is null": {"genome": None},
            "a genome of texts": {"generation": 9, "genome": ["a", "b"]},
        }.items()
    ),
    logged("a negative generation", {"generation": -1}),
    logged("no member", {"member": ...}),
    logged("no genome", {"genome": ...}),
    logged("no fitness", {"fitness": ...}),
    logged("a fitness that is a text", {"fitness": "good"}),
    logged("no seconds", {"seconds": ...}),
    logged("a genome of another length", {"generation": 9, "genome": [0.5]}, RESUME),
    logged("a genome of another length", {"generation": 9, "genome": [0.5]}),
    result("no best", best=...),
    result("a best that is null", best=None),
    result("a best that is a list", best=[1]),
    result("a best without a number", best={"search": 0.5, "heldout": 0.5, "genome": {}}),
    result("a best with a text for a number", best={"search": 0.5, "heldout": 0.5, "genome": {}, "evaluation": "x"}),
    result("sources that are a list", sources=[1]),
    result("sources without scores", sources={"front": {}}),
    result("seconds that are a text", seconds="x"),
    heldout("no sources", sources=...),
    heldout("examples that are a number", examples=5),
    heldout("a source without scores", sources={"front": {"search": 0.5, "heldout": 0.5}}),
    heldout("scores that are texts", best={"search": 0.5, "heldout": 0.5, "scores": {"stories": ["a"]}, "texts": {}}),
    Input("a log that is a directory (report)", REPORT, lambda w: w.directory(LOG), "evaluations.jsonl"),
    Input("a log that is a directory (evolve)", RESUME, lambda w: w.directory(LOG), "evaluations.jsonl"),
    Input("no log (export)", EXPORT, lambda w: w.remove(LOG), "evaluations.jsonl"),
    Input("a model that has gone (evolve)", RESUME, lambda w: w.remove("front"), "front"),
    Input("a model that has gone (export)", EXPORT, lambda w: w.remove("front"), "front"),
    Input("data that has gone", RESUME, lambda w: w.remove("search.jsonl"), "search.jsonl"),
    Input("data that has changed", RESUME, lambda w: w.replace("search.jsonl", "One day\", \"end\": \", a girl.",
        "One day\", \"end\": \", a boy."), "changed"),
    Input("a model of another size", RESUME, lambda w: w.tensors("front/model.safetensors",
        lambda t: t.pop("model.norm.weight")), "changed|missing"),
]  # fmt: skip

LONG = "x" * 300
MERGE = "merge recipe.yaml"
OUTPUTS = [
    Input("a folder that exists", f"{MERGE} front", lambda w: None, "exists already"),
    Input("a file that exists", f"{MERGE} in_the_way", lambda w: None, "exists already"),
    Input("the recipe", f"{MERGE} recipe.yaml", lambda w: None, "exists already"),
    Input("a link to nothing", f"{MERGE} out", lambda w: w.dangling("out"), "out"),
    Input("below a file", f"{MERGE} in_the_way/out", lambda w: None, "in_the_way"),
    Input("a name of 300 letters", f"{MERGE} {LONG}", lambda w: None, "too long|longer|shorter name"),
    Input("nothing", f"{MERGE} ''", lambda w: None, "."),
    Input("no folder named", MERGE, lambda w: None, "OUT"),
    Input("a run's folder that exists", "evolve run.yaml --output front", lambda w: None, "exists already"),
    Input("a run's folder that is a file", "evolve run.yaml --output in_the_way", lambda w: None, "exists already"),
    Input("a run's folder below a file", "evolve run.yaml --output in_the_way/run", lambda w: None, "in_the_way"),
    Input("a run's folder that is a link to nothing", "evolve run.yaml --output out", lambda w: w.dangling("out"),
        "out"),
    Input("a run's folder of 300 letters", f"evolve run.yaml --output {LONG}", lambda w: None, "shorter name"),
    Input("runs/ that is a file", "evolve run.yaml", lambda w: w.write("runs", "x"), "runs"),
    Input("an export's folder that exists", "export begun --genome 0 front", lambda w: None, "exists already"),
    Input("an export's folder below a file", "export begun --genome 0 in_the_way/out", lambda w: None, "in_the_way"),
    Input("an export's folder of 300 letters", f"export begun --genome 0 {LONG}", lambda w: None,
        "too long|longer|shorter name"),
    Input("scores' file that exists", "evaluate front --task task.yaml --json in_the_way", lambda w: None,
        "exists already"),
    Input("scores' file in no folder", "evaluate front --task task.yaml --json nowhere/x.json", lambda w: None,
        "nowhere"),
    Input("scores' file below a file", "evaluate front --task task.yaml --json in_the_way/x.json", lambda w: None,
        "in_the_way"),
    Input("scores' file of 300 letters", f"evaluate front --task task.yaml --json {LONG}", lambda w: None,
        "too long|longer|shorter name"),
    Input("a page that is a folder", "report begun --output front", lambda w: None, "no report"),
    Input("a page that is another file", "report begun --output in_the_way", lambda w: None, "no report"),
    Input("a page in no folder", "report begun --output nowhere/x.html", lambda w: None, "nowhere"),
    Input("a page of 300 letters", f"report begun --output {LONG}", lambda w: None, "too long|longer|shorter name"),
    Input("a table's page that is another file", "compare begun finished --output in_the_way", lambda w: None,
        "no report"),
    Input("a table's page in no folder", "compare begun finished --output nowhere/x.html", lambda w: None, "nowhere"),
]  # fmt: skip
