"""Keys and values that the forward of one part of a row leaves for those below it (see `parts`).

They are read as leaves, cut off from the graph that made them, so the backward of a part below
stops there and adds to their gradients. When all that read them are through, those sums enter the
part's own backward beside its loss: the gradients of the whole row, by the chain rule.
"""

from __future__ import annotations

from typing import Any

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


class StoredKV:
    """Keys and values of one part, layer by layer, and the gradients that come back to them."""

    def __init__(self) -> None:
        self._made: dict[torch.nn.Module, Pair] = {}
        self._leaves: dict[torch.nn.Module, Pair] = {}
        self._sums: dict[torch.Tensor, torch.Tensor] = {}
        self._open = True

    def store(self, layer: torch.nn.Module, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep what `layer` made. Gradient checkpointing makes it again, when nobody reads it."""
        if self._open:
            self._made[layer] = key, value

    def read(self, layer: torch.nn.Module) -> Pair:
        """Leaves with the values of what `layer` made."""
        if layer not in self._leaves:
            key, value = self._made[layer]
            self._leaves[layer] = self._leaf(key), self._leaf(value)
        return self._leaves[layer]

    def _leaf(self, made: torch.Tensor) -> torch.Tensor:
        leaf = made.detach().requires_grad_(made.requires_grad)
        if leaf.requires_grad:
            leaf.register_post_accumulate_grad_hook(self._add)
        return leaf

    def _add(self, leaf: torch.Tensor) -> None:
        # Many branches add up here: in float32 at least, as within one kernel.
        grad, leaf.grad = leaf.grad, None
        assert grad is not None
        if leaf in self._sums:
            self._sums[leaf] += grad
        else:
            self._sums[leaf] = grad.to(torch.promote_types(grad.dtype, torch.float32))

    def forget(self) -> None:
        """Keep nothing more, where what read it sends no gradients back."""
        self._open = False
        self._made, self._leaves, self._sums = {}, {}, {}

    def attach(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, whose backward also sends every sum to where its key or value was made."""
        made, sums = [], []
        for layer, leaves in self._leaves.items():
            for tensor, leaf in zip(self._made[layer], leaves, strict=True):
                if leaf in self._sums:
                    made.append(tensor)
                    sums.append(self._sums[leaf].to(tensor.dtype))
        self.forget()
        out: torch.Tensor = _Attached.apply(loss, sums, *made)
        return out


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: torch.Tensor, sums: list[torch.Tensor], *made: torch.Tensor
    ) -> torch.Tensor:
        ctx.sums = sums
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The sums went through backward already: whatever scales a loss has scaled them.
        return grad, None, *ctx.sums
