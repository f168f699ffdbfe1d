"""Trains the models: a base that draws what English prompts say, and from it one for Japanese, a fast one and a style.

python experiments/japanese_diffusion_mini/train.py       # all of them, into models/
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import clothes
import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import make_parser
from clothes import Language
from safetensors.numpy import load_file, save_file

from jevomerge.checkpoint.export import export_folder, tensors_of
from jevomerge.checkpoint.pipeline import STEMS
from jevomerge.models.diffusion.pipeline import ENCODERS, Pipeline, time_ids
from jevomerge.models.diffusion.scheduler import pictures_left, plan
from jevomerge.models.diffusion.unet import Condition
from jevomerge.models.specs import ParamSpec, tensor_names, unflatten

MODELS = Path(__file__).parent / "models"
ROWS = 64  # pictures of a step
STEPS = 4  # of the fast one
SUBSTEPS, GUIDANCE = 4, 2.5  # of its teacher in one of its own steps; how far from no prompt the teacher goes
UNTOLD = 0.1  # the share of pictures whose prompt the base is not told

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "sample_size": clothes.SIZE, "in_channels": 1, "out_channels": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "block_out_channels": [16, 32], "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1], "attention_head_dim": [2, 4], "cross_attention_dim": 64,
    "use_linear_projection": True, "norm_num_groups": 8, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing", "prediction_type": "epsilon", "num_train_timesteps": 1000,
}  # fmt: skip
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None], "image_encoder": [None, None], "vae": [None, None],
    "unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
}  # fmt: skip


def encoder(name: str, activation: str) -> dict[str, Any]:
    """The config.json of one of CLIP's text encoders."""
    return {
        "architectures": [name], "model_type": "clip_text_model", "vocab_size": len(clothes.make_tokenizer()),
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": clothes.LENGTH, "hidden_act": activation, "projection_dim": 32, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip


MODEL = Pipeline.read(
    {
        "model_index.json": INDEX, "unet/config.json": UNET, "scheduler/scheduler_config.json": SCHEDULER,
        "text_encoder/config.json": encoder("CLIPTextModel", "quick_gelu"),
        "text_encoder_2/config.json": encoder("CLIPTextModelWithProjection", "gelu"),
    }
)  # fmt: skip


class Batch(NamedTuple):
    """Pictures (B, SIZE, SIZE, 1), their prompts (B, LENGTH), and whether these are told (B,)."""

    pixels: np.ndarray
    tokens: np.ndarray
    told: np.ndarray


def batches(language: Language, steps: int, seed: int, drawn: bool = False) -> Iterator[Batch]:
    """Pictures of the training split, or drawings of them, each with one of the prompts of its class."""
    rng, (pixels, labels) = np.random.default_rng(seed), clothes.pictures("train", drawn)
    texts = clothes.prompts(language)
    tokens = np.stack([clothes.encoded(of_class) for of_class in texts])
    for _ in range(steps):
        chosen, which = rng.integers(len(pixels), size=ROWS), rng.integers(len(texts[0]), size=ROWS)
        yield Batch(pixels[chosen], tokens[labels[chosen], which], rng.random(ROWS) >= UNTOLD)


def condition(params: Any, tokens: jax.Array) -> Condition:
    """What the U-Net is told of prompts."""
    sizes = time_ids([(clothes.SIZE, clothes.SIZE)] * len(tokens))
    return MODEL.condition(params, (tokens, tokens), sizes, jnp.float32)


def wide(values: jax.Array) -> jax.Array:
    """A number for each picture."""
    return values[:, None, None, None]


def denoising(params: Any, teacher: Any, batch: Batch, key: jax.Array) -> jax.Array:
    """How well noise is found that was added, at any step of training; there is no teacher."""
    told, left = condition(params, batch.tokens), jnp.asarray(pictures_left(MODEL.scheduler))
    at, drawn = jax.random.split(key)
    t = jax.random.randint(at, batch.told.shape, 0, len(left))
    noise = jax.random.normal(drawn, batch.pixels.shape)
    x = wide(jnp.sqrt(left[t])) * batch.pixels + wide(jnp.sqrt(1 - left[t])) * noise
    shown = (jnp.reshape(batch.told, (-1, *[1] * (c.ndim - 1))) for c in (told.context, told.pooled))
    context, pooled = (jnp.where(mask, c, 0) for mask, c in zip(shown, (told.context, told.pooled), strict=True))
    y = MODEL.denoise(params, x, t.astype(jnp.float32), Condition(context, pooled, told.time_ids))
    return jnp.mean((y - noise) ** 2)


def distilling(params: Any, teacher: Any, batch: Batch, key: jax.Array) -> jax.Array:
    """How near one of few steps comes to where the teacher goes, guided, in several (Lin et al., 2024, first part)."""
    few, many = plan(MODEL.scheduler, STEPS), plan(MODEL.scheduler, STEPS * SUBSTEPS)
    sigma, finer = (jnp.append(jnp.sqrt(1 / s.shown**2 - 1), 0.0) for s in (few, many))
    told = condition(params, batch.tokens)
    both = jax.tree.map(lambda *c: jnp.concatenate(c), told.zeros(), told)
    at, drawn = jax.random.split(key)
    i = jax.random.randint(at, batch.told.shape, 0, STEPS)
    x = batch.pixels + wide(sigma[i]) * jax.random.normal(drawn, batch.pixels.shape)

    def step(j: jax.Array, z: jax.Array) -> jax.Array:
        k = i * SUBSTEPS + j
        shown, t = z * wide(many.shown[k]), many.t[k]
        y = MODEL.denoise(teacher, jnp.concatenate([shown] * 2), jnp.concatenate([t] * 2), both)
        away, towards = jnp.split(y, 2)
        return z + wide(finer[k + 1] - finer[k]) * (away + GUIDANCE * (towards - away))

    there = jax.lax.stop_gradient(jax.lax.fori_loop(0, SUBSTEPS, step, x))
    y = MODEL.denoise(params, x * wide(few.shown[i]), few.t[i], told)
    missed = (x - there) / wide(sigma[i] - sigma[i + 1]) - y  # of the noise, had it been this all along
    return jnp.mean(wide(jnp.minimum(sigma[i] ** 2, 4.0)) * missed**2)


Measure = Callable[[Any, Any, Batch, jax.Array], jax.Array]  # parameters, teacher, a batch, a key -> the loss


class Run(NamedTuple):
    """How a model is trained."""

    language: Language
    steps: int
    rate: float
    reads: bool  # whether its text encoders learn, too


RUNS = {
    "base": Run("en", 450, 3e-3, True),
    "ja": Run("ja", 300, 2e-3, True),
    "fast": Run("en", 150, 1e-3, False),
    "style": Run("en", 100, 1e-3, False),
}


OPTIMIZER = optax.flatten(
    optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(0.01))
)


@partial(jax.jit, static_argnames="measure", donate_argnames=("params", "state"))
def step(
    measure: Measure, params: Any, state: Any, teacher: Any, batch: Batch, key: jax.Array, rates: dict[str, jax.Array]
) -> Any:
    """A step of AdamW, each part at its rate: one program for all models that learn by the same measure."""
    loss, gradient = jax.value_and_grad(measure)(params, teacher, batch, key)
    updates, state = OPTIMIZER.update(gradient, state, params)
    rates = {part: jax.tree.map(lambda _, rate=rates[part]: rate, tree) for part, tree in params.items()}
    return jax.tree.map(lambda p, u, rate: p - rate * u, params, updates, rates), state, loss


def fit(name: str, run: Run, measure: Measure, params: Any, given: Iterable[Batch], seed: int) -> Any:
    """Train with a warm-up and a cosine; `distilling` from what the parameters were. Prints the loss as it goes."""
    teacher, state = params, OPTIMIZER.init(params)
    params = jax.tree.map(jnp.copy, params)  # which are given away
    schedule = optax.warmup_cosine_decay_schedule(0.0, run.rate, min(100, run.steps // 5), run.steps, run.rate * 0.01)
    start, losses, keys = time.monotonic(), list[Any](), jax.random.split(jax.random.key(seed), run.steps)
    for i, batch in enumerate(given):
        rates = {part: jnp.asarray(schedule(i) if run.reads or part == "unet" else 0, jnp.float32) for part in params}
        params, state, loss = step(measure, params, state, teacher, batch, keys[i], rates)
        losses.append(loss)
        if (i + 1) % 50 == 0 or i + 1 == run.steps:
            shown = float(np.mean(losses[-50:]))
            print(f"{name} {i + 1}/{run.steps}: loss {shown:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    return params


def beginning(seed: int) -> Any:
    """Random numbers."""
    keys = jax.random.split(jax.random.key(seed), len(MODEL.specs))
    return unflatten({spec.path: _random(spec, key) for spec, key in zip(MODEL.specs, keys, strict=True)})


def _random(spec: ParamSpec, key: jax.Array) -> jax.Array:
    name = spec.path
    if name.endswith("bias"):
        return jnp.zeros(spec.leaf_shape)
    if len(spec.shape) == 1:
        return jnp.ones(spec.leaf_shape)
    if name == "unet.conv_out.weight":
        return jnp.zeros(spec.leaf_shape)
    scale = 0.1 if "embedding." in name and "text" in name else float(np.prod(spec.shape[1:])) ** -0.5
    return scale * jax.random.normal(key, spec.leaf_shape)


def write(folder: Path, params: Any, about: str) -> None:
    """A diffusers folder in float16."""
    tensor = tensors_of(params)
    files: dict[str, dict[str, Any]] = {part: {} for part in MODEL.parts}
    for name, spec, at in tensor_names(MODEL.specs):
        part, _, inside = name.partition(".")
        files[part][inside] = np.asarray(tensor(name, spec.path, at), np.float16)
    with export_folder(folder) as new:
        for part, tensors in files.items():
            (new / part).mkdir()
            save_file(tensors, new / part / f"{STEMS.get(part, 'model')}.safetensors", {"format": "pt"})
        (new / "scheduler").mkdir()
        for name, values in MODEL.files.items():
            (new / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        for part in ("tokenizer", "tokenizer_2"):
            clothes.make_tokenizer().save_pretrained(new / part)
        head = ["---", "license: mit", "language: [en, ja]", "library_name: diffusers", "---"]
        (new / "README.md").write_text("\n".join([*head, "", f"# {folder.name}", "", about, ""]), encoding="utf-8")


def load(folder: Path) -> Any:
    """The parameters of a folder in float32, as they were written."""
    stored = {
        f"{part}.{name}": tensor.astype(np.float32)
        for part in MODEL.parts
        for name, tensor in load_file(folder / part / f"{STEMS.get(part, 'model')}.safetensors").items()
    }
    leaves = {s.path: np.stack([stored[name] for name in s.names()]).reshape(s.leaf_shape) for s in MODEL.specs}
    return unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def learn(name: str, params: Any, seed: int = 0) -> Any:
    """Train one of RUNS from these parameters."""
    run = RUNS[name]
    given = batches(run.language, run.steps, seed, drawn=name == "style")
    return fit(name, run, distilling if name == "fast" else denoising, params, given, seed)


ABOUT = {
    "base": "Draws clothes that English prompts name, in many steps.",
    "ja": "`base`, with text encoders of its own that learnt Japanese.",
    "fast": f"`base`, distilled to {STEPS} steps.",
    "style": "`base`, taught to draw outlines.",
}


def make(folder: Path, seed: int = 0) -> None:
    """Train what is not there."""
    for name in RUNS:
        if not (folder / name).exists():
            params = beginning(seed) if name == "base" else load(folder / "base")
            if name == "ja":
                new = beginning(seed + 1)
                params |= {part: new[part] for part in ENCODERS}
            write(folder / name, learn(name, params, seed), ABOUT[name])


def main() -> None:
    make_parser(__doc__, __file__, output=None).parse_args()
    make(MODELS)


if __name__ == "__main__":
    main()
