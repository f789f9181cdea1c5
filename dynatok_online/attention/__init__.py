"""Attention over rows of spans, for any transformers model that asks the attention registry.

    from dynatok_online import attention

    attention.prepare(model, "concat")
    logits = model(**attention.inputs(row, model.device), use_cache=False).logits   # [1, M, V]

What has moved since it was computed is turned on first (`moved`). `dense` writes the mask out (the
oracle), `concat` (default) runs standard kernels on the tiles of the row, `flex` is FlexAttention
(GPU). Both the attention and the mask function are registered: without the latter transformers
takes restarting positions for packed sequences and cuts branches off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from dynatok_online.attention import concat, dense, flex
from dynatok_online.attention.copies import to_device
from dynatok_online.attention.layout import LayerMask, Layout, Scoring
from dynatok_online.attention.stored import StoredKV
from dynatok_online.attention.support import SOFTCAPPED, check_call, check_model
from dynatok_online.attention.turning import Turning, check_turning, turning_of
from dynatok_online.attention.watched import Watched
from dynatok_online.rows.parts import Part
from dynatok_online.rows.row import Row

__all__ = [
    "ATTENTIONS",
    "Layout",
    "Watched",
    "check_model",
    "check_turning",
    "inputs",
    "prepare",
    "register",
    "run_part",
    "to_device",
    "turning_of",
]

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Layout, Scoring], torch.Tensor]

ATTENTIONS: dict[str, Kernel] = {
    "dense": dense.attend,
    "concat": concat.attend,
    "flex": flex.attend,
}


def register() -> None:
    """Makes `dynatok_dense`, `dynatok_concat` and `dynatok_flex` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name, kernel in ATTENTIONS.items():
        AttentionInterface.register(f"dynatok_{name}", partial(_attention, kernel))
        AttentionMaskInterface.register(f"dynatok_{name}", _mask)


def prepare(model: torch.nn.Module, attention: str = "concat") -> None:
    """Switches `model` to attention over spans; from then on it runs rows only.

    Raises ValueError for a model that rows would be wrong for (see `support`).
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention {attention!r} is unknown; use one of {', '.join(ATTENTIONS)}")
    check_model(model, attention)
    register()
    turning = turning_of(model)
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module.dynatok_turning = turning
    model.set_attn_implementation(f"dynatok_{attention}")


def inputs(row: Row, device: torch.device | str, layout: Layout | None = None) -> dict[str, Any]:
    """Keywords for the forward of a prepared model: [1, N] in, logits [1, M, V] out.

    `layout`: what `run_part` gives, for a row that sees tokens of other forwards.
    """
    return {
        "input_ids": to_device(row.input_ids, device, torch.long)[None],
        "position_ids": to_device(row.position_ids, device, torch.long)[None],
        "attention_mask": layout or Layout(row),
        "logits_to_keep": to_device(row.loss_positions, device, torch.long),
    }


def run_part(
    part: Part,
    forward: Callable[[Part, Layout], torch.Tensor],
    backward: Callable[[Part, torch.Tensor], None],
    above: Sequence[StoredKV] = (),
) -> None:
    """Forward and backward of a part of a row and all parts below it (see `parts`).

    `forward` runs `part.row` with a layout and returns its loss, which may be of no targets;
    `backward` is called once for each part, after all parts below it.
    """
    stored = StoredKV() if part.below else None
    loss = forward(part, Layout(part.row, above, stored))
    if stored is not None:
        for one in part.below:
            run_part(one, forward, backward, (*above, stored))
        loss = stored.attach(loss)
    backward(part, loss)


def _mask(**asked: Any) -> LayerMask:
    """transformers' mask interface: the row's layout, and the window of the layers it is for."""
    layout = asked.get("attention_mask")
    if not isinstance(layout, Layout):
        raise ValueError(
            "a model prepared for rows of spans was called without one; call it with "
            "**attention.inputs(row, device), or switch it back with "
            "model.set_attn_implementation('sdpa')"
        )
    if asked.get("use_vmap"):
        raise ValueError("the model changes the causal mask itself, and spans cannot follow that")
    window = asked.get("local_size")
    return LayerMask(layout, None if window is None else int(window))


def _attention(
    kernel: Kernel,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: LayerMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: [1, H, N, D] in, [1, N, H, D] out."""
    name = type(module).__name__
    if not isinstance(attention_mask, LayerMask):
        raise ValueError(
            f"{name} builds its own mask instead of asking transformers' mask registry, so spans "
            "cannot reach it; use a model that calls create_causal_mask"
        )
    check_call(module, query, dropout, s_aux, kwargs)
    if softcap is not None and kernel is not flex.attend:
        raise ValueError(f"{name} has {SOFTCAPPED}")
    layout, window = attention_mask.layout, attention_mask.window
    if key.shape[2] != layout.tokens or query.shape[2] != layout.tokens:
        raise ValueError(
            f"the row has {layout.tokens} tokens, but {name} got {query.shape[2]} queries and "
            f"{key.shape[2]} keys; pass use_cache=False and no past_key_values"
        )
    if sliding_window is not None and sliding_window != window:
        raise ValueError(f"{name} has a window of {sliding_window}, but its mask has {window}")
    key, value = layout.keys(module, key, value)
    if (moved := layout.moved()) is not None:
        if layout.watched is not None:
            raise ValueError("attention cannot be watched in a row whose slots change their width")
        turning = getattr(module, "dynatok_turning", None)
        key, value = moved.add(key, value, turning or Turning(why_not=f"{name} was not prepared"))
        layout = layout.once("sees moved", lambda: Layout(moved.row))
    width, value_width = query.shape[-1], value.shape[-1]
    scale = width**-0.5 if scaling is None else scaling
    scoring = Scoring(scale, layout.window(window), s_aux, softcap)
    if layout.watched is not None:
        layout.watched.keep(query, key, scoring)
    if width != value_width:
        # Kernels want one width. Zeros change neither scores nor what there is of a result.
        query, key, value = (
            F.pad(one, (0, max(width, value_width) - one.shape[-1])) for one in (query, key, value)
        )
    out = kernel(query, key, value, layout, scoring)[..., :value_width]
    return out.transpose(1, 2).contiguous(), None
