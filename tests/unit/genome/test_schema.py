"""Numbers that no machine has room for are refused where they are read."""

import pytest
from pydantic import ValidationError

from jevomerge.genome.schema import PathSearch
from jevomerge.strategies.schema import Search


@pytest.mark.parametrize("values", [{"repeats": 10**8}, {"repeats": 101}])
def test_paths_that_are_laid_out_too_often(values):
    with pytest.raises(ValidationError, match="less than or equal to 100"):
        PathSearch.model_validate({"models": ["a"]} | values)


def test_a_generation_of_too_many():
    with pytest.raises(ValidationError, match="less than or equal to 100000"):
        Search.model_validate({"population": 10**9})
