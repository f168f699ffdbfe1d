"""Parameter tables of models that see, read off their Flax modules as the decoder's is, and what files call the parts.

A part keeps in the table the path and in a file the prefix under which it hangs:

    text_model         names as of the decoder alone, of which `Names` replaces the beginning
    vision_tower       `tower_specs`
    all the others     `module_specs`
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from jevomerge.models.layers import Params
from jevomerge.models.specs import Axis, ParamSpec
from jevomerge.models.vision.blocks import init
from jevomerge.models.vision.config import VisionConfig

TEXT, TOWER = "text_model", "vision_tower"  # where they hang in the pytree
BLOCKS = "encoder.layers"  # where the stack of blocks hangs in a tower

# Tensors of a tower that files may hold and no forward pass here reads: a buffer of old files, SigLIP's pooling head.
UNREAD = ("embeddings.position_ids", "head.*")


@dataclasses.dataclass(frozen=True)
class Names:
    """Prefixes under which a file keeps the parts of a model that sees."""

    text: str  # for the decoder's "model."
    head: str  # before "lm_head."
    tower: str
    rest: str

    def of_text(self, name: str) -> str:
        """What the file calls a tensor, or a template of tensors, of the decoder."""
        return self.head + name if name.startswith("lm_head.") else self.text + name.removeprefix("model.")


def text_specs(specs: Iterable[ParamSpec], names: Names) -> list[ParamSpec]:
    """A decoder's table as a part of a larger one."""
    return [
        dataclasses.replace(
            s,
            path=f"{TEXT}.{s.path}",
            template=names.of_text(s.template),
            block=s.block and f"{TEXT}.{s.block}",
        )
        for s in specs
    ]


@functools.cache
def tower_specs(config: VisionConfig, prefix: str) -> tuple[ParamSpec, ...]:
    """A tower's table."""
    parts = {"heads": config.num_attention_heads, "ff": config.intermediate_size}
    table = module_specs(lambda: init(jax.random.key(0), config), TOWER, prefix, "vision tower", parts)
    return tuple(stacked(table, BLOCKS, config.num_hidden_layers))


def stacked(table: Iterable[ParamSpec], blocks: str, layers: int) -> list[ParamSpec]:
    """A tower's table, the leaves under `blocks` being stacks of its layers."""
    block = f"{TOWER}.{blocks}"

    def stack(s: ParamSpec) -> ParamSpec:
        if not s.path.startswith(f"{block}."):
            return s
        template = s.template.replace(f"{blocks}.", f"{blocks}.{{layer}}.", 1)
        shape, axes = s.shape[1:], s.axes[1:]
        return dataclasses.replace(
            s, template=template, shape=shape, axes=axes, stack=(("layer", layers),), block=block
        )

    return [stack(s) for s in table]


def module_specs(
    made: Callable[[], Params], path: str, prefix: str, component: str, parts: dict[str, int]
) -> list[ParamSpec]:
    """The table of what `made` initialises, whose leaves are boxed with their logical axes."""
    abstract = flatten_dict(jax.eval_shape(made), sep=".")

    def spec(name: str, leaf: nn.Partitioned[Any]) -> ParamSpec:
        names = (*[""] * (len(leaf.value.shape) - len(leaf.names)), *map(str, leaf.names))
        axes = tuple(Axis(axis, parts.get(axis, 0)) for axis in names)
        return ParamSpec(f"{path}.{name}", prefix + name, leaf.value.shape, axes, role="other", component=component)

    return [spec(name, leaf) for name, leaf in abstract.items()]
