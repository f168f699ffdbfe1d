"""Pipelines of diffusers' own making against diffusers: text encoders, U-Net, autoencoder, whole pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jevomerge.models.diffusion import vae
from jevomerge.models.diffusion.parts import specs
from jevomerge.models.diffusion.pipeline import Pipeline, condition, sample, time_ids
from jevomerge.models.diffusion.scheduler import plan
from jevomerge.models.diffusion.unet import Condition, denoise
from jevomerge.models.tree import Tree
from jevomerge.schema import Notes
from tests.diffusion import files_of, load, make, nhwc

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, NumPy 2
PROMPTS = ["柴犬", "a cat on a hill"]
SIZE = 32
GUIDANCE = 3.0


@pytest.fixture(scope="module", params=["xl", "plain"])
def case(request, tmp_path_factory):
    """A pipeline of diffusers, ours read from its folder, its parameters."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = make(folder, xl=request.param == "xl")
    theirs.save_pretrained(folder / "saved")
    notes = Notes()
    model = Pipeline.read(files_of(folder / "saved"), notes=notes)
    assert not list(notes)
    return theirs, model, {part: load(specs(c), getattr(theirs, part)) for part, c in model.parts.items()}


xl = pytest.mark.parametrize("case", ["xl"], indirect=True)


def tokens(theirs, prompts):
    """What each text encoder reads."""
    options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "np"}
    words = [theirs.tokenizer, *([theirs.tokenizer_2] if hasattr(theirs, "tokenizer_2") else [])]
    return [jnp.asarray(w(prompts, **options).input_ids, jnp.int32) for w in words]


def told(case, prompts=PROMPTS):
    theirs, model, params = case
    return condition(params, model, tokens(theirs, prompts), time_ids([(SIZE, SIZE)] * 2))


def latents(seed=0, low=False):
    """Of two pictures; `low`: with so little variance that the eps of norms shows."""
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    return x * 0.003 if low else x


def images(case, guidance, dtype=jnp.float32):
    """Ours in four steps."""
    _, model, params = case
    texts = told(case)
    empty = texts.zeros() if model.zeros_for_empty else told(case, ["", ""])
    steps = plan(model.scheduler, 4)
    return sample(
        params, model, texts, nhwc(latents())[None], steps, jnp.float32(guidance), empty if guidance else None, dtype
    )


def expected(case, guidance):
    with torch.no_grad():
        return case[0](
            PROMPTS,
            num_inference_steps=4,
            guidance_scale=guidance,
            height=SIZE,
            width=SIZE,
            latents=latents(),
            output_type="np",
        ).images


def test_texts(case):
    theirs, _, _ = case
    with torch.no_grad():
        found = theirs.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    ours = told(case)
    np.testing.assert_allclose(ours.context, found[0], atol=1e-5)
    if ours.pooled is not None:
        np.testing.assert_allclose(ours.pooled, found[2], atol=1e-5)
        assert np.ptp(ours.pooled) > 1


def test_the_pooled_vector_that_diffusers_takes_of_two(tmp_path):
    """EvoSDXL-JP's first text encoder has one too: since January 2025 that is taken, before the second's was."""
    theirs = make(tmp_path, first_projected=True)
    theirs.save_pretrained(tmp_path / "saved")
    first, second = (Pipeline.read(files_of(tmp_path / "saved"), pooled_from=n) for n in (1, 2))
    params = {part: load(specs(c), getattr(theirs, part)) for part, c in first.parts.items() if "text" in part}
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        found = theirs.encode_prompt(PROMPTS, **options)[2]
        last = theirs.text_encoder_2(torch.tensor(np.asarray(tokens(theirs, PROMPTS)[1]), dtype=torch.long)).text_embeds
    np.testing.assert_allclose(told((theirs, first, params)).pooled, found, atol=1e-5)
    np.testing.assert_allclose(told((theirs, second, params)).pooled, last, atol=1e-5)


@pytest.mark.parametrize("case", ["xl", pytest.param("plain", marks=pytest.mark.slow)], indirect=True)
def test_unet(case):
    theirs, model, params = case
    rng = np.random.default_rng(0)
    width = model.unet.cross_attention_dim
    context, pooled = rng.normal(size=(2, 7, width)), rng.normal(size=(2, 40))
    texts = Condition(*(jnp.asarray(x, jnp.float32) for x in (context, pooled)), time_ids([(64, 48), (512, 1024)]))
    run = jax.jit(lambda x, t, texts: denoise(Tree(params["unet"]), model.unet, x, t, texts))
    for low in (False, True):
        x, t = latents(1, low), [749, 249]
        with torch.no_grad():
            found = theirs.unet(
                x,
                torch.tensor(t),
                encoder_hidden_states=torch.tensor(np.asarray(texts.context)),
                added_cond_kwargs={
                    "text_embeds": torch.tensor(np.asarray(texts.pooled)),
                    "time_ids": torch.tensor(np.asarray(texts.time_ids)),
                },
            ).sample
        ours = run(nhwc(x), jnp.asarray(t, jnp.float32), texts)
        np.testing.assert_allclose(ours, nhwc(found), atol=1e-5)
        assert float(jnp.std(ours)) > 0.1


@xl
def test_autoencoder(case):
    theirs, model, params = case
    tree, c, x = Tree(params["vae"]), model.vae, latents(2)
    pixels = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        decoded = theirs.vae.decode(x / c.scaling_factor).sample
        encoded = theirs.vae.encode(pixels).latent_dist.parameters
    np.testing.assert_allclose(jax.jit(lambda x: vae.decode(tree, c, x))(nhwc(x)), nhwc(decoded), atol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda x: vae.encode(tree, c, x))(nhwc(pixels)), nhwc(encoded), atol=1e-4)


@pytest.mark.parametrize("case", ["xl", pytest.param("plain", marks=pytest.mark.slow)], indirect=True)
def test_pictures_in_four_steps(case):
    found = expected(case, 0.0)
    np.testing.assert_allclose(images(case, 0.0), found, atol=1e-4)
    assert np.std(found) > 0.1


@pytest.mark.parametrize("case", ["plain", pytest.param("xl", marks=pytest.mark.slow)], indirect=True)
def test_pictures_with_guidance(case):
    found = expected(case, GUIDANCE)
    np.testing.assert_allclose(images(case, GUIDANCE), found, atol=2e-4)
    assert np.abs(found - expected(case, 0.0)).max() > 0.01  # a random model hardly listens


@xl
def test_pictures_in_bfloat16(case):
    """Colours, from 0 to 1, are off by less than two hundredths."""
    error = np.abs(images(case, 0.0, jnp.bfloat16) - expected(case, 0.0))
    assert error.max() < 0.02
    assert error.mean() < 0.003
