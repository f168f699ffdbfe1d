"""The duties of all sources add up, and what cannot be fulfilled is said."""

import pytest

from jevomerge.checkpoint.licences import DUTIES, LICENCES, duties, merged_licence, obstacles


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["apache-2.0", "mit"], "apache-2.0"),
        (["mit", "mit"], "mit"),
        (["apache-2.0", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["llama3", "apache-2.0"], "llama3"),
        (["llama3", "gemma"], "other"),
        (["apache-2.0", None], "other"),
        (["apache-2.0", "my-own"], "other"),
    ],
)
def test_the_most_restrictive_licence_wins(licences, expected):
    assert merged_licence(licences) == expected


def test_licences_ask_for_known_duties_and_the_strict_ones_for_more():
    assert {duty for licence in LICENCES.values() for duty in licence.duties} == set(DUTIES)
    for name, licence in LICENCES.items():
        assert ("nc" in name.split("-") or "non-commercial" in name) == ("non_commercial" in licence.duties), name
        assert licence.restriction == 3 if {"non_commercial", "no_derivatives"} & {*licence.duties} else True


def test_duties_add_up():
    assert duties(["mit", "cc-by-sa-4.0", "cc-by-nc-4.0", None, "unheard-of"]) == {
        "notice": ["mit"],
        "attribution": ["cc-by-nc-4.0", "cc-by-sa-4.0"],
        "changes": ["cc-by-nc-4.0", "cc-by-sa-4.0"],
        "share_alike": ["cc-by-sa-4.0"],
        "non_commercial": ["cc-by-nc-4.0"],
    }


@pytest.mark.parametrize(
    ("licences", "name", "expected"),
    [
        ({"a": "mit", "b": None}, "me/m", []),
        ({"a": "cc-by-nd-4.0", "b": "mit"}, "me/m", ["cc-by-nd-4.0 (a) allows no changed version"]),
        ({"a": "llama3.2"}, "Llama/m", ["llama3.2 (a) asks for a name that begins with `Llama`"]),
        ({"a": "llama3.2"}, "me/Llama-3-m", []),
        (
            {"a": "gpl-3.0", "b": "cc-by-sa-4.0", "c": "gpl-3.0"},
            "me/m",
            ["cc-by-sa-4.0 (b), gpl-3.0 (a, c) each ask for their own licence, and it can have but one"],
        ),
        ({"a": "gpl-3.0", "c": "gpl-3.0"}, "me/m", []),
    ],
)
def test_what_stands_in_the_way(licences, name, expected):
    assert obstacles(licences, name) == expected
