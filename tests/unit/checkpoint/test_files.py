"""From references to files: what is asked of the hub."""

from pathlib import Path

import huggingface_hub
import pytest

from jevomerge.checkpoint.files import resolve
from jevomerge.errors import InputError


@pytest.fixture
def hub(monkeypatch):
    """What it is asked for."""
    asked = []
    for name in ("hf_hub_download", "snapshot_download"):

        def answer(*words, name=name, **options):
            asked.append((name, *words, options["revision"]))
            return "/from/the/hub"

        monkeypatch.setattr(huggingface_hub, name, answer)
    return asked


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        ("owner/name", ("snapshot_download", "owner/name", None)),
        ("owner/name@refs/pr/3", ("snapshot_download", "owner/name", "refs/pr/3")),
        ("owner/name/lora.safetensors", ("hf_hub_download", "owner/name", "lora.safetensors", None)),
        ("owner/name@v1/a/b.safetensors", ("hf_hub_download", "owner/name", "a/b.safetensors", "v1")),
    ],
)
def test_a_repository_or_a_file_of_it_is_downloaded(hub, reference, wanted):
    assert resolve(reference) == Path("/from/the/hub")
    assert hub == [wanted]


@pytest.mark.parametrize(
    "reference", ["lora.safetensors", "models/lora.safetensors", "./models/x/lora.safetensors", "/no/x.safetensors"]
)
def test_files_that_can_only_be_here_are_not_asked_for(hub, reference):
    with pytest.raises(InputError, match="does not exist"):
        resolve(reference)
    assert hub == []
