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
    c = config
    parts = {
        "heads": c.num_attention_heads,
        "qkv": c.num_attention_heads + 2 * c.num_key_value_heads,
        "vocab": c.vocab_size,
        "expert": c.mixture.experts if c.mixture else 0,
    }
    if c.delta is not None:
        d, rest = c.delta, c.delta.value_dim % c.delta.key_dim
        parts |= {"delta_k": d.key_heads, "delta_v": d.value_heads}
        parts["delta_qkv"] = 0 if rest else 2 * d.key_heads + d.value_heads * d.value_dim // d.key_dim

    def spec(path: str, leaf: nn.Partitioned[Any]) -> ParamSpec:
        prefix = "" if path.startswith("lm_head") else "model."
        if not path.startswith(f"{BLOCKS}."):
            axes = tuple(Axis(name, parts.get(name, 0)) for name in map(str, leaf.names))
            role: Any = "embedding" if path.startswith("embed_tokens") else "head"
            return ParamSpec(path, c.name(prefix + path), leaf.value.shape, axes, role=role)
        name = next((name for name in c.stacks if name and path.startswith(f"{block_of(name)}.")), "")
        layers, inside = c.stacks[name], path.removeprefix(f"{block_of(name)}.")
        shape, stack = leaf.value.shape[1:], [("layer", len(layers))]
        own = parts | {"kv_heads": c.heads(c.kinds[c.layer_kinds[layers[0]]])[1]}
        own |= {axis: size for axis, size in zip(leaf.names, shape, strict=True) if axis in ("ff", "expert_ff")}
        axes = tuple(Axis(axis, own.get(axis, 0)) for axis in map(str, leaf.names))
        template = c.name(f"{prefix}{BLOCKS}.{{layer}}.{inside}")
        if leaf.names[:1] == ("experts",):  # a tensor each
            stack, shape, axes = [*stack, ("expert", shape[0])], shape[1:], axes[1:]
            template = template.replace(".experts.", ".experts.{expert}.")
        return ParamSpec(
            path=path,
            template=template,
            shape=shape,
            axes=axes,
            stack=tuple(stack),
            layers=layers if len(c.stacks) > 1 else (),
            depth=c.num_hidden_layers if len(c.stacks) > 1 else 0,
            block=block_of(name),
            component=_component(inside),
        )

    return tuple(spec(path, leaf) for path, leaf in sorted(abstract.items()))


def block_of(stack: str) -> str:
    """Where the blocks of a stack hang in the pytree."""
    return f"{BLOCKS}.{stack}" if stack else BLOCKS


def _component(inside: str) -> str:
    """What genes group a tensor of a block by."""
    module, _, rest = inside.partition(".")
    if module == "mlp":
        return next((ours for part, ours in _IN_MIXTURES if rest.startswith(part)), "mlp")
    beside = {"router": "router", "experts": "experts"}
    return ({"self_attn": "attention", "linear_attn": "linear_attention"} | beside).get(module, "norms")


# A gate of the shared expert is a router, too: it says how much of it a token gets.
_IN_MIXTURES = (("gate.", "router"), ("shared_expert_gate.", "router"), ("experts.", "experts"), ("shared_", "mlp"))
