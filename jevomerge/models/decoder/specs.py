"""The decoder's parameter table, read off its Flax modules.

`jax.eval_shape` of their initialisation is the one source of truth for names, shapes and logical axes.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from jevomerge.models.decoder.blocks import init
from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.specs import Axis, ParamSpec

BLOCKS = "layers"  # where the stack of blocks hangs in the pytree


@functools.cache
def param_specs(config: DecoderConfig) -> tuple[ParamSpec, ...]:
    """The parameter table of an architecture, sorted by path."""
    abstract = flatten_dict(jax.eval_shape(lambda: init(jax.random.key(0), config)), sep=".")
    parts = {
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "ff": config.intermediate_size,
        "vocab": config.vocab_size,
    }

    def spec(path: str, leaf: nn.Partitioned[Any]) -> ParamSpec:
        axes = tuple(Axis(name, parts.get(name, 0)) for name in map(str, leaf.names))
        prefix = "" if path.startswith("lm_head") else "model."
        if not path.startswith(f"{BLOCKS}."):
            role: Any = "embedding" if path.startswith("embed_tokens") else "head"
            return ParamSpec(path, prefix + path, leaf.value.shape, axes, role=role)
        module = path.split(".")[1]
        return ParamSpec(
            path=path,
            template=prefix + path.replace(f"{BLOCKS}.", f"{BLOCKS}.{{layer}}."),
            shape=leaf.value.shape[1:],
            axes=axes,
            stack=(("layer", config.num_hidden_layers),),
            block=BLOCKS,
            component={"self_attn": "attention", "mlp": "mlp"}.get(module, "norms"),
        )

    return tuple(spec(path, leaf) for path, leaf in sorted(abstract.items()))
