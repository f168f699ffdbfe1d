"""300 random recipes, ours beside mergekit 0.1.5: methods, parameters, gradients, filters, slices, dtypes, tokenizers.

Slow, with mergekit in an environment of its own, which runs all of them in one process:

    JEVOMERGE_MERGEKIT=/path/to/mergekit-yaml pytest -m slow -n0 -s tests/parity/test_random_recipes.py

In float32 the two agree to 1e-5. In half precision mergekit also computes in it, jevomerge rounds once: its tensors are
never further from the float32 merge of the same weights than mergekit's.
"""

import collections
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jevomerge.methods.registry import MERGEKIT
from jevomerge.run.merge import merge_folder

MERGEKIT_YAML = os.environ.get("JEVOMERGE_MERGEKIT")
ROOT = Path(__file__).parents[2]
TRAINED = ROOT / "experiments" / "japanese_math_mini" / "models"
SPOKEN = ROOT / "tests" / "data" / "tokenizers" / "models"  # three models, three tokenizers
COUNT = 300
# Told to compute in float64 below, or written in float32 whatever was asked for: what comes out is rounded as ours.
UPCAST = ("arcee_fusion", "ramplus_tl")
AT_THE_CUT = 8  # elements: float32 may round density * size to the next whole number, for each model at both ends
SAME = 1.001  # where mergekit computes in float32 too, sums in another order round a few elements the other way
HALF = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
DRAWN = {  # where everything is kept nothing is left to chance, and mergekit's masks are ours
    name: {"density": 1.0} for name in ("dare_linear", "dare_ties", "della", "della_linear")
}
# Where magnitudes decide, and in half precision many are equal: of those mergekit keeps what its sort puts first.
CUT = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")
RANGES = {
    "density": (0.2, 1), "t": (0, 1), "select_topk": (0.1, 1), "gamma": (0, 0.2), "lambda": (0.5, 1.5),
    "scale": (0.5, 1.5), "r": (0, 0.5), "alpha": (0, 0.5),
}  # fmt: skip
LEFT = ("eps", "epsilon", "tol", "max_iter")  # at their defaults
FILTERS = ("self_attn", "mlp", "q_proj", "norm", "model.layers.1.")

RUN = """
import json, sys, warnings
from pathlib import Path
import yaml
warnings.filterwarnings("ignore")
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for path in sorted(Path(sys.argv[1]).glob("*.yaml")):
    config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
    try:
        run_merge(config, str(path.with_suffix("")), MergeOptions(quiet=True, write_model_card=False))
    except Exception as error:
        print(path.stem, type(error).__name__, error, flush=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Trained models in several dtypes, dithered as in test_mergekit_itself, for no two magnitudes to be equal."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    for name in ("base", "japanese", "mathematics", "addition", "sorter"):
        weights = load_file(TRAINED / name / "model.safetensors")
        dithered = {k: v.astype(np.float32) * rng.uniform(1 - 1e-3, 1 + 1e-3, v.shape) for k, v in weights.items()}
        for dtype in ("float32", *HALF):
            target = folder / dtype / name
            shutil.copytree(TRAINED / name, target)
            save_file({k: v.astype(HALF.get(dtype, np.float32)) for k, v in dithered.items()},
                      target / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
            config = json.loads((target / "config.json").read_text())
            (target / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype, "dtype": dtype}))
    return folder


def setting(draw, low, high, kind):
    """A value, a gradient, or conditions, of each as many ways as mergekit reads."""

    def value():
        if kind == "bool":
            return draw.choice([True, False, "true", "false"])
        return round(draw.uniform(low, high), 3)

    def gradient():
        return [value() for _ in range(draw.randint(2, 5))] if draw.random() < 0.4 else value()

    if draw.random() < 0.6:
        return gradient()
    cases = [{"filter": f, "value": gradient()} for f in draw.sample(FILTERS, draw.randint(1, 2))]
    return [*cases, {"filter": "*", "value": gradient()} if draw.random() < 0.5 else {"value": gradient()}]


def parameters(draw, method, per_model):
    """Some of a method's parameters, and all that it needs."""
    found = dict(DRAWN.get(method.name, {}))
    for p in method.parameters:
        if (
            p.per_model != per_model
            or p.name in LEFT
            or p.name in found
            or (p.default is not None and draw.random() < 0.4)
        ):
            continue
        found[p.name] = setting(draw, *RANGES.get(p.name, (0.2, 1.2)), p.kind)
    return {k: v for k, v in found.items() if any(p.name == k and p.per_model == per_model for p in method.parameters)}


def trained_recipe(draw, folder, method):
    """A recipe over the trained models: `models`, or `slices` of them."""
    stored = "float32" if method.name in CUT else draw.choice(["float32", "float32", "bfloat16", "float16", "mixed"])
    fewest, most = method.num_sources
    names = draw.sample(
        ["japanese", "mathematics", "addition", "sorter"], draw.randint(max(fewest, 1 if most == 1 else 2), most or 4)
    )
    place = {
        n: str(folder / (draw.choice(["float32", *HALF]) if stored == "mixed" else stored) / n)
        for n in [*names, "base"]
    }
    inputs = [place[n] for n in names]
    recipe = {"merge_method": method.name}
    base = None
    if method.base == "required" or (method.base == "optional" and draw.random() < 0.5):
        base = place["base"]
    elif method.base == "first":
        base = draw.choice(inputs)
    sliced = draw.random() < 0.35

    def listed(**more):
        own = [{"model": m, "parameters": parameters(draw, method, True), **more} for m in inputs]
        if base is not None and base not in inputs and (sliced or draw.random() < 0.5):
            own.insert(draw.randint(0, len(own)), {"model": base, **more})
        return [{k: v for k, v in entry.items() if v != {}} for entry in own]

    if sliced:
        ranges = draw.choice([[(0, 4)], [(0, 2), (2, 4)], [(0, 3), (1, 4)], [(0, 1), (1, 2), (2, 4)]])
        body = {"slices": [{"sources": listed(layer_range=list(r))} for r in ranges]}
        for part in body["slices"]:
            if draw.random() < 0.3 and (own := parameters(draw, method, False)):
                part["parameters"] = own
    else:
        body = {"models": listed()}
    recipe |= {"modules": {"default": body}} if draw.random() < 0.15 else body
    recipe["parameters"] = parameters(draw, method, False)
    if base is not None:
        recipe["base_model"] = base
    dtype = draw.choice([None, "float32", "float32", "torch.float32", *HALF])
    recipe |= {} if dtype is None else {"dtype": dtype}
    recipe |= {"out_dtype": "float32"} if draw.random() < 0.2 else {}
    recipe |= {"tokenizer_source": draw.choice(["base", "union", inputs[-1]])} if base and draw.random() < 0.2 else {}
    return recipe


def spoken_recipe(draw, method):
    """A recipe over models with different tokenizers, of which mergekit wants to be told a base."""
    a, b, c = (str(SPOKEN / name) for name in draw.sample("abc", 3))
    recipe = {"merge_method": method, "base_model": a, "dtype": "float32"}
    weighted = [{"model": m, "parameters": {"weight": round(draw.uniform(0.2, 1.2), 3)}} for m in (a, b, c)]
    recipe["models"] = weighted if method == "linear" else weighted[1:]
    source = draw.choice(["base", "union", "union", b])
    if draw.random() < 0.5:
        return recipe | {"tokenizer_source": source}
    multiple = draw.choice([None, 8, 64])
    return recipe | {"tokenizer": {"source": source, **({"pad_to_multiple_of": multiple} if multiple else {})}}


def random_recipe(number, folder):
    """Recipe `number`, always the same."""
    draw, methods = random.Random(number), [*MERGEKIT.values()]
    if number % 6 == 5:
        return spoken_recipe(draw, draw.choice(["linear", "task_arithmetic"]))
    return trained_recipe(draw, folder, methods[number % len(methods)])


def computed(recipe):
    """The dtype that mergekit computes in."""
    named = str(recipe.get("dtype")).removeprefix("torch.")
    if named != "None":
        return named
    found = {p for part in yaml.safe_dump(recipe).split() for p in ("float32", *HALF) if f"/{p}/" in part}
    return found.pop() if len(found) == 1 else "float32"


def rows(folder, matrix):
    """Its rows by token, for the two number a union's tokens differently."""
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"] | {t["content"]: t["id"] for t in data["added_tokens"]}
    return matrix[[vocabulary[t] for t in sorted(vocabulary)]]


def differences(recipe, ours, theirs, exact):
    """(tensor, what differs) of a recipe's three merges; without `exact` the two must agree."""
    found, given = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    wrong = [(name, "is not in both") for name in found.keys() ^ given.keys() if name != "lm_head.weight"]  # tied
    reference = given if exact is None else load_file(exact / "model.safetensors")
    folders = (ours, theirs, exact or theirs)
    few = AT_THE_CUT if recipe["merge_method"] in CUT else 0
    for name in sorted(found.keys() & given.keys()):
        written = given[name].astype(found[name].dtype) if recipe["merge_method"] in UPCAST else given[name]
        a, b, c = (x.astype(np.float32) for x in (found[name], written, reference[name]))
        if recipe.keys() & {"tokenizer", "tokenizer_source"} and ("embed" in name or "lm_head" in name):
            a, b, c = (rows(f, x) for f, x in zip(folders, (a, b, c), strict=True))
        if recipe["merge_method"] not in UPCAST and found[name].dtype != given[name].dtype:
            wrong.append((name, f"{found[name].dtype}, not {given[name].dtype}"))
        if a.shape != b.shape:
            wrong.append((name, f"{a.shape}, not {b.shape}"))
        elif exact is None and (~np.isclose(a, b, atol=1e-5, rtol=1e-5)).sum() > few:
            off = np.abs(a - b)
            wrong.append((name, f"{(off > 1e-5).sum()} of {off.size} elements by up to {off.max():.2g}"))
        elif exact is not None and (mine := np.abs(a - c).mean()) > SAME * (his := np.abs(b - c).mean()):
            wrong.append((name, f"{mine:.3g} from the float32 merge, mergekit's {his:.3g}"))
    return wrong


@pytest.mark.slow
@pytest.mark.skipif(MERGEKIT_YAML is None, reason="needs JEVOMERGE_MERGEKIT, the path of mergekit-yaml")
def test_random_recipes(models, tmp_path):
    recipes = {f"{n:03d}": random_recipe(n, models) for n in range(COUNT)}
    theirs, exact, ours = (tmp_path / name for name in ("theirs", "exact", "ours"))
    for folder in (theirs, exact, ours):
        folder.mkdir()
    for name, recipe in recipes.items():
        told = dict(recipe)
        if recipe["merge_method"] == "arcee_fusion" and computed(recipe) == "float32":
            told |= {"dtype": "float64"}  # in float32 noise decides over elements at its threshold
        (theirs / f"{name}.yaml").write_text(yaml.safe_dump(told))
        if computed(recipe) in HALF:
            told = recipe | {"dtype": "float32", "out_dtype": "float32"}
            (exact / f"{name}.yaml").write_text(yaml.safe_dump(told))
    for folder in (theirs, exact):
        python = Path(MERGEKIT_YAML).with_name("python")
        run = subprocess.run([python, "-c", RUN, folder], check=True, capture_output=True, text=True)
        assert not run.stdout
    counts, wrong = collections.Counter(), {}
    for name, recipe in recipes.items():
        merge_folder(recipe, ours / name)
        half = computed(recipe) in HALF
        kinds = [recipe["merge_method"], "in half precision" if half else "in float32"]
        kinds += [key for key in ("slices", "modules", "tokenizer_source", "tokenizer", "out_dtype") if key in recipe]
        counts.update(kinds)
        if found := differences(recipe, ours / name, theirs / name, exact / name if half else None):
            wrong[name, *kinds] = found
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    assert not wrong, "\n".join(f"{k}: {len(v)} tensors, {v[0]}" for k, v in wrong.items())
