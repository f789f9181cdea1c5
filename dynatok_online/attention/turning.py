"""Turning rotary keys on: a key that was computed at one position, as it would stand at another.

A rotary embedding turns every pair of a key's dimensions by an angle that is its position times the
frequency of the pair. So a key is moved by `shift` positions by turning it on by `shift` times the
frequencies. What a query makes of it depends on the difference of their positions alone.

That holds where angles are proportional to positions, in every layer and every dimension of the
head. Other models are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types all of whose layers turn whole heads, first half against second half."""

STATIC = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies do not depend on the length of the text."""


@dataclass(frozen=True, eq=False)
class Turning:
    """How the keys of a model are turned, or why they cannot be."""

    rotary: Any = None
    """The model's module of rotary embeddings."""
    why_not: str = ""

    def check(self) -> None:
        """ValueError where keys cannot be turned."""
        if self.why_not:
            raise ValueError(
                f"{self.why_not}, so KV behind a slot that grows or shrinks cannot be kept; use a "
                f"model of type {', '.join(MODELS)}, or slots of a fixed width (reuse: sticky)"
            )

    def turn(self, key: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        """key [..., V, D] and shifts [V] -> [..., V, D], each key moved by its shift."""
        self.check()
        return turn(key, shifts, self.rotary.inv_freq.to(key.device))


def turn(key: torch.Tensor, shifts: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """key [..., V, D] and shifts [V] -> [..., V, D], each key moved by its shift."""
    # As the model makes its own angles; in float32 at least, as its kernels would.
    angles = shifts[:, None].float() * frequencies.float()
    exact = torch.promote_types(key.dtype, torch.float32)
    cos, sin = angles.cos().to(exact), angles.sin().to(exact)
    low, high = key.to(exact).chunk(2, -1)
    out = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
    return out.to(key.dtype)


def check_turning(model: torch.nn.Module) -> None:
    """ValueError where the keys of a prepared model, adapters or none, cannot be turned."""
    for module in model.modules():
        if (turning := getattr(module, "dynatok_turning", None)) is not None:
            turning.check()
            return


def turning_of(model: Any) -> Turning:
    """How the keys of a transformers model are turned."""
    config, name = model.config, type(model).__name__
    if why_not := _why_not(config, name):
        return Turning(why_not=why_not)
    found = [one for one in model.modules() if hasattr(one, "inv_freq")]
    if len(found) != 1:
        return Turning(why_not=f"{name} has {len(found)} rotary embeddings, not one")
    (rotary,) = found
    why_not = _not_whole(config, name, rotary.inv_freq)
    return Turning(why_not=why_not) if why_not else Turning(rotary)


def why_not_turned(config: Any) -> str:
    """Why the keys of a model of this transformers config cannot be turned; "" if they can."""
    name = (getattr(config, "architectures", None) or ["the model"])[0]
    return _why_not(config, name) or _not_whole(config, name, frequencies(config))


def frequencies(config: Any) -> torch.Tensor:
    """[D / 2] by which the model of this transformers config turns its keys, a position each."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))[0]
    width = int(_width(config) * (rope.get("partial_rotary_factor") or 1.0))
    return 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2).float() / width)


def _width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _why_not(config: Any, name: str) -> str:
    if config.model_type not in MODELS:
        return f"{name} ({config.model_type}) is not known to turn whole keys"
    kind = config.rope_parameters["rope_type"]
    return "" if kind in STATIC else f"{name} has rotary embeddings of type {kind!r}"


def _not_whole(config: Any, name: str, frequencies: torch.Tensor) -> str:
    """Whether dimensions of a head are not turned."""
    width, turned = _width(config), 2 * frequencies.numel()
    return "" if turned == width else f"{name} turns {turned} of the {width} dimensions of a head"
