"""CLIP from transformers' folders, and from single files with OpenCLIP's names."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import digest, read_json
from jevomerge.checkpoint.safetensors_file import digest_tensors, read_header
from jevomerge.checkpoint.single_file import open_clip_tensors
from jevomerge.checkpoint.source import TOKENIZER_FILES, Stored
from jevomerge.checkpoint.weights import read_weights
from jevomerge.errors import InputError
from jevomerge.models.clip.clip import Clip
from jevomerge.models.clip.open_clip import open_clip_names_back
from jevomerge.models.clip.text import OLD_EOS
from jevomerge.models.diffusion.deduce import Shapes
from jevomerge.models.fields import Fields
from jevomerge.models.vision import on_device
from jevomerge.models.vision.processor import Processor, read_clip, read_processor

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # the first that is there is read
BUFFERS = re.compile(r".*\.position_ids")  # of old files
HEAD, MOST_HEADS = 64, 16  # channels of an attention head; OpenCLIP's larger towers have wider ones, and 16 of them
OPENAIS = 768  # the widest space of OpenAI's own models, whose activation is another


class ClipCheckpoint(Stored):
    """CLIP that has been opened and checked, of which no weight has been read.

    Attributes:
        processor: what happens to pictures before it looks at them.
    """

    model: Clip

    def __init__(self, reference: str | Path | Stored):
        """Open a folder, a hub name, or a file.

        Raises:
            InputError: naming the file and the remedy if it is no CLIP that can be read.
        """
        super().__init__(reference)
        self.adapter = None
        if self.behind is not None:
            raise InputError(f"{reference}: adapters of CLIP are not read; save it merged")
        if self.folder.is_file():
            self.tensors, config = _open_clip(self.folder)
            self.model = Clip.read(Fields(config, str(self.folder)))
        else:
            path = self.folder / "config.json"
            self.model = Clip.read(Fields(read_json(path), str(path)))
            found = read_weights(self.folder, self.notes)
            self.tensors = {name: stored for name, stored in found.items() if not BUFFERS.fullmatch(name)}
        self.specs = self.model.specs
        self._check_names()
        self.processor = self._read_processor()

    def fingerprint(self) -> dict[str, str]:
        """Of its weights and of the small files beside them."""
        names = ("config.json", *PROCESSOR_FILES, *TOKENIZER_FILES) if self.folder.is_dir() else ()
        files = {name: digest(self.folder / name) for name in names if (self.folder / name).exists()}
        return {"weights": digest_tensors(self.tensors), **files}

    def _read_processor(self) -> Processor:
        """What its folder says, else what all of CLIP's models have."""
        size = self.model.vision.image_size
        values, where = {"image_processor_type": "CLIPImageProcessor", "size": size, "crop_size": size}, self.folder
        for file in PROCESSOR_FILES:
            if self.folder.is_dir() and (path := self.folder / file).exists():
                values, where = read_json(path), path
                break
        found = read_processor(values, {"CLIP": read_clip}, str(where))
        on_device.check(found, size, str(where))
        return found


def _open_clip(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file's tensors by transformers' names, and what a config.json of theirs would say."""
    header = read_header(path)
    tensors = dict(open_clip_tensors(header))
    if unknown := [name for name in header if not open_clip_names_back(name)]:
        raise InputError(
            f"{path}: {min(unknown)} is no tensor of CLIP with OpenCLIP's names; of a model with transformers' names "
            "give the folder, with its config.json"
        )
    try:
        config = _deduced({name: stored.shape for name, stored in tensors.items()})
    except KeyError as error:
        raise InputError(f"{path}: CLIP's {error.args[0]} is missing; download or convert it again") from None
    except (ValueError, IndexError):
        raise InputError(f"{path}: its tensors have not CLIP's shapes; download or convert it again") from None
    if config["projection_dim"] <= OPENAIS:
        raise InputError(
            f"{path}: nothing says whether its activation is OpenAI's quick_gelu or OpenCLIP's gelu, which models of "
            "its size have; give a folder with transformers' config.json"
        )
    return tensors, config


def _deduced(shapes: Shapes) -> dict[str, Any]:
    words, pictures = "text_model", "vision_model"
    vocabulary, width = shapes[f"{words}.embeddings.token_embedding.weight"]
    positions, seen = shapes[f"{pictures}.embeddings.position_embedding.weight"]
    patch = shapes[f"{pictures}.embeddings.patch_embedding.weight"][-1]
    return {
        "projection_dim": shapes["text_projection.weight"][0],
        "text_config": {
            **_stack(shapes, words),
            "num_attention_heads": max(width // HEAD, 1),
            "hidden_size": width,
            "vocab_size": vocabulary,
            "max_position_embeddings": shapes[f"{words}.embeddings.position_embedding.weight"][0],
            "eos_token_id": OLD_EOS,
        },
        "vision_config": {
            **_stack(shapes, pictures),
            "num_attention_heads": min(max(seen // HEAD, 1), MOST_HEADS),
            "hidden_size": seen,
            "patch_size": patch,
            "image_size": math.isqrt(positions - 1) * patch,
        },
    }


def _stack(shapes: Shapes, tower: str) -> dict[str, Any]:
    blocks = {name.split(".")[3] for name in shapes if name.startswith(f"{tower}.encoder.layers.")}
    return {
        "num_hidden_layers": len(blocks),
        "intermediate_size": shapes[f"{tower}.encoder.layers.0.mlp.fc1.weight"][0],
        "hidden_act": "gelu",
    }
