"""config.json of Idefics3 and SmolVLM, and what is refused."""

import numpy as np
import pytest

from jevomerge import InputError
from jevomerge.models.fields import Fields
from jevomerge.models.idefics3.idefics3 import Idefics3
from tests.seeing import IDEFICS3, TEXT


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": {"shortest_edge": 56}}, "supported are a number, longest_edge"),
        ({"max_image_size": {"height": 28, "width": 28}}, "must be that of the longest_edge"),
        ({"max_image_size": {"longest_edge": 56}}, "max_image_size is not the image_size of the model's tower, 28"),
        ({"do_normalize": False}, "do_normalize: False"),
        ({"image_processor_type": "CLIPImageProcessor"}, "only Idefics3, SmolVLM"),
    ],
)
def test_processors_that_do_not_fit_are_refused(values, words):
    config = {"model_type": "idefics3", "vision_config": IDEFICS3, "text_config": TEXT}
    model = Idefics3.read(Fields(config, "config.json"))
    common = {"image_processor_type": "Idefics3ImageProcessor", "max_image_size": {"longest_edge": 28}}
    with pytest.raises(InputError, match=r"^preprocessor_config\.json: ") as caught:
        model.processor(common | values)
    assert words in str(caught.value)


def test_the_config_of_the_first_smolvlm_is_read():
    """With what its text_config says of a resampler that it does not have."""
    fields = Fields(
        {
            "model_type": "idefics3",
            "image_token_id": 49190,
            "scale_factor": 4,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": 49280,
            "text_config": {
                "_flash_attn_2_enabled": True,
                "architectures": ["VLlama3ForCausalLM"],
                "head_dim": 64,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "is_llama_config": True,
                "max_position_embeddings": 8192,
                "model_type": "llama",
                "neftune_noise_alpha": 0.0,
                "num_attention_heads": 9,
                "num_hidden_layers": 30,
                "num_key_value_heads": 3,
                "perceiver_config": {"model_type": "vllama3"},
                "pixel_shuffle_factor": 4,
                "qk_layer_norms": False,
                "rms_norm_eps": 1e-5,
                "rope_interleaved": False,
                "rope_theta": 100000,
                "use_resampler": False,
                "vocab_size": 49280,
            },
            "vision_config": {
                "hidden_size": 768,
                "image_size": 512,
                "max_image_size": {"longest_edge": 512},
                "model_type": "idefics3",
                "num_attention_heads": 12,
                "patch_size": 16,
                "size": {"longest_edge": 2048},
                "use_base_siglip": False,
            },
        },
        "config.json",
    )
    model = Idefics3.read(fields)
    assert not fields.unread()
    assert sum(int(np.prod(s.leaf_shape)) for s in model.specs) == 256_484_928  # SmolVLM-256M
    assert len(model.placeholder((3, 4), ".").split(".")) - 1 == 13 * 64


def test_patches_that_do_not_fold_are_refused():
    config = {"model_type": "smolvlm", "vision_config": IDEFICS3, "scale_factor": 3}
    with pytest.raises(InputError, match="does not divide the 4 patches of a side"):
        Idefics3.read(Fields(config, "config.json"))
