"""The paper's first search on one device, planned without one: 7B x 3 by DARE-TIES, 250 texts for each candidate.

python experiments/pod_plan/one_card.py [DEVICE ...]     # one_card.json; v5e-1 and v6e-1 need the extra `plan`
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import jax
from arguments import known, make_parser, record

import jevomerge as jm
from jevomerge.planning.chips import assumed_chip, slice_devices
from jevomerge.planning.lengths import expected_lengths
from jevomerge.planning.measure import best_plan
from jevomerge.planning.report import advice, lines_of, numbers_of
from jevomerge.planning.standins import shapes_beside, stand_in
from jevomerge.search.setup import set_up_stages

CONFIG = Path(__file__).parents[2] / "configs" / "evollm_jp.yaml"
# The slice, if it is one, and from which tokens_per_batch on smaller ones are tried (compiling takes minutes).
DEVICES = {"24GiB": (None, 65536), "v5e-1": ("v5e:1x1", 16384), "v6e-1": ("v6e:1x1", 65536)}
TEXTS, NEW_TOKENS = 250, 300


def main() -> None:
    args = make_parser(__doc__, __file__, "one_card.json", parts=DEVICES).parse_args()
    for name in args.parts:
        if known(args.output, name) is not None:
            continue
        (topology, tokens), began = DEVICES[name], time.monotonic()
        chip = assumed_chip(name) if topology is None else None
        devices = jax.devices()[:1] if topology is None else slice_devices(topology)
        with tempfile.TemporaryDirectory() as work:
            config = stand_in(jm.read_config(CONFIG), shapes_beside(CONFIG), Path(work))
            first = config.stages[0]
            search = first.search.model_copy(update={"examples_per_generation": TEXTS})
            stages = (first.model_copy(update={"search": search}),)
            config = config.model_copy(update={"stages": stages, "tokens_per_batch": tokens})
            setup = next(set_up_stages(config, devices))
            setup = dataclasses.replace(setup, new_tokens=expected_lengths(setup, NEW_TOKENS, Path(work)))
            plan, way = best_plan(setup, devices, chip), None
            if not plan.fits:
                way, changed = advice(setup, plan, devices)
                plan = changed or plan
        found = numbers_of(plan) | {"way": way, "text": list(lines_of(plan, name))}
        record(args.output, found | {"planning_seconds": round(time.monotonic() - began, 1)}, name)
        print(*([way] if way else []), *found["text"], sep="\n", flush=True)


if __name__ == "__main__":
    main()
