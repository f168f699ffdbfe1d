"""Weights of scorers that are published as pickles -> safetensors, tensor by tensor, names as they are.

    python experiments/convert_scorers/run.py HPS_v2.1_compressed.pt hpsv2.safetensors

Needs torch. Nothing in the file is run: torch reads it with `weights_only=True`.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file


def convert(given: Path, out: Path) -> None:
    """The tensors in a file, or those that it calls `state_dict`."""
    found = torch.load(given, map_location="cpu", weights_only=True)
    found = found.get("state_dict", found)
    if other := [name for name, x in found.items() if not isinstance(x, torch.Tensor)]:
        raise SystemExit(f"{given}: {other[0]} is no tensor: these are no weights of a scorer")
    if out.exists():
        raise SystemExit(f"{out} exists already; name another file")
    save_file({name: x.contiguous().clone() for name, x in found.items()}, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("given", type=Path, help="the file that is published: .pt, .pth")
    parser.add_argument("out", type=Path, help="the file that is written: .safetensors")
    arguments = parser.parse_args()
    convert(arguments.given, arguments.out)
    print(arguments.out)
