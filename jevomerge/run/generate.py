"""`jevomerge generate`: pictures of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jevomerge.checkpoint.drawing import Drawable
from jevomerge.checkpoint.export import export_folder, refuse_existing
from jevomerge.checkpoint.files import expanded
from jevomerge.devices.signals import safe_point
from jevomerge.errors import InputError
from jevomerge.models.diffusion.pipeline import condition, draw, noise_keys, sample, time_ids
from jevomerge.models.diffusion.scheduler import LCM, lightning, plan
from jevomerge.models.diffusion.schema import Rule
from jevomerge.models.diffusion.unet import Condition
from jevomerge.models.vision.pictures import as_png, pillow
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.schema import Dtype
from jevomerge.tokenizers.prompts import PromptReader

FEW = 10  # steps in which only distilled models draw


def generate(
    model: str | Path,
    prompts: Sequence[str],
    output: str | Path,
    *,
    negative: str | None = None,
    steps: int = 4,
    guidance: float = 0.0,
    size: tuple[int, int] | None = None,
    seeds: Sequence[int] = (0,),
    rule: Rule | None = None,
    like: str | Path | None = None,
    pooled_from: int | None = None,
    dtype: Dtype = "float32",
    observer: Observer = SILENT,
) -> list[Path]:
    """Draw each prompt with the noise of each seed, one picture after the other.

    A picture depends on nothing but the model, its prompt, its seed and the settings, on one machine to the last bit.

    Args:
        model: a folder of diffusers, a single file, or a hub name; with a LoRA as `model+lora`.
        prompts: what the pictures shall show.
        output: the folder to write; it must not exist.
        negative: what they shall not show; None: as the pipeline says, nothing or the empty prompt.
        steps: from noise to picture.
        guidance: how far away from `negative`, if it is above 1.
        size: height and width in pixels; None: those that the U-Net was made for.
        seeds: of the noise.
        rule: how noise becomes a picture, instead of as the pipeline's scheduler says.
        like: a model that lends what `model` lacks: of a single file its tokenizers.
        pooled_from: 1 or 2, the text encoder whose pooled vector the U-Net is told, where both have one.
        dtype: of the activations.
        observer: is told notes and how far it is.

    Returns:
        the PNGs, in the order of the prompts and, for each, of the seeds.

    Raises:
        InputError: for whatever is wrong, before a weight is read; and for pictures that are not finite.
    """
    output = expanded(output)
    refuse_existing(output)
    pillow()
    if negative is not None and guidance <= 1:
        raise InputError("--negative: without guidance above 1 nothing leads away from it; set --guidance 5, or so")
    drawable = Drawable(model, like, rule=rule, pooled_from=pooled_from)
    pipeline = drawable.model
    scheduler = lightning(pipeline.scheduler, steps) if rule == "lightning" else pipeline.scheduler
    table = plan(scheduler, steps)
    height, width = size or _own_size(drawable)
    shape = pipeline.latents(height, width)
    read = PromptReader(pipeline, drawable.tokenizers)
    texts = list(dict.fromkeys([*prompts, *(() if guidance <= 1 else (negative or "",))]))
    tokens = {text: read([text]) for text in texts}
    if steps < FEW and scheduler.kind != LCM and scheduler.timestep_spacing != "trailing":
        observer.note(
            f"so few steps are for distilled models, and the scheduler is not theirs (timestep_spacing: "
            f"{scheduler.timestep_spacing}): add --scheduler lightning or lcm for these, for others --steps 30 "
            "--guidance 5"
        )
    for notes in (drawable.notes, read.notes):
        for note in notes:
            observer.note(note)
    observer.stage("loading the model")
    encoders = drawable.load([part for part in pipeline.parts if part.startswith("text_encoder")])
    sizes = None if pipeline.pooled_from is None else time_ids([(height, width)])
    told = {text: condition(encoders, pipeline, tokens[text], sizes, jnp.dtype(dtype)) for text in texts}
    del encoders
    params = drawable.load([part for part in pipeline.parts if not part.startswith("text_encoder")])
    against: Condition | None = None if guidance <= 1 else told[negative or ""]
    if against is not None and negative is None and pipeline.zeros_for_empty:
        against = against.zeros()
    settings = f"Steps: {steps}, CFG scale: {guidance:g}, Size: {width}x{height}, Model: {Path(model).name}"
    names, progress = list[str](), observer.counter("drawn", "pictures")
    with export_folder(output) as folder:
        for number, prompt in enumerate(prompts, 1):
            for seed in seeds:
                safe_point()
                noise = draw(noise_keys([prompt], [seed]), shape, table.draws)
                pixels = np.asarray(
                    sample(params, pipeline, told[prompt], noise, table, guidance, against, jnp.dtype(dtype))
                )[0]
                if not np.isfinite(pixels).all():
                    raise InputError(
                        f"prompt {number}: the picture is not finite, what {dtype} cannot hold, or a broken model; try "
                        "--dtype float32"
                    )
                names.append(f"prompt_{number:0{len(str(len(prompts)))}}_seed_{seed}.png")
                about = f"{prompt}\nNegative prompt: {negative}\n" if negative else f"{prompt}\n"
                (folder / names[-1]).write_bytes(as_png(pixels, f"{about}{settings}, Seed: {seed}"))
                progress(len(names), len(prompts) * len(seeds))
    return [output / name for name in names]


def _own_size(drawable: Drawable) -> tuple[int, int]:
    """The size that a U-Net was made for."""
    model = drawable.model
    if model.unet.sample_size is None:
        raise InputError("no config.json says for which size of pictures the model is; set --size, such as 1024")
    side = model.unet.sample_size * (model.vae.scale if model.vae else 1)
    return side, side
