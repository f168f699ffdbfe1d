"""Genes of U-Nets in their users' words: blocks, kinds of tensors, block-weight strings."""

import numpy as np
import pytest
import yaml

from jevomerge.config import read_config
from jevomerge.errors import InputError
from jevomerge.genome.names import GeneName
from jevomerge.genome.space import make_space, start_of
from jevomerge.models.diffusion.places import mbw_blocks
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.write import write_recipe
from tests.pipelines import SMALL, linear, write_unets
from tests.unit.genome.test_space import sources as text_sources

KINDS = {"self_attention", "cross_attention", "mlp", "norms", "conv", "embeddings"}
ALPHA = [round(i / 19, 3) for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_unets(tmp_path_factory.mktemp("unets"), SMALL | {"transformer_layers_per_block": [1, 1, 1]}, "ab")


def recipe(folder, **more):
    return linear(models=[{"model": str(folder / name)} for name in "ab"], **more)


def space_of(folder, by):
    sources = Sources(Recipe.model_validate(recipe(folder)), ("weight",))
    return sources, make_space(sources, {"weight": {"range": [0, 1], "by": by}})


def parts(space):
    return {(n.place, n.part) for n in map(GeneName.parse, space.names)}


def test_groups_are_blocks_times_kinds(folder):
    blocks = mbw_blocks(20)
    assert parts(space_of(folder, "block")[1]) == {(block, "") for block in blocks}
    assert parts(space_of(folder, "sakana")[1]) == {("", "attn"), ("", "conv")}
    assert {part for _, part in parts(space_of(folder, "component")[1])} == KINDS
    both = parts(space_of(folder, "block x sakana")[1])
    assert {("M00", "attn"), ("M00", "conv"), ("IN01", "conv")} < both
    assert ("IN01", "attn") not in both
    finest = parts(space_of(folder, "block x component")[1])
    assert {("OUT00", "cross_attention"), ("BASE", "conv"), ("IN04", "norms")} < finest
    ordered = sorted({GeneName(block) for block in blocks}, key=lambda name: name.order)
    assert [name.place for name in ordered] == blocks


def coefficients(space, genome):
    """What `express` gives, leaf by leaf in NumPy: compiling a gather for each takes long."""
    pool = np.concatenate([np.asarray(genome, np.float32), np.asarray(space.constants)])
    return {path: {name: pool[np.asarray(i)] for name, i in own.items()} for path, own in space.index.items()}


def same(a, b):
    return all(np.array_equal(a[path][name], b[path][name]) for path in a for name in a[path]) and a.keys() == b.keys()


@pytest.mark.parametrize("by", ["block", "sakana", "block x component", "tensor"])
def test_a_winner_is_written_so_that_it_reads_back(folder, by):
    sources, space = space_of(folder, by)
    made = coefficients(space, np.random.default_rng(0).random(len(space.names)))
    text = write_recipe(sources, made)
    assert same(Sources(Recipe.model_validate(yaml.safe_load(text))).coefficients, made)
    weights = [m["parameters"]["weight"] for m in yaml.safe_load(text)["models"]]
    if by == "block":
        assert all(len(weight["mbw"].split(",")) == 20 for weight in weights)
    if by == "sakana":
        assert {case.get("component") for case in weights[0]} == {"self_attention", "cross_attention", None}


def test_a_search_begins_at_block_weights(folder, tmp_path):
    text = ",".join(map(str, ALPHA))
    task = {"name": "t", "search": "x.jsonl", "heldout": "x.jsonl", "prompt": "{q}", "answer": "{a}"}
    run = {"name": "r", "recipe": recipe(folder), "genome": {"weight": {"by": "block", "range": [0, 1]}}}
    config = read_config(run | {"start_from": {"mbw": text}, "tasks": [task | {"score": "match"}]})
    assert config.start_from == "recipe"
    sources = Sources(config.recipe, ("weight",))
    space = make_space(sources, config.genome)
    found = space.values(start_of(space, sources.coefficients))
    for block, alpha in zip(mbw_blocks(20), ALPHA, strict=True):
        assert found[f"{block}/a/weight"] == pytest.approx(1 - alpha, abs=1e-6)
        assert found[f"{block}/b/weight"] == pytest.approx(alpha, abs=1e-6)
    three = recipe(folder) | {"models": [{"model": name} for name in "abc"]}
    for broken, match in (
        ({"recipe": three}, "mixes two models"),
        ({"start_from": {"mbw": "0,1"}}, "20 numbers of SDXL"),
    ):
        with pytest.raises(InputError, match=match):
            read_config({**run, "start_from": {"mbw": text}, "tasks": [task], **broken})


def test_what_is_mixed_by_slerp_and_on_a_base(folder):
    from jevomerge.recipe.schema import with_mbw

    text = ",".join(map(str, ALPHA))
    slerp = with_mbw(recipe(folder) | {"merge_method": "slerp", "base_model": str(folder / "a")}, text)
    table = Sources(Recipe.model_validate(slerp | {"parameters": {"t": slerp["parameters"]["t"]}})).coefficients
    assert table["unet.mid_block.resnets.0.conv1.weight"]["t"] == np.float32(ALPHA[10])
    one = with_mbw(recipe(folder) | {"merge_method": "task_arithmetic", "base_model": str(folder / "a")}, text)
    table = Sources(Recipe.model_validate(one | {"parameters": {}})).coefficients
    assert table["unet.conv_in.weight"]["weight"] == [np.float32(ALPHA[1])]


def test_groups_that_a_model_lacks_are_refused(folder):
    for by in ("block", "sakana", "block x component"):
        with pytest.raises(InputError, match="only image models have such groups"):
            make_space(text_sources(("weight",)), {"weight": {"range": [0, 1], "by": by}})
    for gene in ({"layers_per_group": 2}, {"smooth": 2}):
        with pytest.raises(InputError, match="a U-Net has blocks and no layers"):
            make_space(space_of(folder, "block")[0], {"weight": {"range": [0, 1], **gene}})
