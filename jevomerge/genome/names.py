"""The names of a merge's genes, printed and parsed: "layers 4-7 mlp/mathematics/weight"."""

from __future__ import annotations

import re
from typing import NamedTuple


class Layers(NamedTuple):
    """A group of layers.

    >>> f"{Layers(4, 7)}, {Layers(3, 3)}"
    'layers 4-7, layer 3'
    """

    first: int
    last: int  # which is one of them

    def __str__(self) -> str:
        return f"layers {self.first}-{self.last}" if self.last > self.first else f"layer {self.first}"


class GeneName(NamedTuple):
    """Which coefficients a gene is: where, of which tensors, for which source, and which parameter of the method.

    >>> GeneName.parse("layers 4-7 mlp/mathematics/weight")
    GeneName(place=Layers(first=4, last=7), part='mlp', source='mathematics', parameter='weight')
    >>> str(GeneName("head", parameter="lambda"))
    'head/lambda'
    """

    place: Layers | str = ""  # or "embedding" or "head"; "": wherever the part is
    part: str = ""  # "mlp", "self_attn.q_proj", a filter on tensors' names, "rest"; "": everything in the place
    source: str = ""  # "": it is one for all sources
    parameter: str = ""

    @property
    def group(self) -> str:
        """Place and part, "model" where there is neither."""
        return " ".join(filter(None, (str(self.place), self.part))) or "model"

    @property
    def order(self) -> tuple[int, int]:
        """From the embedding through the layers to the head."""
        return (1, self.place.first) if isinstance(self.place, Layers) else (2 if self.place == "head" else 0, 0)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.group, self.source, self.parameter)))

    @classmethod
    def parse(cls, text: str) -> GeneName:
        """The name that is printed so; a filter called "head ..." alone is taken for the place."""
        group, *source, parameter = text.split("/")
        found = re.fullmatch(r"(embedding|head|layers? (\d+)(?:-(\d+))?)?(?:^|$| )(.*)", group)
        place, first, last, part = found.groups() if found else ("", None, None, group)
        layers = None if first is None else Layers(int(first), int(last or first))
        part = "" if group == "model" else part
        return cls(layers or place or "", part, "/".join(source), parameter)
