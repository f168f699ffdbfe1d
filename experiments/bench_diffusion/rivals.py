"""How the same is done without jevomerge: a PyTorch loop around diffusers' U-Net, and merges to disk in NumPy."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import UNET

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def group(name: str) -> int:
    """0 of tensors that Sakana calls `attn`, 1 of all others, `conv`."""
    return 0 if any(part in name for part in ATTENTION) else 1


class TorchLoop:
    """Weights in memory, those of a group in one row; a candidate is merged in place into one live U-Net."""

    def __init__(self, folders: Sequence[Path], steps: int):
        """Load everything in float32."""
        import torch
        from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
        from safetensors.torch import load_file

        self.torch = torch
        self.unet = UNet2DConditionModel.from_pretrained(folders[0] / "unet").eval().requires_grad_(False)
        states = [load_file(folder / UNET) for folder in folders]
        named = dict(self.unet.named_parameters())
        self.groups = []  # of each: its row of the U-Net's weights, and (sources, n) what is summed
        for which in range(2):
            names = [name for name in named if group(name) == which]
            sources = torch.stack([torch.cat([state[n].float().flatten() for n in names]) for state in states])
            row = torch.empty_like(sources[0])
            for name, part in zip(names, row.split([named[n].numel() for n in names]), strict=True):
                named[name].data = part.view_as(named[name])
            self.groups.append((row, sources))
        scheduler = EulerDiscreteScheduler.from_pretrained(folders[0] / "scheduler")
        scheduler.set_timesteps(steps)
        self.sigmas, self.times = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()

    def merge(self, weights: np.ndarray) -> None:
        """(2, sources): the weighted sums, without a temporary."""
        with self.torch.inference_mode():
            for (row, sources), shares in zip(self.groups, weights.tolist(), strict=True):
                self.torch.mul(sources[0], shares[0], out=row)
                for source, share in zip(sources[1:], shares[1:], strict=True):
                    row.add_(source, alpha=share)

    def latents(self, noise: Any, context: Any, pooled: Any, time_ids: Any) -> Any:
        """(B, channels, h, w) of variance one -> what all steps of Euler's method make of it."""
        with self.torch.inference_mode():
            told = {"text_embeds": pooled, "time_ids": time_ids}
            x = noise * self.sigmas[0]
            for sigma, after, t in zip(self.sigmas, self.sigmas[1:], self.times, strict=False):
                shown = x * (sigma**2 + 1) ** -0.5
                y = self.unet(shown, t, context, added_cond_kwargs=told, return_dict=False)[0]
                x = x.add_(y, alpha=after - sigma)
            return x

    def pictures(self, x: Any) -> np.ndarray:
        """(B, h, w, 3) uint8."""
        whole = (x / 2 + 0.5).clamp_(0, 1).mul_(255).round_().to(self.torch.uint8)
        colours: np.ndarray = whole.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        return colours


def header_of(path: Path) -> tuple[bytes, dict[str, Any]]:
    """What stands before the data, and {name: entry}."""
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    return length + header, {k: entry for k, entry in json.loads(header).items() if k != "__metadata__"}


def numpy_sum(out: Path, weights: Sequence[Sequence[float]], folders: Sequence[Path]) -> None:
    """Sum float16 tensors in float32, one after the other, and write them: as little as a merge can be in NumPy."""
    heads, headers = zip(*(header_of(folder / UNET) for folder in folders), strict=True)
    files = [np.memmap(folder / UNET, np.uint8, "r") for folder in folders]
    (out / "unet").mkdir(parents=True)
    with (out / UNET).open("wb", buffering=0) as target:
        target.write(heads[0])
        for name, entry in sorted(headers[0].items(), key=lambda item: item[1]["data_offsets"]):
            total = None
            for share, head, header, file in zip(weights[group(name)], heads, headers, files, strict=True):
                start, stop = header[name]["data_offsets"]
                stored = file[len(head) + start : len(head) + stop].view(np.float16)
                term = np.multiply(stored, np.float32(share), dtype=np.float32)
                total = term if total is None else np.add(total, term, out=total)
            assert total is not None
            assert len(total) * 2 == entry["data_offsets"][1] - entry["data_offsets"][0]
            target.write(total.astype(np.float16))


def torch_sum(out: Path, weights: Sequence[Sequence[float]], folders: Sequence[Path]) -> None:
    """The same as it is usually written: all state dicts in memory."""
    import torch
    from safetensors.torch import load_file, save_file

    states = [load_file(folder / UNET) for folder in folders]
    merged = {}
    for name in states[0]:
        shares = weights[group(name)]
        total = sum(share * state[name].float() for share, state in zip(shares, states, strict=True))
        assert isinstance(total, torch.Tensor)
        merged[name] = total.half()
    (out / "unet").mkdir(parents=True)
    save_file(merged, out / UNET, {"format": "pt"})


if __name__ == "__main__":
    way = {"numpy": numpy_sum, "torch": torch_sum}[sys.argv[1]]
    way(Path(sys.argv[2]), json.loads(sys.argv[3]), [Path(a) for a in sys.argv[4:]])
