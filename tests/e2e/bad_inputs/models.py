"""What stands beside weights: config.json, the tokenizer's files, templates, adapters."""

import numpy as np

from tests.e2e.bad_inputs.world import Q_PROJ, Input

CONFIG = "front/config.json"
MERGE = "merge recipe.yaml out"
BROKEN = {
    "empty": ("", "not valid JSON"),
    "null": ("null", "must hold an object"),
    "a list": ("[]", "must hold an object"),
    "a text": ('"llama"', "must hold an object"),
    "a number": ("5", "must hold an object"),
    "single quotes": ("{'model_type': 'llama'}", "not valid JSON"),
    "cut short": ('{"model_type": "lla', "not valid JSON"),
    "a comma too many": ('{"r": 2,}', "not valid JSON"),
    "not UTF-8": (b'{"model_type": "\xe9"}', "UTF-8"),
    "UTF-16": ('{"model_type": "llama"}'.encode("utf-16"), "UTF-8"),
    "a mark before it": (b'\xef\xbb\xbf{"model_type": "llama"}', "not valid JSON"),
    "nested deeply": ('{"a":' * 100_000, "too deeply|not valid JSON"),
    "a list nested deeply": ("[" * 100_000 + "]" * 100_000, "too deeply|not valid JSON"),
    "a key twice": ('{"model_type": "llama", "model_type": "mistral"}', "given twice"),
    "a number of 10,000 digits": ('{"r": ' + "9" * 10_000 + "}", "not valid JSON"),
}


def broken(path, command, *names):
    """A JSON file that is none, or not an object."""
    return [
        Input(
            f"{path.rpartition('/')[2]}: {name} ({command.split()[1]})",
            command,
            lambda w, text=text: w.write(path, text),
            says,
        )
        for name, (text, says) in BROKEN.items()
        if not names or name in names
    ]


def huge(world):
    world.remove(CONFIG).touch()
    with world.path(CONFIG).open("r+b") as file:
        file.truncate(1 << 40)  # takes no room


def config(name, says=None, command=MERGE, **values):
    return Input(name, command, lambda w: w.update(CONFIG, **values), says or "|".join(values))


# Wrong for every key that counts something.
NO_COUNTS = {"a text": "x", "a list": [4], "a fraction": 4.5, "zero": 0, "negative": -1, "an object": {}, "huge": 10**9}
COUNTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip
CONFIGS = [
    *broken(CONFIG, MERGE),
    *(
        config(f"{key} is {name}", says="|".join((*COUNTS, "has shape", "config.json says")), **{key: value})
        for key in COUNTS
        for name, value in NO_COUNTS.items()
    ),
    *(config(f"{key} is missing", **{key: ...}) for key in ("model_type",)),
    *(
        config(f"{key} is {value!r}", says="quantised" if key == "quantization_config" else None, **{key: value})
        for key, values in {
            "model_type": ("unheard_of", 5, ["llama"], {}),
            "rms_norm_eps": ("x", [1e-5], {}, -1.0),
            "rope_theta": ("x", [1e4], {}, -1.0, 0),
            "rope_scaling": ("linear", [1], 5),
            "rope_parameters": ("default", [1], 5),
            "hidden_act": ("relu", 5, ["silu"]),
            "tie_word_embeddings": ("maybe", [1]),
            "attention_bias": ("maybe", [1]),
            "quantization_config": ({"quant_method": "gptq", "bits": 4}, {"load_in_4bit": True}),
        }.items()
        for value in values
    ),
    config("a rotation that is not known", "rope", rope_scaling={"rope_type": "spiral", "factor": 2.0}),
    config("a rotation without its factor", "factor", rope_scaling={"rope_type": "linear"}),
    config("a factor that is a text", "factor", rope_scaling={"rope_type": "linear", "factor": "x"}),
    config("a factor that is a list", "factor", rope_scaling={"rope_type": "yarn", "factor": [4]}),
    config("heads that do not divide", "num_|heads", num_attention_heads=8, num_key_value_heads=3),
    Input("missing", MERGE, lambda w: w.remove(CONFIG), "does not exist"),
    Input("a directory", MERGE, lambda w: w.directory(CONFIG), "not a file"),
    Input("a named pipe", MERGE, lambda w: w.pipe(CONFIG), "not a file"),
    Input("a link to nothing", MERGE, lambda w: w.dangling(CONFIG), "does not exist"),
    Input("of a terabyte", MERGE, huge, "too large"),
]

TOKENIZER = "front/tokenizer.json"
SETTINGS = "front/tokenizer_config.json"
EVALUATE = "evaluate front --task task.yaml"
UNION = "merge union.yaml out"


def tokenizer(name, change, says="tokenizer", commands=(EVALUATE, UNION)):
    """`change` of tokenizer.json, met by the library and by our own union."""

    def prepare(world):
        values = world.json(TOKENIZER)
        change(values)
        world.dump(TOKENIZER, values)

    return [Input(f"{name} ({c.split()[0]})", c, prepare, says) for c in commands]


def settings(name, says, command=EVALUATE, **values):
    return Input(name, command, lambda w: w.update(SETTINGS, **values), says)


TOKENIZERS = [
    *broken(TOKENIZER, EVALUATE, "empty", "null", "a list", "cut short", "not UTF-8"),
    *broken(TOKENIZER, UNION, "empty", "null", "a list", "cut short", "not UTF-8", "nested deeply", "a key twice"),
    *broken(SETTINGS, EVALUATE, "empty", "null", "a list", "cut short", "not UTF-8", "nested deeply"),
    *broken(SETTINGS, "merge auto.yaml out", "empty", "null", "a list", "cut short", "not UTF-8"),
    *tokenizer("no model", lambda t: t.pop("model")),
    *tokenizer("a model that is null", lambda t: t.update(model=None)),
    *tokenizer("a model that is a list", lambda t: t.update(model=[1])),
    *tokenizer("a model that is not known", lambda t: t["model"].update(type="Spiral"), commands=(EVALUATE,)),
    *tokenizer("a vocabulary that is null", lambda t: t["model"].update(vocab=None)),
    *tokenizer("a vocabulary that is a text", lambda t: t["model"].update(vocab="abc")),
    *tokenizer("ids that are texts", lambda t: t["model"].update(vocab={"a": "0", "b": "1"})),
    *tokenizer("negative ids", lambda t: t["model"]["vocab"].update(a=-5)),
    *tokenizer("merges that are numbers", lambda t: t["model"].update(merges=[1, 2])),
    *tokenizer("merges of three", lambda t: t["model"].update(merges=[["a", "b", "c"]])),
    *tokenizer("added tokens that are a text", lambda t: t.update(added_tokens="abc")),
    *tokenizer("an added token without a text", lambda t: t.update(added_tokens=[{"id": 3}])),
    *tokenizer("an added token without an id", lambda t: t.update(added_tokens=[{"content": "<x>"}])),
    Input("none at all", EVALUATE, lambda w: [w.remove(TOKENIZER), w.remove(SETTINGS)], "no tokenizer"),
    Input("missing, for a union", UNION, lambda w: w.remove(TOKENIZER), "no tokenizer.json"),
    Input("a directory", UNION, lambda w: w.directory(TOKENIZER), "not a file"),
    Input("a named pipe", UNION, lambda w: w.pipe(TOKENIZER), "not a file"),
    settings("code of its own", "auto_map", tokenizer_class="MineTokenizer", auto_map={"AutoTokenizer": ["mine.Mine",
        None]}),
    settings("a class that is a number", "tokenizer", tokenizer_class=5),
    settings("templates that are numbers", "chat_template", "merge auto.yaml out", chat_template=[1, 2]),
    settings("a template that is a number", "chat_template", "merge auto.yaml out", chat_template=5),
    settings("templates without names", "chat_template", "merge auto.yaml out", chat_template=[{"template": "x"}]),
]  # fmt: skip


def template(name, value, says="chat_template"):
    return Input(
        name,
        MERGE,
        lambda w: w.write("recipe.yaml", w.path("recipe.yaml").read_text() + f"chat_template: {value}\n"),
        says,
    )


JINJA = "front/chat_template.jinja"
TEMPLATES = [
    template("a name that is not known", "chatmll", "did you mean `chatml`"),
    template("a name like no other", "zzz", "it is one of"),
    template("jinja that does not end", "'{% for x in y %}'", "not valid jinja"),
    template("jinja with a tag that is not known", "'{% spiral %}'", "not valid jinja"),
    template("jinja with an open bracket", "'{{ messages[0'", "not valid jinja"),
    template("a list", "[chatml]"),
    template("a number", "5"),
    Input("a file that is not UTF-8", "merge auto.yaml out", lambda w: w.write(JINJA, b"{{ '\xff' }}"), "UTF-8"),
    Input("a file that is a directory", "merge auto.yaml out", lambda w: w.directory(JINJA), "not a file"),
    Input("a file that is a pipe", "merge auto.yaml out", lambda w: w.pipe(JINJA), "not a file"),
]  # fmt: skip

ADAPTED = "merge adapted.yaml out"
ADAPTER, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
A, B = f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_B.weight"


def adapter(name, says=None, **values):
    return Input(name, ADAPTED, lambda w: w.update(ADAPTER, **values), says or "|".join(values))


def pair(name, says, change):
    return Input(name, ADAPTED, lambda w: w.tensors(WEIGHTS, change), says)


ADAPTERS = [
    *broken(ADAPTER, ADAPTED, "empty", "null", "a list", "cut short", "not UTF-8", "nested deeply", "a key twice"),
    adapter("no kind", peft_type=...),
    adapter("another kind", peft_type="IA3"),
    adapter("a kind that is a list", peft_type=["LORA"]),
    adapter("no rank", r=...),
    adapter("a rank that is a text", r="2"),
    adapter("rank 0", r=0),
    adapter("a negative rank", r=-2),
    adapter("a rank that is true", r=True),
    adapter("another rank than the file's", "at rank 4", r=4),
    adapter("alpha that is a text", lora_alpha="4"),
    adapter("alpha that is null", lora_alpha=None),
    adapter("alpha that is a list", lora_alpha=[4]),
    adapter("an initialisation that changes the model", "merge_and_unload", init_lora_weights="pissa"),
    adapter("an initialisation that is a list", init_lora_weights=[1]),
    adapter("DoRA", "merge_and_unload", use_dora=True),
    adapter("ranks that are a list", rank_pattern=["q_proj"]),
    adapter("ranks that are texts", rank_pattern={"q_proj": "2"}),
    adapter("a pattern that is no expression", rank_pattern={"(": 2}),
    adapter("alphas that are texts", alpha_pattern={"q_proj": "4"}),
    adapter("alphas that are a number", alpha_pattern=4),
    Input("no config", ADAPTED, lambda w: w.remove(ADAPTER), "no adapter_config.json"),
    Input("no weights", ADAPTED, lambda w: w.remove(WEIGHTS), "no adapter_model.safetensors"),
    Input("only a pickle", ADAPTED, lambda w: w.path(WEIGHTS).rename(w.path("adapter/adapter_model.bin")), "pickle"),
    Input("empty weights", ADAPTED, lambda w: w.write(WEIGHTS, b""), "cannot be read"),
    Input("weights that are a pipe", ADAPTED, lambda w: w.pipe(WEIGHTS), "not a file|cannot be read"),
    Input("alone", "merge alone.yaml out", lambda w: w.write("alone.yaml",
        "merge_method: linear\nmodels: [{model: adapter}]\n"), "behind its model"),
    Input("of nowhere", "merge alone.yaml out", lambda w: w.write("alone.yaml",
        "merge_method: linear\nmodels: [{model: front+nowhere}]\n"), "nowhere"),
    Input("behind nothing", "merge alone.yaml out", lambda w: w.write("alone.yaml",
        "merge_method: linear\nmodels: [{model: +adapter}]\n"), "is .* a Hugging Face checkpoint"),
    pair("a half alone", "need an A and a B", lambda found: found.pop(B)),
    pair("of another model", "belongs to no tensor", lambda found: found.update({A.replace("layers.0",
        "layers.9"): found.pop(A)})),
    pair("of another shape", "do not make its shape", lambda found: found.update({B: np.zeros((63, 2), np.float32)})),
    pair("whole numbers", "floating point", lambda found: found.update({A: np.zeros((2, 64), np.int32)})),
    pair("NaN", "NaN", lambda found: found[A].fill(np.nan)),
]  # fmt: skip
