"""config.json and names of tensors: sparse and old ones, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from jevomerge import InputError
from jevomerge.models.fields import Fields
from jevomerge.models.llava.llava import Llava, names_in
from jevomerge.models.vision.specs import UNREAD
from tests.seeing import CLIP, NEXT, PINPOINTS, SIGLIP, TEXT, make, tensors_of

BASE = {"model_type": "llava", "vision_config": CLIP, "text_config": TEXT, "image_token_index": 90}


def read(values):
    fields = Fields(values, "config.json")
    model = Llava.read(fields)
    assert not fields.unread()
    return model


def test_a_config_of_nothing_is_what_transformers_takes_it_for():
    """The defaults of the class, and of the classes of its parts."""
    model, theirs = read({"model_type": "llava"}), LlavaConfig()
    for ours, config in ((model.config.vision, theirs.vision_config), (model.text.config, theirs.text_config)):
        for key in set(vars(ours)) & set(config.to_dict()) - {"hidden_act"}:
            assert getattr(ours, key) == getattr(config, key), key
    assert (model.config.per_view, model.config.layers, model.image_token) == (576, (23,), 32000)


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_sparse_vision_configs_have_the_defaults_of_their_class(kind):
    ours, theirs = (
        read(BASE | {"vision_config": {"model_type": kind}}).config.vision,
        LlavaConfig(vision_config={"model_type": kind}).vision_config,
    )
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert (ours.patch_size, ours.layer_norm_eps) == (theirs.patch_size, theirs.layer_norm_eps)


def test_the_released_evovlm():
    """Its config.json: few keys of the text, none of rope; `image_grid_pinpoints` that its class ignores."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    model = read(
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_grid_pinpoints": [[336, 672]],
            "image_token_index": 32000,
            "model_type": "llava",
            "pad_token_id": 32001,
            "projector_hidden_act": "gelu",
            "text_config": {
                "architectures": ["MistralForCausalLM"],
                "intermediate_size": 14336,
                "max_position_embeddings": 32768,
                "model_type": "mistral",
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-5,
                "sliding_window": 4096,
                "torch_dtype": "float16",
                "vocab_size": 32064,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_image_newline_parameter": True,
            "vision_config": vision
            | {"image_size": 336, "model_type": "clip_vision_model", "patch_size": 14, "vocab_size": 32000},
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        }
    )
    assert sum(int(np.prod(s.leaf_shape)) for s in model.specs) == 7_566_743_552
    assert model.text.config.kinds[0].window == 4096
    assert model.text.config.kinds[0].rope.theta == 10_000
    assert "image_newline" not in {s.path for s in model.specs}


LAYOUTS = {
    "until 4.51": ("language_model.model.", "language_model.", "vision_tower.vision_model.", ""),
    "4.52 in memory": ("model.language_model.", "", "model.vision_tower.vision_model.", "model."),
    "5 in memory": ("model.language_model.", "", "model.vision_tower.", "model."),
    "saved by 5": ("language_model.model.", "language_model.", "vision_tower.", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_four_layouts_of_names_are_read(layout, tmp_path):
    """Transformers opens a file of these names, and the table has just them."""
    text, head, tower, rest = LAYOUTS[layout]
    model = make("llava_next", tmp_path / "m")
    tensors = tensors_of(tmp_path / "m")
    renamed = {}
    for name, value in tensors.items():
        name = name.replace("language_model.model.", text).replace("language_model.lm_head", f"{head}lm_head")
        name = name.replace("vision_tower.", tower) if name.startswith("vision_tower") else name
        name = rest + name if name.startswith(("multi_modal", "image_newline")) else name
        renamed[name] = value
    save_file(renamed, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    again = type(model).from_pretrained(tmp_path / "m")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    ours = read(config).stored_as([*renamed, f"{tower}embeddings.position_ids"])
    assert {name for spec in ours.specs for name in spec.names()} == renamed.keys()
    assert ours == read(config)  # names are not what a model computes
    assert [s.path for s in ours.specs] == [s.path for s in read(config).specs]


def test_the_table_says_what_parts_are():
    model = read(BASE | NEXT | {"model_type": "llava_next"}).stored_as(["model.language_model.norm.weight"])
    table = {s.path: s for s in model.specs}
    q = table["vision_tower.encoder.layers.self_attn.q_proj.weight"]
    assert q.template == "model.vision_tower.encoder.layers.{layer}.self_attn.q_proj.weight"
    assert (q.shape, q.stack, q.block) == ((32, 32), (("layer", 3),), "vision_tower.encoder.layers")
    assert [axis.parts for axis in q.axes] == [4, 0]
    assert {s.component for s in model.specs if s.role == "other"} == {"vision tower", "projector"}
    text = table["text_model.layers.mlp.up_proj.weight"]
    assert (text.role, text.component, text.block) == ("block", "mlp", "text_model.layers")
    assert text.name((1,)) == "model.language_model.layers.1.mlp.up_proj.weight"
    assert table["text_model.embed_tokens.weight"].vocabulary


@pytest.mark.parametrize("where", ["top", "text"])
def test_a_head_may_be_tied_by_either_config(where, tmp_path):
    tied = {"tie_word_embeddings": True}
    values = BASE | (tied if where == "top" else {"text_config": TEXT | tied})
    LlavaForConditionalGeneration(LlavaConfig(**values)).save_pretrained(tmp_path)
    assert "language_model.lm_head.weight" not in tensors_of(tmp_path)
    ours = read(json.loads((tmp_path / "config.json").read_text()))
    assert {name for spec in ours.specs for name in spec.names()} == tensors_of(tmp_path).keys()


def test_tensors_that_nothing_reads_are_known(tmp_path):
    """SigLIP's pooling head, which files of such models hold."""
    LlavaForConditionalGeneration(
        LlavaConfig(**BASE | {"vision_config": SIGLIP | {"vision_use_head": True}})
    ).save_pretrained(tmp_path)
    ours = read(json.loads((tmp_path / "config.json").read_text())).stored_as(tensors_of(tmp_path))
    rest = tensors_of(tmp_path).keys() - {name for spec in ours.specs for name in spec.names()}
    assert rest
    assert all(name.startswith(ours.names.tower + UNREAD[1].rstrip("*")) for name in rest)


def test_names_of_nothing_are_the_hubs():
    assert names_in([]).of_text("model.norm.weight") == "language_model.model.norm.weight"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vision_feature_layer": -5}, "vision_feature_layer: -5`: the tower has 3 layers"),
        ({"vision_feature_layer": []}, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy: cls"),
        ({"projector_hidden_act": "relu2"}, "projector_hidden_act: relu2"),
        ({"model_type": "llava_next", "vision_feature_select_strategy": "full"}, "`default` with CLIP"),
        ({"model_type": "llava_next", "image_grid_pinpoints": [[28, 57]]}, "multiples of the tower's image_size, 28"),
        ({"vision_config": CLIP | {"model_type": "dinov2"}}, "vision_config: model_type `dinov2`"),
        ({"vision_config": CLIP | {"image_size": [28, 35]}}, "image_size: [28, 35]` must be a whole number"),
        ({"vision_config": CLIP | {"num_attention_heads": 5}}, "hidden_size: 32` must be a multiple of the 5 heads"),
        ({"vision_config": CLIP | {"patch_size": 29}}, "patch_size: 29` must be at most the image_size, 28"),
        ({"vision_config": CLIP | {"num_hidden_layers": "3"}}, "vision_config: `num_hidden_layers: 3` must be"),
        ({"vision_config": 3}, "vision_config: 3` must be an object"),
        ({"text_config": [3]}, "text_config: [3]` must be an object"),
        ({"image_token_index": "<image>"}, "image_token_index: <image>` must be a whole number"),
        ({"vision_config": CLIP | {"num_channels": 1}}, "num_channels: 1"),
        ({"text_config": {"model_type": "bloom"}}, "text_config: model_type `bloom`"),
        ({"text_config": TEXT | {"num_experts": 8}}, "text_config: `num_experts: 8` is not supported"),
        ({"mm_vision_tower": "openai/clip"}, "convert_llava_weights_to_hf.py"),
    ],
)
def test_what_is_not_supported_is_refused(values, words):
    with pytest.raises(InputError, match=r"^config\.json") as caught:
        Llava.read(Fields(BASE | values, "config.json"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("tiled", "values", "words"),
    [
        (False, {"size": 28, "crop_size": 30}, "makes views of 30 x 30, the model's tower takes 28 x 28"),
        (False, {"size": 28, "do_center_crop": False}, "makes views of every shape"),
        (False, {"image_processor_type": "LlavaNextImageProcessor"}, "only CLIP, Siglip, Llava"),
        (True, {"image_processor_type": "CLIPImageProcessor"}, "only LlavaNext"),
        (True, {"image_grid_pinpoints": PINPOINTS[1:]}, "are not those of the model's config.json"),
    ],
)
def test_processors_that_do_not_fit_are_refused(tiled, values, words):
    model = read(BASE | (NEXT | {"model_type": "llava_next"} if tiled else {}))
    kind = "LlavaNextImageProcessor" if tiled else "CLIPImageProcessor"
    with pytest.raises(InputError, match=r"^preprocessor_config\.json: ") as caught:
        model.processor({"image_processor_type": kind, "size": 28, "crop_size": 28} | values)
    assert words in str(caught.value)
