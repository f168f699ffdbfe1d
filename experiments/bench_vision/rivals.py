"""How the same is done without jevomerge: a PyTorch loop that keeps features, and a merge in NumPy that is none."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class TorchLoop:
    """Weights in memory; each candidate is merged in place into one live transformers model, which is fed features."""

    def __init__(self, llava: Path, text: Path):
        """Load everything in float32."""
        import torch
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        self.torch = torch
        own = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float32)
        self.model = AutoModelForCausalLM.from_config(own.config.text_config, dtype=torch.float32).eval()
        decoder = own.model.language_model.state_dict()
        ours = {f"model.{k}": v for k, v in decoder.items()} | {"lm_head.weight": own.lm_head.weight.detach()}
        other = load_file(text / "model.safetensors")
        self.model.load_state_dict(ours)
        self.merged = [(p, ours[name].clone(), other[name]) for name, p in self.model.named_parameters()]

    def merge(self, weights: Sequence[float]) -> None:
        """The weighted sum, without a temporary; rows that only one model has stay as they are."""
        with self.torch.no_grad():
            for parameter, ours, other in self.merged:
                rows = slice(len(other))
                self.torch.mul(ours[rows], weights[0], out=parameter[rows])
                parameter[rows].add_(other, alpha=weights[1])

    def score(self, batches: Sequence[tuple]) -> np.ndarray:
        """Mean log-probability of every reference answer, on jevomerge's own padded batches."""
        torch = self.torch
        out = np.empty(sum(int((index >= 0).sum()) for _, index, _ in batches))
        for layout, index, batch in batches:
            tokens = torch.from_numpy(np.array(batch.tokens)).long()
            valid = torch.from_numpy(np.array(batch.valid)).long()
            with torch.inference_mode():
                embedded = self.model.get_input_embeddings()(tokens[:, :-1])
                here = tokens[:, :-1] == int(batch.pictures.token)
                embedded[here] = torch.from_numpy(np.asarray(batch.pictures.features)).flatten(0, 1)
                logits = self.model(
                    inputs_embeds=embedded, attention_mask=valid[:, :-1], use_cache=False,
                    position_ids=(valid.cumsum(1) - 1).clamp(min=0)[:, :-1], logits_to_keep=layout.answer_slots,
                ).logits  # fmt: skip
                targets = tokens[:, -layout.answer_slots :]
                found = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
            length = np.asarray(batch.answer_length)
            counted = np.arange(layout.answer_slots) >= layout.answer_slots - length[:, None]
            mean = np.where(counted, found.numpy(), 0).sum(1) / np.maximum(length, 1)
            out[index[index >= 0]] = mean[index >= 0]
        return out


def floor(out: Path, folders: Sequence[Path]) -> dict[str, float]:
    """Read every tensor of every source, write those of the first: seconds, those of the processor, those in fsync."""
    began = time.perf_counter(), time.process_time()
    out.mkdir()
    with (out / "model.safetensors").open("wb", buffering=0) as target:
        for folder in folders:
            with (folder / "model.safetensors").open("rb", buffering=0) as file:
                length = file.read(8)
                header = file.read(int.from_bytes(length, "little"))
                entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
                places = sorted(entry["data_offsets"] for entry in entries.values())
                buffer = np.empty(max(stop - start for start, stop in places), np.uint8)
                if folder == folders[0]:
                    target.write(length + header)
                for start, stop in places:
                    file.readinto(buffer[: stop - start])
                    if folder == folders[0]:
                        target.write(buffer[: stop - start])
        before = time.perf_counter()
        os.fsync(target.fileno())
        fsync = time.perf_counter() - before
    loop, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return {"loop_seconds": loop, "loop_cpu_seconds": cpu, "fsync": fsync}


if __name__ == "__main__":
    print(json.dumps(floor(Path(sys.argv[1]), [Path(a) for a in sys.argv[2:]])))
