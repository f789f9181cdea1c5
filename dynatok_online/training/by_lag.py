"""How far the model in training is from the weights that sampled what it learns from, by lag.

Of every target, r is its probability by the model in training, over the one that the actor
recorded; it comes from the log-probabilities that the loss is made of, so nothing is run twice. The
mean of r is the importance ratio. The mean of r - 1 - log r is the KL divergence of the trainer
from the actor in nats per token, estimated from what was sampled (Schulman's k3), as in
`logprob_gap`. The lag of a target is how many versions its weights are behind the newest ones that
were published; where none are (offline), no target has one.
"""

from __future__ import annotations

from typing import Any, Final

import torch

MOST: Final = 8
"""A lag of so many versions, or more: all that are counted together."""
_UNKNOWN: Final = MOST + 1
_TOKENS, _RATIO, _KL, _LAG = range(4)


class ByLag:
    """Sums over the targets of some steps. [lag, tokens | ratio | KL | lag]; the last row is of
    targets without a lag."""

    def __init__(self, device: Any = "cpu") -> None:
        self.sums = torch.zeros(MOST + 2, 4, dtype=torch.float64, device=device)
        self.most = torch.zeros((), dtype=torch.float64, device=device)
        """The largest ratio."""

    def watch(
        self,
        logp: torch.Tensor,
        recorded: torch.Tensor,
        version: torch.Tensor,
        newest: int | None,
    ) -> None:
        """[m] each: log-probabilities by the model in training and by the actor (NaN where not
        recorded: such do not count), and the weights that sampled the targets (-1: not known).
        `newest`: the version that was published last; None: none are."""
        if not len(logp):
            return
        known = recorded.isfinite()
        # A probability of zero on one side must not make the sums of all others infinite.
        log_ratio = (logp.double() - recorded.double()).where(known, 0).clamp(-100, 100)
        ratio = log_ratio.exp()
        behind = torch.full_like(version, -1) if newest is None else newest - version
        dated = known & (version >= 0) if newest is not None else torch.zeros_like(known)
        row = behind.clamp(0, MOST).where(dated, _UNKNOWN).long()
        values = torch.stack(
            [torch.ones_like(ratio), ratio, torch.expm1(log_ratio) - log_ratio, behind.double()], 1
        )
        self.sums.index_add_(0, row, values * known[:, None])
        self.most = torch.maximum(self.most, (ratio * known).max())

    def clear(self) -> None:
        """Begin anew."""
        self.sums.zero_()
        self.most.zero_()


def numbers(sums: list[list[float]], most: float) -> dict[str, float]:
    """For a log: `importance_ratio`, `importance_ratio_max`, `policy_kl`, `policy_lag_mean`; and
    `tokens_lag_N`, `importance_ratio_lag_N`, `policy_kl_lag_N` of each lag that occurred."""
    tokens, ratio, kl = (sum(row[at] for row in sums) for at in (_TOKENS, _RATIO, _KL))
    if not tokens:
        return {}
    out = {
        "importance_ratio": ratio / tokens,
        "importance_ratio_max": most,
        "policy_kl": kl / tokens,
    }
    dated = sums[:_UNKNOWN]
    if count := sum(row[_TOKENS] for row in dated):
        out["policy_lag_mean"] = sum(row[_LAG] for row in dated) / count
    for lag, row in enumerate(dated):
        if row[_TOKENS]:
            name = f"lag_{lag}" + ("_up" if lag == MOST else "")
            out[f"tokens_{name}"] = row[_TOKENS]
            out[f"importance_ratio_{name}"] = row[_RATIO] / row[_TOKENS]
            out[f"policy_kl_{name}"] = row[_KL] / row[_TOKENS]
    return out
