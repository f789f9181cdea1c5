"""Policy gradients with group advantages, clipped against what the actor recorded.

With r = p(y) / recorded p(y) and A the advantage of a pass over other responses to one task:

    grpo            -min(r A, clip(r, 1 - clip, 1 + clip_high) A)        clip, clip_high 0.2
    decoupled       -sg[min(r, most)] A p / sg[p]                        most 2
    importance      a factor of any loss: sg[min(r, most)]               most 2
    hapo            grpo with A (1 + |h|) where A and h agree in sign, and clips
                    clip (1 + h) above and clip (1 - h) below            clip 0.2

Recorded log-probabilities are of the weights that sampled, so r also corrects for their age.
`decoupled` takes the weights of this step as proximal policy: r weighs, and never clips a gradient
away. hapo's h is how open a choice is: ln H less the median of earlier steps, scaled to -1 .. 1 by
their extremes; 0 in the first step. Its released code never gets h below 0; this is the paper's.

Sources: Shao et al., DeepSeekMath (GRPO), arXiv 2402.03300; Fu et al., AReaL (decoupled PPO), arXiv
2505.24298; Z. Liu et al., From Uniform to Heterogeneous: Tailoring Policy Optimization to Every
Token's Nature (HAPO), arXiv 2509.16591, of which the sampling temperature and the averages over
tokens are not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Factor, Loss, Need, Targets

if TYPE_CHECKING:
    from torch import Tensor


class Grpo(Loss, frozen=True):
    """Clipped where the ratio leaves its interval."""

    needs: ClassVar[frozenset[Need]] = frozenset({"recorded", "groups"})

    clip: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        _check_clip(self.clip)

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        return _clipped(ratio(t), t.advantage, self.clip, self.clip_high)


class Decoupled(Loss, frozen=True):
    """Weighed by a truncated ratio."""

    needs: ClassVar[frozenset[Need]] = frozenset({"recorded", "groups"})

    most: float = 2.0

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        ahead = (t.logp - t.logp.detach()).exp()
        return -ratio(t).detach().clamp(max=self.most) * t.advantage * ahead


class Importance(Factor, frozen=True):
    """Truncated importance weights."""

    needs: ClassVar[frozenset[Need]] = frozenset({"recorded"})

    most: float = 2.0

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        return ratio(t).detach().clamp(max=self.most)


class Hapo(Loss, frozen=True):
    """Clips and advantages that follow the entropy of each choice."""

    needs: ClassVar[frozenset[Need]] = frozenset({"recorded", "groups"})
    watches: ClassVar[tuple[str, ...]] = ("hapo.log_entropy",)

    clip: float = 0.2

    def __post_init__(self) -> None:
        _check_clip(self.clip)

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m]"""
        h = openness(t, past)
        advantage = t.advantage * (1 + h.abs().where(t.advantage * h > 0, 0.0))
        return _clipped(ratio(t), advantage, self.clip * (1 - h), self.clip * (1 + h))


def openness(t: Targets, past: Lagged) -> Tensor:
    """[m] ln H less its median, scaled to -1 .. 1 by the extremes; 0 in the first step."""
    name = "hapo.log_entropy"
    log_entropy = t.entropy.clamp(min=1e-6).log()
    past.watch(name, log_entropy)
    middle, low, high = past.median(name), past.low(name), past.high(name)
    if middle is None or low is None or high is None:
        return log_entropy * 0
    away = log_entropy - middle
    scaled = (away / max(high - middle, 1e-6)).where(away > 0, away / max(middle - low, 1e-6))
    return scaled.clamp(-1, 1)


def ratio(t: Targets) -> Tensor:
    """[m] p(y) over what the actor recorded, with gradient."""
    return (t.logp - t.recorded).exp()


def _clipped(r: Tensor, advantage: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    inside: Tensor = r.clamp(1 - low, 1 + high)
    return -(r * advantage).min(inside * advantage)


def _check_clip(clip: float) -> None:
    if not 0 < clip < 1:
        raise ValueError(f"clip must be above 0 and below 1, got {clip}")
