"""The bill of materials is valid CycloneDX, and says what the card does."""

import hashlib
import json

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

from jevomerge.checkpoint.bom import CARD, bill_of_materials, licences_of
from jevomerge.checkpoint.lineage import Origin
from jevomerge.checkpoint.scoring import THIS, Judge, Score, Scoring

ORIGINS = [
    Origin("owner/tuned", "apache-2.0", (Origin("owner/base", None),)),
    Origin("日本語", "gemma"),
    Origin("mine", None),
]
SCORES = {THIS: {"search": Score(0.5), "heldout": Score(0.25, 0.125, 0.5)}, "mine": {"search": Score(0.1)}}


@pytest.mark.parametrize(
    "scoring", [Scoring(), Scoring(SCORES, ["x"], [Judge("sums", 3, 4), Judge("own", 3, 0, True)])]
)
def test_it_is_valid_and_complete(scoring):
    found = bill_of_materials("ours", ORIGINS, scoring, "the card")
    validator = make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(found)) is None
    assert licences_of(found) == {"owner/tuned": "apache-2.0", "日本語": "gemma", "mine": None}
    model = found["metadata"]["component"]
    assert model["licenses"] == [{"license": {"name": "other"}}]
    assert model["properties"] == [{"name": CARD, "value": hashlib.sha256(b"the card").hexdigest()}]
    assert model["pedigree"]["ancestors"][0]["pedigree"]["ancestors"][0]["name"] == "owner/base"
    assert bill_of_materials("ours", ORIGINS, scoring, "the card") == found
    if not scoring.judges:
        return
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [(m["slice"], m["value"]) for m in metrics] == [("search", "0.5"), ("heldout", "0.25")]
    assert metrics[1]["confidenceInterval"] == {"lowerBound": "0.125", "upperBound": "0.5"}
    refs = found["dependencies"][0]["dependsOn"]
    assert refs == ["source:owner/tuned", "source:日本語", "source:mine", "data:sums", "data:own"]
    assert {c["bom-ref"] for c in found["components"]} == {*refs}
    assert "classification" not in found["components"][3]["data"][0]
    assert found["components"][4]["data"][0]["classification"] == "private"
