"""The names of a merge's genes, printed and parsed: "layers 4-7 mlp/mathematics/weight"."""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Layers(NamedTuple):
    """A group of layers.

    >>> f"{Layers(4, 7)}, {Layers(3, 3)}"
    'layers 4-7, layer 3'
    """

    first: int
    last: int  # which is one of them

    def __str__(self) -> str:
        return f"layers {self.first}-{self.last}" if self.last > self.first else f"layer {self.first}"


class Point(NamedTuple):
    """A control point of what is interpolated over depth: the first is at the first layer, the last at the last.

    >>> str(Point(2, 5))
    'point 2 of 5'
    """

    number: int  # from 1
    of: int  # how many there are

    def __str__(self) -> str:
        return f"point {self.number} of {self.of}"


class GeneName(NamedTuple):
    """Which coefficients a gene is: where, of which tensors, for which source, and which parameter of the method.

    >>> GeneName.parse("layers 4-7 mlp/mathematics/weight")
    GeneName(place=Layers(first=4, last=7), part='mlp', source='mathematics', parameter='weight')
    >>> str(GeneName("head", parameter="lambda"))
    'head/lambda'
    """

    place: Layers | Point | str = ""  # or "embedding", "head", a block of a U-Net; "": wherever the part is
    part: str = ""  # "mlp", "self_attn.q_proj", a filter on tensors' names, "rest"; "": everything in the place
    source: str = ""  # "": it is one for all sources
    parameter: str = ""

    @property
    def group(self) -> str:
        """Place and part, "model" where there is neither."""
        return " ".join(filter(None, (str(self.place), self.part))) or "model"

    @property
    def order(self) -> tuple[int, int]:
        """From the embedding through the layers to the head, from BASE through IN, M and OUT to the VAE."""
        if not isinstance(self.place, str):
            return 1, self.place[0]
        if (block := re.fullmatch(r"(IN|M|OUT)(\d\d)", self.place)) is not None:
            return 1, 100 * ("IN", "M", "OUT").index(block[1]) + int(block[2])
        return (2 if self.place in ("head", "VAE") else 0), 0

    def __str__(self) -> str:
        return "/".join(filter(None, (self.group, self.source, self.parameter)))

    @classmethod
    def parse(cls, text: str) -> GeneName:
        """The name that is printed so; a filter called "head ..." alone is taken for the place."""
        group, *source, parameter = text.split("/")
        layers = r"layers? (?P<first>\d+)(?:-(?P<last>\d+))?"
        blocks = r"BASE|IN\d\d|M00|OUT\d\d|VAE"
        places = rf"(?P<place>embedding|head|{blocks}|{layers}|point (?P<number>\d+) of (?P<of>\d+))?"
        found = re.fullmatch(rf"{places}(?:^|$| )(?P<part>.*)", group)
        at: dict[str, Any] = found.groupdict() if found else {"place": "", "part": group, "first": None, "number": None}
        place: Layers | Point | str = at["place"] or ""
        if at["first"] is not None:
            place = Layers(int(at["first"]), int(at["last"] or at["first"]))
        elif at["number"] is not None:
            place = Point(int(at["number"]), int(at["of"]))
        return cls(place, "" if group == "model" else at["part"], "/".join(source), parameter)
