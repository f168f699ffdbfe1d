"""Scorers of pictures: what is refused before a weight is read, and how a scorer goes into compiled functions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jevomerge import InputError
from jevomerge.fitness.scorers.registry import open_scorer
from tests import clips

PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": clips.SIDE, "crop_size": clips.SIDE}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return clips.make(folder, end=2), folder


def edited(model, tmp_path, file, **changes):
    """The model's folder, with a JSON file that says something else."""
    for path in model[1].iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    values = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / file).write_text(json.dumps(values | changes))
    return str(tmp_path)


def test_a_scorer_is_a_static_argument(model):
    first, second = (open_scorer("clip", str(model[1])) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != open_scorer("pickscore", str(model[1]))
    params = first.load()
    count = 0

    def score(scorer, params, images, told):
        nonlocal count
        count += 1
        return scorer.score(params, images, told)

    compiled = jax.jit(score, static_argnums=0)
    images = jnp.full((2, 30, 30, 3), 0.3).at[1, 4, 5, 0].set(jnp.nan)
    told = first.told(["a", "b"], params)
    np.testing.assert_array_equal(told[1:], first.told(["b"], params))
    found = compiled(first, params, images, told)
    np.testing.assert_array_equal(np.isnan(found), [False, True])
    compiled(second, params, images, told)
    assert count == 1
    lower, upper = first.bounds
    assert lower <= found[0] <= upper


def test_scorers_are_known_by_their_content(model, tmp_path):
    def head(value):
        save_file({"weight": torch.full((1, 40), value), "bias": torch.ones(1)}, tmp_path / "head.safetensors")
        return open_scorer("aesthetic", str(tmp_path / "head.safetensors"), str(model[1])).fingerprint()

    one = head(1.0)
    assert head(1.0) == one
    assert {part for part, found in head(2.0).items() if one[part] != found} == {"head"}
    before = open_scorer("clip", str(model[1])).fingerprint()
    assert before == {part: found for part, found in one.items() if part != "head"}
    clips.make(tmp_path / "same", end=2)
    assert open_scorer("clip", str(tmp_path / "same")).fingerprint() == before
    (tmp_path / "same" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"image_mean": 0.4}))
    after = open_scorer("clip", str(tmp_path / "same")).fingerprint()
    assert after.keys() - before.keys() == {"preprocessor_config.json"}


def test_names_of_scorers():
    with pytest.raises(InputError, match="score: `hpsv3` is not known; did you mean `hpsv2`"):
        open_scorer("hpsv3")
    with pytest.raises(InputError, match="score: `beauty` is not known; known: clip, aesthetic, pickscore, hpsv2"):
        open_scorer("beauty")


@pytest.mark.parametrize("kind", ["hpsv2", "aesthetic"])
def test_scorers_that_are_published_as_pickles(kind, tmp_path):
    with pytest.raises(InputError, match=f"{kind}: `weights` is missing: .* see experiments/convert_scorers"):
        open_scorer(kind)
    torch.save({}, tmp_path / "published.pth")
    with pytest.raises(InputError, match="is a pickle file, which can run code and is never opened"):
        open_scorer(kind, str(tmp_path / "published.pth"))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("config.json", {"model_type": "siglip"}, "`model_type: siglip` is not supported \\(only clip\\)"),
        ("config.json", {"projection_dim": 41}, "has shape \\(40, 64\\), but config.json says \\(41, 64\\)"),
        ("config.json", {"text_config_dict": {"hidden_size": 65}}, "`num_attention_heads: 8` must be a divisor of 65"),
        ("preprocessor_config.json", PROCESSOR | {"crop_size": 20}, "the tower's 24 x 24"),
        ("preprocessor_config.json", {"image_processor_type": "SiglipImageProcessor"}, "is not supported here"),
    ],
    ids=["family", "shape", "old key", "view", "processor"],
)
def test_folders_that_cannot_be_right(model, tmp_path, file, changes, says):
    with pytest.raises(InputError, match=says):
        open_scorer("clip", edited(model, tmp_path, file, **changes))


def test_tokenizers_that_are_another_models(model, tmp_path):
    other = clips.make(tmp_path / "other", end=7)
    assert other.config.text_config.eos_token_id == 7
    with pytest.raises(InputError, match=r"its tokenizer ends texts with 513, .* with 7; name in `clip`"):
        open_scorer("clip", str(tmp_path / "other"))


def test_files_of_open_clip_that_cannot_be_right(model, tmp_path):
    path = tmp_path / "it.safetensors"

    def refused(tensors, says):
        save_file(tensors, path)
        with pytest.raises(InputError, match=says):
            open_scorer("hpsv2", str(path), str(model[1]))

    tensors = clips.with_open_clips_names(model[0])
    refused(tensors, "nothing says whether its activation is OpenAI's quick_gelu or OpenCLIP's gelu")
    refused(model[0].state_dict(), "is no tensor of CLIP with OpenCLIP's names; .* give the folder")
    tensors = clips.with_open_clips_names(clips.make(None, width=1024))
    refused({n: x for n, x in tensors.items() if n != "visual.proj"}, "tensor visual_projection.weight is missing")
    refused({n: x for n, x in tensors.items() if n != "token_embedding.weight"}, "token_embedding.weight is missing")
    refused(tensors | {"positional_embedding": torch.ones(())}, "its tensors have not CLIP's shapes")
    refused(tensors | {"visual.ln_pre.bias": torch.ones(3)}, "pre_layrnorm.bias has shape \\(3,\\)")


def test_heads_that_cannot_be_right(model, tmp_path):
    path = tmp_path / "head.safetensors"

    def refused(tensors, says):
        save_file(tensors, path)
        with pytest.raises(InputError, match=says):
            open_scorer("aesthetic", str(path), str(model[1]))

    refused({"weight": torch.ones(1, 41), "bias": torch.ones(1)}, "a head for embeddings of 41, .* makes 40")
    refused({"weight": torch.ones(2, 40), "bias": torch.ones(2)}, "is no aesthetic head")
    refused({"weight": torch.ones(1, 40)}, "is no aesthetic head")
    save_file({"weight": torch.full((1, 40), torch.nan), "bias": torch.ones(1)}, path)
    scorer = open_scorer("aesthetic", str(path), str(model[1]))
    with pytest.raises(InputError, match="contains NaN or infinity; convert it again"):
        scorer.load()
