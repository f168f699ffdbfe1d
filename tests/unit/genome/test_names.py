"""Names of genes are parsed as what was printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevomerge.genome.names import GeneName, Layers
from jevomerge.genome.schema import Gene
from jevomerge.genome.space import make_space
from tests.unit.genome.test_space import sources

PLACES = st.one_of(
    st.sampled_from(["", "embedding", "head"]),
    st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda pair: Layers(min(pair), max(pair))),
)
PARTS = st.sampled_from(["", "attention", "mlp", "norms", "rest", "self_attn.q_proj", "headless", "layers"])
SOURCES = st.sampled_from(["", "a", "a+b", "org/model", "head", "layer 3"])


@given(st.builds(GeneName, PLACES, PARTS, SOURCES, st.sampled_from(["weight", "lambda"])))
def test_what_is_printed_is_parsed(name):
    assert GeneName.parse(str(name)) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model/a/weight", ("", "", "a", "weight")),
        ("embedding/a+b/weight", ("embedding", "", "a+b", "weight")),
        ("layers 4-7/a/density", ((4, 7), "", "a", "density")),
        ("layer 12 self_attn.q_proj/a/weight", ((12, 12), "self_attn.q_proj", "a", "weight")),
        ("head rest/lambda", ("head", "rest", "", "lambda")),
        ("headless/lambda", ("", "headless", "", "lambda")),
        ("layers 0-1 model/lambda", ((0, 1), "model", "", "lambda")),
    ],
)
def test_names_of_runs_as_they_are_on_disk(text, expected):
    assert GeneName.parse(text) == expected
    assert str(GeneName.parse(text)) == text


def test_from_the_embedding_to_the_head():
    names = ["head/w", "layers 10-11/w", "layers 2-3/w", "embedding/w"]
    assert sorted(names, key=lambda n: GeneName.parse(n).order) == names[::-1]


@pytest.mark.parametrize("by", [None, "component", "tensor", ("q_proj", "mlp")])
@pytest.mark.parametrize("layers_per_group", [None, 1, 3])
def test_names_of_a_space(by, layers_per_group):
    gene = Gene(range=(0, 1), layers_per_group=layers_per_group, by=by)
    names = make_space(sources(), {"weight": gene, "lambda": [0, 1]}).names
    parsed = [GeneName.parse(name) for name in names]
    assert [str(name) for name in parsed] == list(names)
    assert {(n.parameter, n.source) for n in parsed} == {("weight", "a"), ("weight", "b"), ("lambda", "")}
    covered = [i for n in {p.place for p in parsed} if isinstance(n, Layers) for i in range(n.first, n.last + 1)]
    assert sorted(covered) == ([] if layers_per_group is None else [0, 1, 2, 3])
