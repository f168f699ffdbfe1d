"""Steps against the schedulers of diffusers, on latents and answers of a U-Net that are given."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, LCMScheduler

from jevomerge import InputError
from jevomerge.models.diffusion.scheduler import EULER, LCM, lightning, plan, read_scheduler
from jevomerge.models.fields import Fields

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, NumPy 2

SDXL = {  # as published
    "_class_name": EULER,
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def read(values, kind=None):
    fields = Fields(values, "scheduler_config.json")
    scheduler = read_scheduler(fields, kind)
    assert not fields.unread()
    return scheduler


def compare(theirs, ours, steps):
    """A whole walk, from noise on."""
    rng = np.random.default_rng(0)
    noise, answers = rng.normal(size=(2, 3)), rng.normal(size=(steps, 2, 3))
    theirs.set_timesteps(steps)
    table = plan(ours, steps)
    np.testing.assert_array_equal(table.t, theirs.timesteps.numpy())
    start = torch.tensor(noise, dtype=torch.float64) * theirs.init_noise_sigma
    np.testing.assert_allclose(noise * table.start, start, rtol=1e-5)
    expected, found, generator = start, start.numpy(), torch.Generator().manual_seed(0)
    for i, t in enumerate(theirs.timesteps):
        shown = theirs.scale_model_input(expected, t).numpy()
        np.testing.assert_allclose(found * table.shown[i], shown, rtol=1e-4, atol=1e-5)
        state = generator.get_state()
        fresh = torch.randn((2, 3), generator=generator, dtype=torch.float64).numpy()
        generator.set_state(state)
        expected = theirs.step(torch.tensor(answers[i]), t, expected, generator=generator).prev_sample
        found = table.keep[i] * found + table.add[i] * answers[i]
        found = found if table.fresh is None else found + table.fresh[i] * fresh
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_euler(spacing, prediction, steps):
    values = SDXL | {"timestep_spacing": spacing, "prediction_type": prediction}
    compare(EulerDiscreteScheduler.from_config(values), read(values), steps)


def test_velocities_from_pure_noise():
    """NoobAI's v-prediction: nothing of the picture is left at the first step."""
    values = SDXL | {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    compare(EulerDiscreteScheduler.from_config(values), read(values), 5)
    np.testing.assert_allclose(plan(read(values), 5).start, 4096, rtol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_latent_consistency(prediction, steps):
    values = SDXL | {"prediction_type": prediction}
    compare(LCMScheduler.from_config(values), read(values, LCM), steps)


@pytest.mark.parametrize(("kind", "theirs"), [(EULER, EulerDiscreteScheduler), (LCM, LCMScheduler)])
def test_what_files_leave_out_is_what_the_class_takes(kind, theirs):
    compare(theirs(), read({"_class_name": kind}), 4)


def test_the_rule_of_lightning():
    scheduler = read(SDXL)
    table = plan(lightning(scheduler, 4), 4)
    np.testing.assert_array_equal(table.t, [999, 749, 499, 249])
    np.testing.assert_allclose(table.start, 14.614647, rtol=1e-6)  # as the paper's repository has it
    one = {"timestep_spacing": "trailing", "prediction_type": "sample"}
    compare(EulerDiscreteScheduler.from_config(SDXL, **one), lightning(scheduler, 1), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"timestep_type": "continuous"}, "timestep_type"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
        ({"prediction_type": "flow"}, "prediction_type"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"sigma_max": 80.0}, "sigma_max"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        read(SDXL | change)


def test_more_steps_than_there_are():
    with pytest.raises(InputError, match="steps: 51: must be 1 to 50"):
        plan(read(SDXL, LCM), 51)
