"""From noise to latents: a scheduler_config.json, and the numbers of its steps.

By Euler's method (Karras et al., 2022) and in latent consistency models (Luo et al., 2023) alike, the next x is a sum
of x, of what the U-Net says of it and of fresh noise, with weights that depend on the step alone. So a scheduler is a
table, made once on the host, and there is one loop for all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.models.diffusion.schema import Rule
from jevomerge.models.fields import Fields

Prediction = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["linspace", "leading", "trailing"]
ZERO_SNR = 2.0**-24  # what is left of a picture in pure noise, so that no sigma is infinite
SIGMA_DATA = 0.5  # of consistency models

EULER, LCM = "EulerDiscreteScheduler", "LCMScheduler"
RULES: dict[Rule, dict[str, str]] = {  # what they change in a scheduler_config.json
    "euler": {"_class_name": EULER},
    "lightning": {"_class_name": EULER, "timestep_spacing": "trailing"},
    "lcm": {"_class_name": LCM},
}
# What the classes of diffusers take for absent keys, and options by the one value that is implemented.
COMMON = {"num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 0, "rescale_betas_zero_snr": False}
DEFAULTS: dict[str, dict[str, Any]] = {
    EULER: COMMON | {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "linspace"},
    LCM: COMMON
    | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
    | {"original_inference_steps": 50, "timestep_scaling": 10.0},
}
ONLY: dict[str, dict[str, Any]] = {
    EULER: {
        "interpolation_type": "linear", "use_karras_sigmas": False, "use_exponential_sigmas": False,
        "use_beta_sigmas": False, "timestep_type": "discrete", "final_sigmas_type": "zero", "sigma_min": None,
        "sigma_max": None,
    },
    LCM: {"clip_sample": False, "thresholding": False},
}  # fmt: skip
# Keys of other schedulers, which files keep when one is made from another.
INERT = (
    "clip_sample", "clip_sample_range", "sample_max_value", "set_alpha_to_one", "skip_prk_steps", "thresholding",
    "dynamic_thresholding_ratio", "interpolation_type", "use_karras_sigmas",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """What a scheduler_config.json says."""

    kind: str  # EULER or LCM
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: Literal["linear", "scaled_linear"]
    prediction_type: Prediction  # what the U-Net says: the noise, the velocity, or the picture
    timestep_spacing: Spacing  # Euler's, see table 2 of Lin et al. (2023)
    steps_offset: int
    rescale_betas_zero_snr: bool
    original_inference_steps: int = 50  # LCM: of the schedule it was distilled on
    timestep_scaling: float = 10.0  # LCM


@flax.struct.dataclass
class Steps:
    """N steps. The U-Net is shown `shown * x`, and says y; then x becomes `keep * x + add * y + fresh * noise`."""

    t: Array  # (N,) float32, as all: the time step of training
    shown: Array
    keep: Array
    add: Array
    fresh: Array | None  # None: the first noise is all there is
    start: Array  # () times that is the first x

    @property
    def draws(self) -> int:
        """How often noise is drawn."""
        return 1 if self.fresh is None else 1 + len(self.t)


def read_scheduler(f: Fields, kind: str | None = None) -> Scheduler:
    """A scheduler_config.json, as that of its own class or of another `kind`, as diffusers' `from_config` would.

    Raises:
        InputError: for a class, an option or a value that is not supported, by name.
    """
    if kind is None:
        f.expect("_class_name", *DEFAULTS)
        kind = f.text("_class_name")
    f.defaults = DEFAULTS[kind]
    for key, allowed in ONLY[kind].items():
        f.expect(key, *([] if allowed is None else [allowed]))
    f.expect("trained_betas")
    f.expect("beta_schedule", "linear", "scaled_linear")
    f.expect("prediction_type", "epsilon", "v_prediction", "sample")
    f.expect("timestep_spacing", "linspace", "leading", "trailing")
    for key in INERT:
        f.get(key)
    offset: Any = f.get("steps_offset")
    if type(offset) is not int or offset < 0:
        raise f.wrong("steps_offset", offset, "a whole number from 0")
    lcm: dict[str, Any] = {}
    if kind == LCM:
        lcm = {
            "original_inference_steps": f.integer("original_inference_steps"),
            "timestep_scaling": f.number("timestep_scaling"),
        }
    prediction: Any = f.text("prediction_type")
    spacing: Any = f.text("timestep_spacing")
    schedule: Any = f.text("beta_schedule")
    return Scheduler(
        kind=kind,
        num_train_timesteps=f.integer("num_train_timesteps"),
        beta_start=f.number("beta_start"),
        beta_end=f.number("beta_end"),
        beta_schedule=schedule,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=offset,
        rescale_betas_zero_snr=f.flag("rescale_betas_zero_snr"),
        **lcm,
    )


def lightning(scheduler: Scheduler, steps: int) -> Scheduler:
    """The rule of SDXL-Lightning (Lin et al., 2024) for a model distilled to so many steps; it takes no guidance.

    Euler from the very end of the noise; the model of one step says what the picture is.
    """
    prediction: Prediction = "sample" if steps == 1 else scheduler.prediction_type
    return dataclasses.replace(scheduler, kind=EULER, timestep_spacing="trailing", prediction_type=prediction)


def plan(scheduler: Scheduler, steps: int) -> Steps:
    """The numbers of `steps` steps.

    Raises:
        InputError: for more steps than the scheduler has.
    """
    limit = scheduler.original_inference_steps if scheduler.kind == LCM else scheduler.num_train_timesteps
    if not 1 <= steps <= limit:
        raise InputError(f"steps: {steps}: must be 1 to {limit}, as scheduler_config.json says")
    return _lcm(scheduler, steps) if scheduler.kind == LCM else _euler(scheduler, steps)


def pictures_left(s: Scheduler) -> np.ndarray:
    """(num_train_timesteps,) how much of a picture, by variance, is left after each step of noise: `alphas_cumprod`.

    In float32 and in diffusers' order, whose rounding the last of them feel.
    """
    power = {"linear": 1, "scaled_linear": 2}[s.beta_schedule]
    first, last = (float(beta ** (1 / power)) for beta in (s.beta_start, s.beta_end))
    betas = np.linspace(first, last, s.num_train_timesteps, dtype=np.float32) ** power
    left = np.cumprod(1 - betas, dtype=np.float32)
    if s.rescale_betas_zero_snr:  # algorithm 1 of Lin et al. (2023)
        root = np.sqrt(left)
        left = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        left[-1] = ZERO_SNR
    return left


def _euler(s: Scheduler, steps: int) -> Steps:
    """x lies at sigma times the noise: x = picture + sigma * noise."""
    train, left = s.num_train_timesteps, pictures_left(s).astype(np.float64)
    t: np.ndarray
    if s.timestep_spacing == "linspace":
        t = np.linspace(0, train - 1, steps)[::-1]
    elif s.timestep_spacing == "leading":
        t = np.arange(steps)[::-1] * (train // steps) + s.steps_offset
    else:
        t = np.round(train - np.arange(steps) * (train / steps)) - 1
    sigma = np.interp(t, np.arange(train), np.sqrt((1 - left) / left))
    onward = np.append(sigma[1:], 0.0)
    start = sigma[0] if s.timestep_spacing != "leading" else np.sqrt(sigma[0] ** 2 + 1)
    # The picture is seen as `x_share * x + y_share * y`; the next x lies between it and x.
    x_share, y_share = {
        "epsilon": (np.ones(steps), -sigma),
        "v_prediction": (1 / (sigma**2 + 1), -sigma / np.sqrt(sigma**2 + 1)),
        "sample": (np.zeros(steps), np.ones(steps)),
    }[s.prediction_type]
    move = 1 - onward / sigma
    return _table(t, 1 / np.sqrt(sigma**2 + 1), 1 - move + move * x_share, move * y_share, None, start)


def _lcm(s: Scheduler, steps: int) -> Steps:
    """x has variance one: x = sqrt(left) * picture + sqrt(1 - left) * noise."""
    every = s.num_train_timesteps // s.original_inference_steps
    distilled = np.arange(1, s.original_inference_steps + 1)[::-1] * every - 1
    t = distilled[np.floor(np.linspace(0, len(distilled), steps, endpoint=False)).astype(int)]
    left = pictures_left(s).astype(np.float64)[t]
    x_share, y_share = {
        "epsilon": (1 / np.sqrt(left), -np.sqrt((1 - left) / left)),
        "v_prediction": (np.sqrt(left), -np.sqrt(1 - left)),
        "sample": (np.zeros(steps), np.ones(steps)),
    }[s.prediction_type]
    scaled = t * s.timestep_scaling
    skip, out = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)
    onward = np.append(left[1:], 1.0)  # the last step adds no noise
    picture = np.sqrt(onward)
    keep, add = picture * (skip + out * x_share), picture * out * y_share
    return _table(t, np.ones(steps), keep, add, np.sqrt(1 - onward), 1.0)


def _table(*columns: Any) -> Steps:
    table: Steps = jax.tree.map(lambda column: jnp.asarray(column, jnp.float32), Steps(*columns))
    return table
