"""config.json of the parts: what files leave out, what is refused, what does not fit together."""

import inspect

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from jevomerge import InputError
from jevomerge.models.clip.config import read_text
from jevomerge.models.diffusion.config import read_unet, read_vae
from jevomerge.models.diffusion.parts import read_config
from jevomerge.models.diffusion.pipeline import Pipeline
from jevomerge.models.fields import Fields
from jevomerge.schema import Notes
from tests.diffusion import PUBLISHED as SDXL


def changed(name, **values):
    return SDXL | {name: SDXL[name] | values}


@pytest.mark.parametrize(
    ("read", "values", "theirs"),
    [
        (read_unet, {}, lambda: UNet2DConditionModel.__init__),
        (read_vae, {}, lambda: AutoencoderKL.__init__),
        (read_text, {"architectures": ["CLIPTextModelWithProjection"]}, lambda: CLIPTextConfig.__init__),
    ],
)
def test_a_config_of_nothing_is_what_the_class_takes_it_for(read, values, theirs):
    ours = read(Fields(values, "config.json"))
    defaults = {p.name: p.default for p in inspect.signature(theirs()).parameters.values()}
    blocks = len(getattr(ours, "block_out_channels", ()))
    for name, value in vars(ours).items():
        if (default := defaults[name]) is not None:
            assert value in (default, (default,) * blocks), name


def test_keys_that_nobody_knows_are_noted():
    notes = Notes()
    read_config("unet", SDXL["unet/config.json"] | {"fancy_option": 3}, "unet/config.json", notes)
    Pipeline.read(changed("scheduler/scheduler_config.json", solver_order=2), notes=notes)
    assert list(notes) == [
        "unet/config.json: fancy_option: not known; ignored",
        "scheduler/scheduler_config.json: solver_order: not known; ignored",
    ]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"_class_name": "FluxTransformer2DModel"}, "_class_name: FluxTransformer2DModel"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim: 256"),
        ("unet", {"mid_block_type": None}, "mid_block_type: null"),
        ("unet", {"norm_num_groups": None}, "norm_num_groups: null"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet", {"reverse_transformer_layers_per_block": [[1]]}, "reverse_transformer_layers_per_block"),
        ("unet", {"addition_embed_type": "image"}, "addition_embed_type"),
        ("unet", {"attention_head_dim": [5, 10]}, "3 of them, one for each block"),
        ("unet", {"attention_head_dim": 7}, "a divisor of 320 channels"),
        ("unet", {"norm_num_groups": 48}, "a divisor of 320 channels"),
        ("unet", {"down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        ("unet", {"up_block_types": ["UpBlock2D"]}, "as many as down_block_types, 3"),
        ("unet", {"freq_shift": 2}, "freq_shift"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ("vae", {"shift_factor": 0.1}, "shift_factor"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv"),
        ("vae", {"latents_mean": [0.0]}, "a number for each of latent_channels"),
        ("text_encoder", {"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ("text_encoder", {"model_type": "t5"}, "model_type: t5"),
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act"),
        ("text_encoder", {"num_attention_heads": 7}, "a divisor of 768 channels"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(part, change, message):
    with pytest.raises(InputError, match=f"config.json: .*{message}"):
        read_config(part, SDXL[f"{part}/config.json"] | change, "config.json")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({k: v for k, v in SDXL.items() if k != "text_encoder_2/config.json"}, "text_encoder_2/config.json: missing"),
        ({k: v for k, v in SDXL.items() if k != "vae/config.json"}, "vae/config.json: missing"),
        (changed("model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
        (changed("model_index.json", _class_name="StableDiffusionPipeline"), "cross_attention_dim is 2048"),
        (
            changed("text_encoder/config.json", hidden_size=1536),
            "cross_attention_dim is 2048, of the text encoders 2816",
        ),
        (changed("text_encoder_2/config.json", projection_dim=768), "projection_class_embeddings_input_dim"),
        (changed("unet/config.json", in_channels=9), "inpainting"),
        (changed("unet/config.json", addition_embed_type=None), "addition_embed_type"),
        (changed("text_encoder/config.json", architectures=["CLIPTextModelWithProjection"]), "pooled_from: 2"),
    ],
)
def test_parts_that_do_not_fit(files, message):
    with pytest.raises(InputError, match=message):
        Pipeline.read(files)


def test_the_pooled_vector_is_an_explicit_choice():
    """EvoSDXL-JP's first text encoder has a projection of its own."""
    files = changed("text_encoder/config.json", architectures=["CLIPTextModelWithProjection"], projection_dim=1280)
    assert Pipeline.read(files, pooled_from=2).pooled_from == 2
    assert Pipeline.read(files, pooled_from=1).pooled_from == 1
    with pytest.raises(InputError, match="pooled_from: 1: of the text encoders \\[2\\] have"):
        Pipeline.read(SDXL, pooled_from=1)


def test_sizes():
    with pytest.raises(InputError, match="size: 1000 x 1024: must be multiples of 32"):
        Pipeline.read(SDXL).latents(1000, 1024)


def test_what_differs_between_pipelines():
    model = Pipeline.read(SDXL)
    velocity = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction", "steps_offset": 1}
    other = Pipeline.read(
        changed("unet/config.json", norm_eps=1e-6, sample_size=64) | {"scheduler/scheduler_config.json": velocity}
    )
    assert model.unlike(Pipeline.read(changed("unet/config.json", sample_size=64))) == {}
    assert model.unlike(other) == {
        "unet: norm_eps": False,
        "scheduler: prediction_type": False,
        "scheduler: steps_offset": True,
    }
