"""What draws with the parts that a recipe merges: the whole pipeline around them, as it would be exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jevomerge.checkpoint.safetensors_file import all_finite
from jevomerge.checkpoint.source import blank_leaf
from jevomerge.errors import InputError
from jevomerge.models.diffusion.pipeline import INDEX, SCHEDULER, Pipeline, part_specs
from jevomerge.models.diffusion.scheduler import RULES
from jevomerge.models.diffusion.schema import Rule
from jevomerge.models.layers import Params
from jevomerge.models.specs import unflatten
from jevomerge.recipe.assembly import TOKENIZERS, Assembly
from jevomerge.schema import Notes


class Studio:
    """An image pipeline that has been opened and checked, of which no weight has been read.

    Attributes:
        model: what it computes.
        merged: which of its parts are merged, whose parameters it does not have.
        tokenizers: {"tokenizer": its folder, ...}.
    """

    def __init__(self, assembly: Assembly, rule: Rule | None = None):
        """Open what is around merged parts.

        Args:
            assembly: of the recipe.
            rule: by which noise becomes a picture, instead of the one of its scheduler.

        Raises:
            InputError: if a part is missing that drawing needs, or is not as it must be.
        """
        self._assembly, files, notes = assembly, dict(assembly.files), Notes()
        if lacking := [name for name in (INDEX, SCHEDULER) if name not in files]:
            raise InputError(
                f"no model has {lacking[0]}, without which none draws; name the folder of a whole pipeline, or `take` "
                "its tokenizers and its scheduler"
            )
        if rule is not None:
            files[SCHEDULER] = files[SCHEDULER] | RULES[rule]
        self.merged = assembly.like.merged
        try:
            self.model = Pipeline.read(files, assembly.pooled, notes)
        except InputError as error:
            known = "" if rule else "; a task can name a `scheduler` that is supported"
            remedy = known if str(error).startswith(SCHEDULER) else ""
            raise InputError(f"these models draw no pictures: {error}{remedy}") from None
        for part in self.model.parts.keys() - {*self.merged}:
            self._check(part)
        components = {name: lender.components[name] for name, lender in assembly.lenders.items()}
        self.tokenizers = {n: c.folder for n in TOKENIZERS.values() if (c := components.get(n)) and c.folder}

    def _check(self, part: str) -> None:
        """Refuse a part whose tensors are not what its config.json says."""
        stored = self._assembly.lenders[part].components[part].tensors
        for spec in part_specs(part, self.model.parts[part]):
            for name in spec.names():
                found = stored.get(name.removeprefix(f"{part}."))
                if found is None or found.shape != spec.shape:
                    raise InputError(
                        f"{self._assembly.lenders[part].folder}: {name} has shape {found and found.shape}, its config "
                        f"says {spec.shape}; download it again, or `take` the {part} of another model"
                    )

    def load(self, parts: Sequence[str], *, abstract: bool = False) -> Params:
        """The parameters of parts that are not merged, as they are stored; `abstract`: zeros, and nothing is read.

        Raises:
            InputError: for weights that are broken.
        """
        leaves: dict[str, Any] = {}
        for part in parts:
            lender = self._assembly.lenders[part]
            stored = lender.components[part].tensors
            for spec in part_specs(part, self.model.parts[part]):
                tensors = [stored[name.removeprefix(f"{part}.")] for name in spec.names()]
                if abstract:
                    leaves[spec.path] = blank_leaf(spec, tensors[0].dtype)
                    continue
                leaf = np.stack([t.read() for t in tensors]).reshape(spec.leaf_shape)
                if not all_finite(leaf):
                    raise InputError(
                        f"{lender.folder}: {part} contains NaN or infinity; download it again, or `take` another one"
                    )
                leaves[spec.path] = leaf
        return unflatten(leaves)
