"""Logits of some targets, and the gradient of whatever a loss asks of them.

Most losses ask for log p(target) alone. Its gradient by the logits is `onehot - softmax`, which is
written over the logits themselves: of a chunk there is then one [m, V], where autograd holds four.
A loss that asks for `whole` logits gets them, and autograd's gradient is added.

Legend: m targets, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

_AT_ONCE = {"cpu": 2**20}
"""Logits that are worked on at a time: on a CPU, what stays in its cache."""
_AT_ONCE_ELSEWHERE = 2**26


class _Asked(NamedTuple):
    ids: torch.Tensor
    logp: torch.Tensor


class Chunk:
    """[m, V] logits in float32 at least; see the module's docstring."""

    def __init__(self, logits: torch.Tensor, *, spare: bool = False) -> None:
        """`logits`: without a graph. `spare`: their memory may be written over by `gradient`.
        Whether gradients are wanted is whether they are switched on now."""
        self._logits = logits
        self._spare = spare
        self._wanted = torch.is_grad_enabled()
        self._whole: torch.Tensor | None = None
        self._asked: list[_Asked] = []
        self._lse: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._logits)

    @property
    def was_whole(self) -> bool:
        """Whether somebody asked for all logits."""
        return self._whole is not None

    @property
    def whole(self) -> torch.Tensor:
        """[m, V] the logits, with gradient."""
        if self._whole is None:
            self._whole = self._logits.detach().requires_grad_(self._wanted)
        return self._whole

    @torch.no_grad()
    def log_prob(self, ids: torch.Tensor) -> torch.Tensor:
        """[m] log-probability of one word each, with gradient."""
        logp = self._logits.gather(-1, ids[:, None])[:, 0] - self._log_sums()
        self._asked.append(_Asked(ids, logp.requires_grad_(self._wanted)))
        return logp

    @torch.no_grad()
    def entropy(self) -> torch.Tensor:
        """[m] entropy of the distribution, in nats, without gradient."""
        lse, out = self._log_sums(), []
        for rows in self._blocks():
            logs = self._logits[rows] - lse[rows, None]
            # A word that cannot be: 0 times -inf.
            out.append(-logs.exp().mul_(logs).nan_to_num_(0.0).sum(-1))
        return torch.cat(out)

    def _log_sums(self) -> torch.Tensor:
        """[m] log of the sum of the exponentials. Without gradient."""
        if self._lse is None:
            self._lse = torch.cat([self._logits[rows].logsumexp(-1) for rows in self._blocks()])
        return self._lse

    def gradient(self, loss: torch.Tensor) -> torch.Tensor | None:
        """[m, V] of `loss`, [], by the logits; None: it does not depend on them.

        May be asked once: `spare` logits are gone then."""
        if not loss.requires_grad:
            return None
        sources = [one.logp for one in self._asked]
        if self._whole is not None:
            sources.append(self._whole)
        found = list(torch.autograd.grad(loss, sources, allow_unused=True))
        direct = found.pop() if self._whole is not None else None
        asked = [
            (one.ids, grad)
            for one, grad in zip(self._asked, found, strict=True)
            if grad is not None
        ]
        if not asked:
            return direct
        out = self._by_log_prob(asked)
        return out if direct is None else out.add_(direct)

    @torch.no_grad()
    def _by_log_prob(self, asked: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        assert self._lse is not None
        out = self._logits if self._spare else self._logits.clone()
        total = torch.stack([grad for _, grad in asked]).sum(0).neg_()
        for rows in self._blocks():
            out[rows].sub_(self._lse[rows, None]).exp_().mul_(total[rows, None])
        for ids, grad in asked:
            out.scatter_add_(1, ids[:, None], grad[:, None])
        return out

    def _blocks(self) -> Iterator[slice]:
        """Rows that are worked on together; at least one block, which may be empty."""
        count, vocabulary = self._logits.shape
        most = _AT_ONCE.get(self._logits.device.type, _AT_ONCE_ELSEWHERE)
        rows = max(1, most // max(1, vocabulary))
        for start in range(0, max(1, count), rows):
            yield slice(start, min(count, start + rows))
