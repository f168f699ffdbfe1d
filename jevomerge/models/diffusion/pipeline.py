"""Text encoders, U-Net, scheduler and autoencoder as one model: from texts and noise to pictures.

    model = Pipeline.read({"model_index.json": {...}, "unet/config.json": {...}, ...})
    told, steps = condition(params, model, tokens, time_ids([(1024, 1024)] * 2)), plan(model.scheduler, 4)
    noise = draw(noise_keys(texts, seeds), model.latents(1024, 1024), steps.draws)
    images = sample(params, model, told, noise, steps)

The parameters of each part hang under the name of its folder, and its tensors' names in the table begin with it:
"unet.conv_in.weight".
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.models.clip import text
from jevomerge.models.clip.config import TextConfig
from jevomerge.models.diffusion import vae
from jevomerge.models.diffusion.config import UNetConfig, VaeConfig
from jevomerge.models.diffusion.parts import Config, note_unread, read_config, specs
from jevomerge.models.diffusion.scheduler import Scheduler, Steps, read_scheduler
from jevomerge.models.diffusion.unet import Condition, denoise
from jevomerge.models.fields import Fields
from jevomerge.models.layers import Params
from jevomerge.models.model import Denoiser, Stackless
from jevomerge.models.specs import ParamSpec
from jevomerge.models.tree import Tree
from jevomerge.schema import Notes

XL, PLAIN = "StableDiffusionXLPipeline", "StableDiffusionPipeline"
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
ENCODERS = ("text_encoder", "text_encoder_2")


@dataclasses.dataclass(frozen=True)
class Pipeline(Stackless):
    """Stable Diffusion XL, 1.5 or 2 as a `models.model.Denoiser`."""

    unet: UNetConfig
    text_encoders: tuple[TextConfig, ...]  # one, or SDXL's two
    vae: VaeConfig | None  # None: latents are pictures
    scheduler: Scheduler
    pooled_from: int | None = None  # 1 or 2: the encoder whose pooled vector SDXL's U-Net is told
    zeros_for_empty: bool = False  # the empty negative prompt is zeros, not the encoders' reading of ""
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, files: Mapping[str, Any], pooled_from: int | None = None, notes: Notes | None = None) -> Pipeline:
        """What the files of a pipeline's folder describe.

        Args:
            files: {"model_index.json": ..., "unet/config.json": ..., ...}, names from the folder on.
            pooled_from: which text encoder's pooled vector the U-Net is told, where both have one.
            notes: where keys go that nobody reads.

        Raises:
            InputError: for a part, a key or a value that is not supported, and for parts that do not fit each other.
        """
        index = Fields(_file(files, INDEX), INDEX)
        index.defaults = {"force_zeros_for_empty_prompt": True}
        index.expect("_class_name", XL, PLAIN)
        xl = index.text("_class_name") == XL

        def part(name: str) -> Any:
            where = f"{name}/config.json"
            return read_config(name, _file(files, where), where, notes)

        noise = Fields(_file(files, SCHEDULER), SCHEDULER)
        scheduler, encoders = read_scheduler(noise), tuple(map(part, ENCODERS[: 1 + xl]))
        note_unread(noise, notes)
        model = cls(
            unet=part("unet"),
            text_encoders=encoders,
            vae=part("vae") if any(index.get("vae") or ()) else None,
            scheduler=scheduler,
            pooled_from=_pooled_from(encoders, pooled_from) if xl else None,
            zeros_for_empty=xl and index.flag("force_zeros_for_empty_prompt"),
            files=files,
        )
        _check(model)
        return model

    @property
    def parts(self) -> dict[str, Config]:
        """{name: what it is} of the parts that have parameters."""
        return {"unet": self.unet, **dict(self._encoders), **({"vae": self.vae} if self.vae else {})}

    @property
    def _encoders(self) -> list[tuple[str, TextConfig]]:
        return list(zip(ENCODERS, self.text_encoders, strict=False))

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table of all parts, sorted by path."""
        return tuple(sorted((s for part, c in self.parts.items() for s in part_specs(part, c)), key=lambda s: s.path))

    def unlike(self, other: Any) -> dict[str, bool]:
        """Fields of the parts' files in which they differ; of schedulers only what a U-Net was trained for matters."""
        if not isinstance(other, Pipeline) or self.parts.keys() != other.parts.keys():
            return {"the parts": False}
        found: dict[str, bool] = {}
        for part, config in self.parts.items():
            its: Any = other.parts[part]
            found |= {f"{part}: {field}": False for field in _differing(config, its)}
        for field in _differing(self.scheduler, other.scheduler):
            found[f"scheduler: {field}"] = field not in ("prediction_type", "rescale_betas_zero_snr")
        return found

    def latents(self, height: int, width: int) -> tuple[int, int, int]:
        """Rows, columns and channels of the latents of a picture.

        Raises:
            InputError: for a size that the parts cannot halve as often as they do.
        """
        scale = self.vae.scale if self.vae else 1
        step = scale * 2 ** (len(self.unet.block_out_channels) - 1)
        if height % step or width % step or min(height, width) < step:
            raise InputError(f"size: {height} x {width}: must be multiples of {step} for this model")
        return height // scale, width // scale, self.unet.in_channels

    def condition(self, params: Params, tokens: Sequence[Array], sizes: Array | None, dtype: Any) -> Condition:
        """What the U-Net is told of texts; see `condition`."""
        encoders = [(Tree(params[part]), c, ids) for (part, c), ids in zip(self._encoders, tokens, strict=True)]
        if self.pooled_from is None:  # Stable Diffusion 1.5 and 2 look at what the norm after the last block makes
            tree, c, ids = encoders[0]
            return Condition(text.normed(tree, c, text.read(tree, c, ids, 0, dtype)[0]))
        seen = [text.read(*encoder, 1, dtype) for encoder in encoders]
        chosen = self.pooled_from - 1
        pooled = text.pooled(*encoders[chosen], seen[chosen][1])
        return Condition(jnp.concatenate([hidden for hidden, _ in seen], axis=-1), pooled, sizes)

    def denoise(self, params: Params, x: Array, t: Array, told: Condition) -> Array:
        """(B, h, w, channels) in the dtype of the activations at time steps t -> what the U-Net says of them."""
        return denoise(Tree(params["unet"]), self.unet, x, t, told)

    def decode(self, params: Params, x: Array) -> Array:
        """(B, h, w, channels) latents without noise -> (B, H, W, 3) float32, colours from 0 to 1.

        One after the other: where pictures are large enough to matter, each fills a device on its own.
        """
        if self.vae is not None:
            c, tree = self.vae, Tree(params["vae"])
            x = x.astype(jnp.float32) if c.force_upcast and x.dtype == jnp.float16 else x
            x = jax.lax.map(lambda z: vae.decode(tree, c, z[None])[0], x)
        return jnp.clip(x.astype(jnp.float32) / 2 + 0.5, 0, 1)


@functools.cache
def part_specs(part: str, config: Config) -> tuple[ParamSpec, ...]:
    """The table of a part of a pipeline, paths and names beginning with its own."""
    return tuple(
        dataclasses.replace(
            s, path=f"{part}.{s.path}", template=f"{part}.{s.template}", block=s.block and f"{part}.{s.block}"
        )
        for s in specs(config)
    )


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def condition(
    params: Params, model: Denoiser, tokens: Sequence[Array], sizes: Array | None = None, dtype: Any = jnp.float32
) -> Condition:
    """What a U-Net is told of texts.

    Args:
        params: of which those of the U-Net and the autoencoder are not read.
        model: the pipeline.
        tokens: for each text encoder (B, S) int32 of its own tokenizer, padded to `max_position_embeddings`.
        sizes: SDXL: see `time_ids`.
        dtype: of the activations.
    """
    return model.condition(params, tokens, sizes, dtype)


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def sample(
    params: Params,
    model: Denoiser,
    told: Condition,
    noise: Array,
    steps: Steps,
    guidance: Array | float = 0.0,
    against: Condition | None = None,
    dtype: Any = jnp.float32,
) -> Array:
    """Pictures of texts, a pure function of its arguments.

    Args:
        params: of which those of the text encoders are not read.
        model: the pipeline.
        told: of B pictures.
        noise: (steps.draws, B, h, w, channels) float32, of variance one; see `draw`.
        steps: N steps, by `plan`.
        guidance: how far from `against` (Ho & Salimans, 2022).
        against: what the pictures shall not be; None: no guidance, and one pass a step instead of two. Diffusers
            guides where guidance is above 1.
        dtype: of the U-Net's and the autoencoder's activations; what is summed over the steps stays float32.

    Returns:
        (B, H, W, 3) float32, colours from 0 to 1.
    """
    return model.decode(params, denoised(params, model, told, noise, steps, guidance, against, dtype).astype(dtype))


def denoised(
    params: Params,
    model: Denoiser,
    told: Condition,
    noise: Array,
    steps: Steps,
    guidance: Array | float = 0.0,
    against: Condition | None = None,
    dtype: Any = jnp.float32,
) -> Array:
    """(B, h, w, channels) float32 latents: what `sample` decodes."""
    both = told if against is None else jax.tree.map(lambda *c: jnp.concatenate(c), against, told)

    def step(i: Array, x: Array) -> Array:
        shown = (x * steps.shown[i]).astype(dtype)
        if against is None:
            y = model.denoise(params, shown, steps.t[i], both)
        else:
            away, y = jnp.split(model.denoise(params, jnp.concatenate([shown] * 2), steps.t[i], both), 2)
            y = away + jnp.asarray(guidance, dtype) * (y - away)
        x = steps.keep[i] * x + steps.add[i] * y.astype(jnp.float32)
        return x if steps.fresh is None else x + steps.fresh[i] * noise[1 + i]

    if len(noise) != steps.draws:
        raise ValueError(f"noise {noise.shape}: must be drawn {steps.draws} times")
    return jax.lax.fori_loop(0, len(steps.t), step, noise[0] * steps.start)


def time_ids(sizes: Sequence[tuple[int, int]]) -> Array:
    """(B, 6) of pictures of these (height, width), uncut, as SDXL is told them."""
    return jnp.array([(*size, 0, 0, *size) for size in sizes], jnp.float32)


def noise_keys(prompts: Sequence[str], seeds: Sequence[int]) -> Array:
    """(B,) keys of the noise of pictures, each of its prompt and its seed alone: whoever draws it, it is the same."""
    names = (f"{seed}\0{prompt}".encode() for prompt, seed in zip(prompts, seeds, strict=True))
    digests = b"".join(hashlib.blake2s(name, digest_size=8).digest() for name in names)
    return jax.random.wrap_key_data(jnp.array(np.frombuffer(digests, "<u4").reshape(-1, 2)), impl="threefry2x32")


def draw(keys: Array, shape: tuple[int, int, int], draws: int = 1) -> Array:
    """(draws, B, *shape) float32 noise of B pictures, each of its own key, whatever else is drawn beside it."""
    return jax.vmap(lambda key: jax.random.normal(key, (draws, *shape)), out_axes=1)(keys)


def _file(files: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in files:
        raise InputError(f"{name}: missing; the pipeline's folder is incomplete")
    found: Mapping[str, Any] = files[name]
    return found


def _differing(one: Any, other: Any) -> list[str]:
    fields = [f.name for f in dataclasses.fields(one) if f.compare]
    return [name for name in fields if getattr(one, name) != getattr(other, name)]


def _pooled_from(encoders: Sequence[TextConfig], given: int | None) -> int:
    """Which encoder's pooled vector the U-Net is told.

    SDXL's first encoder has none. Where somebody put one that has, as in EvoSDXL-JP, diffusers takes the first since
    January 2025 and took the last before: nobody can tell which a model was made for.
    """
    having = [i for i, c in enumerate(encoders, 1) if c.projection_dim]
    if given is None and len(having) > 1:
        raise InputError(
            "both text encoders have a pooled vector: say `pooled_from: 2`, as SDXL and models before 2025, or 1"
        )
    chosen = given if given is not None else next(iter(having), None)
    if chosen not in having:
        raise InputError(f"pooled_from: {chosen}: of the text encoders {having or 'none'} have a `text_projection`")
    return chosen


def _check(model: Pipeline) -> None:
    """That what one part makes is what the next one takes."""
    unet, encoders = model.unet, model.text_encoders
    width = sum(c.hidden_size for c in encoders)
    if width != unet.cross_attention_dim:
        raise InputError(
            f"unet/config.json: cross_attention_dim is {unet.cross_attention_dim}, of the text encoders {width}"
        )
    if (model.pooled_from is not None) != (unet.addition_time_embed_dim is not None):
        raise InputError(f"unet/config.json: addition_embed_type is not that of {INDEX}'s class")
    if model.pooled_from is not None and unet.addition_time_embed_dim is not None:
        pooled = encoders[model.pooled_from - 1].projection_dim
        told = pooled + 6 * unet.addition_time_embed_dim
        if told != unet.projection_class_embeddings_input_dim:
            raise InputError(
                "unet/config.json: projection_class_embeddings_input_dim is "
                f"{unet.projection_class_embeddings_input_dim}, of text encoder {model.pooled_from} with sizes {told}"
            )
    channels = model.vae.latent_channels if model.vae else unet.in_channels
    if not unet.in_channels == unet.out_channels == channels:
        raise InputError(
            f"unet/config.json: in_channels {unet.in_channels}, out_channels {unet.out_channels}: must be the "
            f"latents' {channels}; models for inpainting or depth are not supported"
        )
