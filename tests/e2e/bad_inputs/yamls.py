"""YAML: recipes, the configs of runs, tasks; and the data that these name."""

from tests.e2e.bad_inputs.world import RECIPE, TASK, Input

EXPLAIN, EVOLVE, EVALUATE = "merge recipe.yaml out", "evolve run.yaml", "evaluate front --task task.yaml"
BOMB = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True))
MERGED = "".join(
    f"{b}: &{b}\n  <<: [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
NOT_YAML = {
    "empty": ("", "must be a mapping"),
    "a comment": ("# nothing\n", "must be a mapping"),
    "a list": ("- a\n- b\n", "must be a mapping"),
    "a word": ("linear\n", "must be a mapping"),
    "a tab": ("name:\n\tx: 1\n", "not valid YAML"),
    "an open bracket": ("models: [a, b\n", "not valid YAML"),
    "not UTF-8": (b"name: \xe9\n", "UTF-8"),
    "a zero byte": ("name: a\0b\n", "not valid YAML"),
    "a tag of Python": ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    "a date that is none": ("name: 2024-13-45\n", "not valid YAML"),
    "a tag that does not fit": ("name: !!int abc\n", "not valid YAML"),
    "a boolean that is none": ("name: !!bool abc\n", "not valid YAML"),
    "a list as a key": ("? [a, b]\n: 1\n", "not valid YAML|a key must be a word"),
    "a mapping as a key": ("? {a: b}\n: 1\n", "not valid YAML|a key must be a word"),
    "a key twice": ("name: a\nname: b\n", "given twice"),
    "an alias of nothing": ("name: *a\n", "not valid YAML"),
    "an alias of itself": ("name: &a [*a]\n", "too deeply|not valid YAML|aliases"),
    "nested deeply": ("name: " + "[" * 1500 + "]" * 1500 + "\n", "too deeply|not valid YAML"),
    "aliases of aliases": ("a: &a [x, x]\n" + BOMB, "aliases repeat"),
    "merged aliases of aliases": ("a: &a {x: 1}\n" + MERGED, "aliases repeat"),
}


def not_yaml(path, command, *names):
    return [
        Input(f"{path}: {name}", command, lambda w, text=text: w.write(path, text), says)
        for name, (text, says) in NOT_YAML.items()
        if not names or name in names
    ]


def recipe(name, text, says, command=EXPLAIN):
    return Input(name, command, lambda w: w.write("recipe.yaml", text), says)


def linear(name, says, *, parameters="{weight: 0.5}", more="", model="front"):
    first, second = (f"{{model: {m}, parameters: {p}}}" for m, p in ((model, parameters), ("back", "{weight: 0.5}")))
    text = f"merge_method: linear\nmodels:\n  - {first}\n  - {second}\n{more}"
    return recipe(name, text, says)


def method(name, says, text):
    return recipe(name, text + "\nmodels: [{model: front}, {model: back}]\n", says)


def sliced(name, says, layers):
    return recipe(
        name, f"merge_method: passthrough\nslices:\n  - sources: [{{model: front, layer_range: {layers}}}]\n", says
    )


RECIPES = [
    *not_yaml("recipe.yaml", EXPLAIN),
    Input("missing", "merge nowhere.yaml out", lambda w: None, "nowhere.yaml"),
    Input("a directory", "merge front out", lambda w: None, "not a file"),
    Input("a named pipe", EXPLAIN, lambda w: w.pipe("recipe.yaml"), "not a file"),
    Input("a model's weights", "merge front/model.safetensors out", lambda w: None, "UTF-8|not valid YAML"),
    recipe("two documents without a name", RECIPE + "---\n" + RECIPE, "needs a `name`"),
    recipe("no models", "merge_method: linear\n", "give one of `models`"),
    recipe("no method", "models: [{model: front}]\n", "merge_method.*required"),
    recipe("models that are a word", "merge_method: linear\nmodels: front\n", "models"),
    recipe("models that are words", "merge_method: linear\nmodels: [front, back]\n", "models"),
    recipe("no models in the list", "merge_method: linear\nmodels: []\n", "models"),
    recipe("slices without sources", "merge_method: passthrough\nslices: [{sources: []}]\n", "sources"),
    recipe("models and slices", RECIPE + "slices: [{sources: [{model: front, layer_range: [0, 1]}]}]\n", "give one of"),
    recipe("a key that is not known", RECIPE + "normalise: true\n", "unknown key `normalise`"),
    recipe("a key that is a number", RECIPE + "5: true\n", "5"),
    method("a method that is not known", "did you mean `ties`|merge_method", "merge_method: tis"),
    method("a method that is a number", "merge_method", "merge_method: 5"),
    method("ties without a base", "base_model", "merge_method: ties"),
    method("slerp without t", "`?t`?", "merge_method: slerp\nbase_model: front"),
    method("a base that is nowhere", "nowhere", "merge_method: ties\nbase_model: nowhere"),
    method("a base that is a list", "base_model", "merge_method: ties\nbase_model: [front]"),
    method("t that is a text", "`?t`?", "merge_method: slerp\nbase_model: front\nparameters: {t: x}"),
    linear("a model that is nowhere", "nowhere", model="nowhere"),
    linear("a model that is a file", "in_the_way", model="in_the_way"),
    linear("a model that is a number", "models.0.model", model="5"),
    linear("a model without a name", "models.0.model|folder", model='""'),
    linear("a model of 5,000 letters", "too long|folder", model="a" * 5000),
    linear("a model with a zero byte", "folder|zero|null", model='"a\\0b"'),
    linear("a model in a file", "in_the_way/x/y", model="in_the_way/x/y"),
    linear("a model that is code", r"\$\(touch pwned\)", model="$(touch pwned)"),
    linear("a model in markup", r"\[/red\]\[bold\]x", model='"[/red][bold]x"'),
    linear("a model in HTML", "<script>", model='"<script>alert(1)</script>"'),
    linear("a weight that is a text", "weight", parameters="{weight: heavy}"),
    linear("a weight that is null", "weight", parameters="{weight: [null]}"),
    linear("a weight that is not a number", "weight", parameters="{weight: .nan}"),
    linear("a weight without end", "weight", parameters="{weight: .inf}"),
    linear("a gradient of nothing", "weight", parameters="{weight: []}"),
    linear("a gradient of texts", "weight", parameters="{weight: [a, b]}"),
    linear("a weight that is a mapping", "weight", parameters="{weight: {value: 1, for: mlp}}"),
    linear("a parameter that is not known", "wait", parameters="{wait: 1}"),
    linear("parameters that are a list", "parameters", parameters="[1]"),
    linear("parameters that are a number", "parameters", parameters="5"),
    linear("a type that is not known", "dtype", more="dtype: int8\n"),
    linear("a type that is a number", "dtype", more="dtype: 16\n"),
    linear("a seed that is a text", "seed", more="seed: x\n"),
    linear("a vocabulary of nobody", "takes no part", more="tokenizer_source: nowhere\n"),
    linear("a vocabulary that is a number", "tokenizer_source", more="tokenizer_source: 5\n"),
    linear("a token from nowhere", "nowhere", more="tokenizer: {source: union, tokens: {x: {source: nowhere}}}\n"),
    linear("a token of a kind that is not known", "tokens",
        more="tokenizer: {source: union, tokens: {x: {source: {kind: spiral}}}}\n"),
    linear("a token that the model lacks", "no token",
        more="tokenizer: {source: union, tokens: {x: {source: {kind: model_token, model: front, token: zzzz}}}}\n"),
    linear("rows to a multiple of 0", "pad_to_multiple_of", more="tokenizer: {source: union, pad_to_multiple_of: 0}\n"),
    sliced("layers the wrong way round", "layer_range|layers", "[4, 1]"),
    sliced("layers that there are not", "layer_range|layers", "[0, 99]"),
    sliced("negative layers", "layer_range|layers", "[-3, -1]"),
    sliced("layers that are texts", "layer_range", "[a, b]"),
    sliced("one number for layers", "layer_range", "[3]"),
    sliced("no layers", "layer_range|layers", "[2, 2]"),
    sliced("layers that are fractions", "layer_range", "[0.5, 2.5]"),
]  # fmt: skip


def run(name, old, new, says):
    """The run's config with something else in a place of it."""
    return Input(name, EVOLVE, lambda w: w.replace("run.yaml", old, new), says)


def searched(name, says, search):
    return run(name, "search: {evaluations: 8, population: 4, checkpoint_every: 2}", f"search: {search}", says)


def gene(name, says, text):
    return run(name, "{range: [0, 1], layers_per_group: 2}", text, says)


def added(name, text, says):
    return Input(name, EVOLVE, lambda w: w.write("run.yaml", w.path("run.yaml").read_text() + text), says)


def whole(name, text, says):
    return Input(name, EVOLVE, lambda w: w.write("run.yaml", text), says)


JUDGED = "tasks: [task.yaml]\n"
PATH = "name: p\n" + JUDGED + "search: {evaluations: 4}\npath: "
MERGEKIT_EVOLVE = """\
genome:
  models: [front, back]
  merge_method: dare_ties
  base_model: base
  layer_granularity: 4
tasks:
  - {name: arc_easy, weight: 1.0}
limit: 100
"""
CONFIGS = [
    *not_yaml("run.yaml", EVOLVE, "empty", "a list", "not UTF-8", "a key twice", "nested deeply", "aliases of aliases"),
    whole("of mergekit-evolve", MERGEKIT_EVOLVE, "mergekit-evolve.*jevomerge translate"),
    Input("missing", "evolve nowhere.yaml", lambda w: None, "nowhere.yaml"),
    Input("a directory", "evolve front", lambda w: None, "not a file"),
    Input("a named pipe", EVOLVE, lambda w: w.pipe("run.yaml"), "not a file"),
    whole("only a recipe", RECIPE, "name|unknown key"),
    whole("only a task", TASK, "unknown key|tasks"),
    run("no name", "name: repair\n", "", "name.*required"),
    run("a name that is a list", "name: repair", "name: [a]", "name"),
    run("a name that leads out", "name: repair", "name: ../../x", "name"),
    run("a name of 300 letters", "name: repair", f"name: {'x' * 300}", "name|too long"),
    run("a name with a zero byte", "name: repair", 'name: "a\\0b"', "name|null"),
    run("no genome", "genome:\n  weight: {range: [0, 1], layers_per_group: 2}\n", "", "genome"),
    run("a genome that is a list", "  weight: {range", "  - weight: {range", "genome"),
    run("a gene that is not known", "  weight: {", "  wait: {", "wait"),
    gene("a range the wrong way round", "range", "{range: [1, 0]}"),
    gene("a range of one number", "range", "{range: [1]}"),
    gene("a range of texts", "range", "{range: [a, b]}"),
    gene("a range without end", "range", "{range: [0, .inf]}"),
    gene("a range of no number", "range", "{range: [.nan, 1]}"),
    gene("layers in groups of 0", "layers_per_group", "{layers_per_group: 0}"),
    gene("layers in groups of a half", "layers_per_group", "{layers_per_group: 0.5}"),
    gene("by a word that is a list's", r"a list: \[attention\]", "{by: attention}"),
    gene("by nothing", "by", "{by: []}"),
    gene("by one filter twice", "by", "{by: [mlp, mlp]}"),
    searched("evaluations below 0", "evaluations", "{evaluations: -5}"),
    searched("evaluations in words", "evaluations", "{evaluations: many}"),
    searched("no evaluations", "evaluations", "{evaluations: 0}"),
    searched("a strategy that is not known", "cma_es|strategy", "{strategy: cma-ess}"),
    searched("a population of 0", "population", "{population: 0}"),
    searched("a population of 10^9", "population", "{population: 1000000000, evaluations: 1000000000}"),
    searched("a population that is a text", "population", "{population: x}"),
    searched("a key that is not known", "unknown key `sigmma`", "{sigmma: 1}"),
    searched("a search that is a list", "search", "[1]"),
    searched("a time limit of 0", "time_limit", "{time_limit: 0}"),
    searched("no finalists", "finalists", "{finalists: 0}"),
    searched("more examples than there are", "examples_per_generation",
        "{evaluations: 20, examples_per_generation: 99}"),
    searched("no examples", "examples_per_generation", "{evaluations: 8, examples_per_generation: 0}"),
    run("no tasks", "tasks: [task.yaml]\n", "", "tasks.*required"),
    run("an empty list of tasks", "[task.yaml]", "[]", "tasks"),
    run("tasks that are a word", "[task.yaml]", "task.yaml", "tasks"),
    run("a task that is nowhere", "[task.yaml]", "[nowhere.yaml]", "nowhere.yaml"),
    run("a task that is a number", "[task.yaml]", "[5]", "task"),
    run("a task that is a directory", "[task.yaml]", "[front]", "not a file|front"),
    run("a task twice", "[task.yaml]", "[task.yaml, task.yaml]", "same name"),
    added("a seed that is a text", "seed: x\n", "seed"),
    added("a seed of 5,000 digits", f"seed: {'9' * 5000}\n", "not valid YAML|seed"),
    added("a seed above 2^64", f"seed: {1 << 70}\n", "seed"),
    added("a seed below 0", "seed: -1\n", "seed"),
    added("a mesh of 0", "mesh: {pop: 0}\n", "mesh"),
    added("a mesh that is a text", "mesh: 4x2\n", "mesh"),
    added("more devices than there are", "mesh: {pop: 4096}\n", "mesh|devices"),
    added("no members", "members_per_device: 0\n", "members_per_device"),
    added("no tokens", "tokens_per_batch: 0\n", "tokens_per_batch"),
    added("a type that is not known", "compute_dtype: int4\n", "compute_dtype"),
    added("a tracker that is not known", "trackers: [mlflow]\n", "trackers"),
    added("a tracker twice", "trackers: [tensorboard, tensorboard]\n", "each tracker once"),
    added("a start that is nowhere", "start_from: nowhere.yaml\n", "start_from"),
    added("a refinement that is not known", "refine: {spiral: 1}\n", "refine"),
    added("stages beside a recipe", "stages: []\n", "stages"),
    whole("a path through no models", PATH + "{models: []}\n", "path.models"),
    whole("a path through nowhere", PATH + "{models: [nowhere]}\n", "nowhere"),
    whole("a path repeated 0 times", PATH + "{models: [front], repeats: 0}\n", "repeats"),
    whole("a path repeated 10^8 times", PATH + "{models: [front], repeats: 100000000}\n", "repeats"),
    whole("scales that are not known", PATH + "{models: [front], scaling: spiral}\n", "scaling"),
    whole("a start beyond the path's layers",
        PATH + "{models: [front], start: [{model: front, layer_range: [0, 99]}]}\n", "start|layer"),
    whole("a start that is nowhere, of a path", PATH + "{models: [front], start: nowhere.yaml}\n", "path.start"),
    whole("no stages", "name: s\nstages: []\n" + JUDGED, "stages"),
    whole("a stage that leads out", "name: s\n" + JUDGED + "stages: [{name: ../x, path: {models: [front]}}]\n",
        "stages.0.name"),
    Input("a mesh that is no mesh", "evolve run.yaml --mesh 4", lambda w: None, "POPxMODEL"),
    Input("neither a config nor a run", "evolve", lambda w: None, "give either"),
    Input("a config and a run", "evolve run.yaml --resume begun", lambda w: None, "give either"),
    Input("a seed for a run that goes on", "evolve --resume begun --seed 5", lambda w: None, "--resume"),
    Input("a slice that there is not", "plan run.yaml --topology v9z:4x8", lambda w: None, "--topology"),
]  # fmt: skip


def task(name, old, new, says):
    return Input(name, EVALUATE, lambda w: w.replace("task.yaml", old, new), says)


def more(name, text, says):
    return Input(name, EVALUATE, lambda w: w.write("task.yaml", TASK + text), says)


def generated(name, text, says):
    return Input(name, EVALUATE, lambda w: w.write("task.yaml", TASK.replace("likelihood", "generation") + text), says)


PROMPT, HELDOUT = '"{begin}"', "heldout: heldout.jsonl"
TASKS = [
    *not_yaml("task.yaml", EVALUATE, "empty", "a list", "not UTF-8", "a key twice", "aliases of aliases"),
    Input("missing", "evaluate front --task nowhere.yaml", lambda w: None, "nowhere.yaml"),
    Input("a directory", "evaluate front --task back", lambda w: None, "not a file"),
    Input("a named pipe", EVALUATE, lambda w: w.pipe("task.yaml"), "not a file"),
    task("no name", "name: stories\n", "", "name.*required"),
    task("a key that is not known", "score:", "scor:", "did you mean `score`"),
    task("no prompt", 'prompt: "{begin}"\n', "", "prompt.*required"),
    task("a prompt that is a number", PROMPT, "5", "prompt"),
    task("a field that is not there", PROMPT, '"{nope}"', "nope"),
    task("an open brace", PROMPT, '"{begin"', "prompt"),
    task("a closing brace", PROMPT, '"begin}"', "prompt"),
    task("a field by number", PROMPT, '"{0}"', "prompt|field"),
    task("a field without a name", PROMPT, '"{}"', "prompt|field"),
    task("an attribute of a field", PROMPT, '"{begin.__class__}"', "prompt|field"),
    task("a format that is not known", PROMPT, '"{begin:zzz}"', "prompt|field"),
    task("a conversion that is not known", PROMPT, '"{begin!z}"', "prompt|field"),
    task("a score that is not known", "score: likelihood", "score: liklihood", "did you mean `likelihood`"),
    task("a score that is a number", "score: likelihood", "score: 5", "score"),
    task("a function that is nowhere", "score: likelihood", "score: nowhere_at_all:f", "nowhere_at_all"),
    task("a module without the function", "score: likelihood", "score: json:nope", "nope"),
    task("a function without a name", "score: likelihood", 'score: "json:"', "score|function"),
    task("what is no function", "score: likelihood", "score: json:__name__", "score|function|call"),
    generated("no way to the answer", "", "extract|pattern"),
    generated("a way that is not known", "extract: last\n", "extract"),
    generated("an expression that is none", "pattern: '('\n", "pattern"),
    generated("two ways to the answer", "extract: exact\npattern: '(a)'\n", "pattern|extract"),
    generated("a language that is not known", "extract: exact\nlanguage: klingon\n", "language|klingon"),
    generated("a likeness that is not known", "extract: exact\ncompare: cosine\n", "compare"),
    generated("no new tokens", "extract: exact\nmax_new_tokens: 0\n", "max_new_tokens"),
    generated("a stop that is empty", 'extract: exact\nstop: [""]\n', "stop"),
    more("weight 0", "weight: 0\n", "weight"),
    more("a weight that is no number", "weight: .nan\n", "weight"),
    more("a weight that is a text", "weight: x\n", "weight"),
    Input("a split that is not known to the harness",
        "evaluate front --task task.yaml --split heldout --json nowhere/x.json", lambda w: None, "nowhere"),
    Input("a model that is nowhere", "evaluate nowhere --task task.yaml", lambda w: None, "nowhere"),
    Input("a model that is a file", "evaluate in_the_way --task task.yaml", lambda w: None, "in_the_way"),
]  # fmt: skip


def heldout(name, text, says):
    """Data in another place."""
    return task(name, HELDOUT, f"heldout: {text}", says)


def rows(name, content, says):
    return Input(name, EVALUATE, lambda w: w.write("heldout.jsonl", content), says)


def table(name, file, content, says):
    def prepare(world):
        world.write(file, content)
        world.replace("task.yaml", HELDOUT, f"heldout: {file}")

    return Input(name, EVALUATE, prepare, says)


GOOD = '{"begin": "Once", "end": "."}\n'
DATA = [
    rows("empty", "", "heldout.jsonl|no rows|no examples"),
    rows("blank lines", "\n\n", "heldout.jsonl|no rows|no examples"),
    rows("no JSON", "begin,end\na,b\n", "heldout.jsonl"),
    rows("a broken row", GOOD + '{"begin": "One", "end\n' + GOOD, "heldout.jsonl"),
    rows("a row cut short", GOOD + GOOD[:-4], "heldout.jsonl"),
    rows("a row that is a list", GOOD + "[1, 2]\n", "heldout.jsonl|row"),
    rows("a row that is null", GOOD + "null\n", "heldout.jsonl|row"),
    rows("a row without the answer", GOOD + '{"begin": "One"}\n', "end"),
    rows("a row without the prompt", GOOD + '{"end": "One"}\n', "begin"),
    rows("an answer that is null", GOOD + '{"begin": "One", "end": null}\n', "end"),
    rows("a prompt that is null", GOOD + '{"begin": null, "end": "."}\n', "begin"),
    rows("not UTF-8", b'{"begin": "\xe9", "end": "."}\n', "UTF-8|utf-8"),
    rows("nested deeply", '{"begin": ' + "[" * 100_000 + "\n", "heldout.jsonl"),
    rows("compressed", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "heldout.jsonl|UTF-8"),
    Input("missing", EVALUATE, lambda w: w.remove("heldout.jsonl"), "heldout.jsonl"),
    Input("a directory", EVALUATE, lambda w: w.directory("heldout.jsonl"), "heldout.jsonl"),
    Input("a named pipe", EVALUATE, lambda w: w.pipe("heldout.jsonl"), "heldout.jsonl"),
    Input("the same rows in both splits", "evolve run.yaml", lambda w: w.replace("task.yaml", HELDOUT,
        "heldout: search.jsonl"), "also in the search split"),
    heldout("a path that is a list", "[a]", "heldout"),
    heldout("a path that is null", "", "heldout"),
    heldout("rows the wrong way round", "{path: heldout.jsonl, rows: [4, 2]}", "rows"),
    heldout("rows below 0", "{path: heldout.jsonl, rows: [-2, -1]}", "rows"),
    heldout("rows that there are not", "{path: heldout.jsonl, rows: [100, 200]}", "rows"),
    heldout("rows that are texts", "{path: heldout.jsonl, rows: [a, b]}", "rows"),
    heldout("a limit of 0", "{path: heldout.jsonl, limit: 0}", "limit"),
    heldout("columns of JSON lines", "{path: heldout.jsonl, columns: [a, b]}", "columns"),
    heldout("a key that is not known", "{path: heldout.jsonl, row: [0, 1]}", "did you mean `rows`"),
    heldout("a file without a kind", "in_the_way", "in_the_way"),
    table("a table without the field", "t.csv", "a,b\n1,2\n", "begin|end"),
    table("a table with only a head", "t.csv", "begin,end\n", "t.csv|no rows|no examples"),
    table("a table with a short row", "t.csv", "begin,end\nOnce\n", "t.csv|end"),
    table("a table with a long row", "t.csv", "begin,end\na,b,c\n", "t.csv"),
    table("a table with a column twice", "t.csv", "begin,begin,end\na,b,c\n", "t.csv|begin"),
    table("a table that is not UTF-8", "t.tsv", b"begin\tend\n\xe9\tb\n", "UTF-8|utf-8"),
    table("an empty table", "t.tsv", "", "t.tsv"),
    table("Parquet that is none", "t.parquet", "PAR1 and no more", "t.parquet"),
    table("a file of JSON that is a number", "t.json", "5", "t.json"),
]  # fmt: skip
