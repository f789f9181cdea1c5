"""What an objective is, and what it is told about the targets of a row.

An objective gives every target its loss. It is asked for at most 1024 targets of one row at a
time, and may look at each of them alone (and at `Lagged`): so rows, parts, accumulation and ranks
cannot change what it says. Nothing in it divides: the trainer sums over all loss tokens of the
global batch, and divides by their number.

    class Confident(Loss):
        floor: float = 0.5                    # {name: my.module:Confident, floor: 0.2}

        def __call__(self, t: Targets, past: Lagged) -> Tensor:
            return -t.logp * (t.p > self.floor)

`needs` names what must be there before a row runs; the trainer refuses by name what it cannot
bring. What is computed from logits needs no mention: it is computed once per chunk, and only where
it is asked for. No module of this package imports torch before an objective is called: settings
are checked in processes that never train.

Legend: m targets of a chunk, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.trajectory import Trajectory

if TYPE_CHECKING:
    from torch import Tensor

Need = Literal["reference", "recorded", "context", "attention", "groups", "verdicts"]
"""`reference`: another model's logits. `recorded`: the actor's log-probabilities. `context`: log
p(target) under the prompt before the last edit (ghosts). `attention`: how much of the attention is
on the prompt. `groups`: several responses to one task in every step. `verdicts`: what earlier text
is worth under later states, and spans, which compute it there."""

NEEDS: tuple[Need, ...] = ("reference", "recorded", "context", "attention", "groups", "verdicts")

BROUGHT: tuple[Need, ...] = NEEDS
"""Those that the trainer of this package brings, where its data and settings allow."""


class TokenObjective(Protocol):
    """What the trainer calls."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be there before a row runs."""

    @property
    def watches(self) -> tuple[str, ...]:
        """Names of what it tells `Lagged`."""

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m] loss of each target, before weights."""


class Loss(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An objective whose fields are its parameters, and may be written in a configuration."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    watches: ClassVar[tuple[str, ...]] = ()

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m] loss of each target, before weights."""
        raise NotImplementedError


class Factor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What multiplies the loss of a target: [m], without gradient.

    `static`: it is known before anything runs, from the trajectory alone (`weights`). `whole`: it
    is known once all tokens of a trajectory were scored (`among`): the row runs once more before
    it is trained on, without gradient. Otherwise it is called. `mean_one`: it is divided by its
    mean over earlier steps.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    watches: ClassVar[tuple[str, ...]] = ()
    static: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    mean_one: ClassVar[bool] = False

    def weights(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """[R] what each response token counts."""
        raise NotImplementedError

    def among(self, scored: Scored) -> npt.NDArray[np.float32]:
        """[n] what each token of a trajectory counts, seen beside the others."""
        raise NotImplementedError

    def __call__(self, t: Targets, past: Lagged) -> Tensor:
        """[m] what a target counts."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scored:
    """The n tokens of one trajectory that count, in order, as the weights of now see them. [n]
    each, without gradient; NaN where nobody said it needs that."""

    logp: npt.NDArray[np.float64]
    """Log-probability of each token."""
    recorded: npt.NDArray[np.float64]
    """What the actor recorded of it. Needs `recorded`."""
    reference: npt.NDArray[np.float64]
    """Its log-probability under the reference model. Needs `reference`."""
    prompt_mass: npt.NDArray[np.float64]
    """Share of the last layer's attention on the prompt, where it is predicted; mean over heads,
    0 to 1. Needs `attention`."""


class Logits(Protocol):
    """[m, V] logits that can say more cheaply what most losses ask for."""

    @property
    def whole(self) -> Tensor:
        """[m, V], with gradient; float32 at least."""

    def log_prob(self, ids: Tensor) -> Tensor:
        """[m] log-probability of one word each, with gradient."""

    def entropy(self) -> Tensor:
        """[m] entropy of the distribution, in nats, without gradient."""


class Targets:
    """Some targets of a row: `columns` and `logits` of the same m.

    Every property is [m] unless it says otherwise, and computed once. What is [m, V] costs memory,
    and is made only where it is asked for.
    """

    def __init__(
        self,
        logits: Tensor | Logits,
        ids: Tensor,
        columns: Mapping[str, Tensor],
        reference_logits: Callable[[], Tensor] | None = None,
    ) -> None:
        self._given = logits
        self.ids = ids
        """[m] the sampled tokens."""
        self.columns = columns
        """What is known of targets before they are computed, by name. [m] each."""
        self._reference_logits = reference_logits

    # ---- with gradient ----

    @cached_property
    def logits(self) -> Tensor:
        """[m, V], with gradient; float32 at least."""
        given: Any = self._given
        whole: Tensor = getattr(given, "whole", given)
        return whole

    @cached_property
    def log_probs(self) -> Tensor:
        """[m, V] log-probabilities, with gradient."""
        return self.logits.log_softmax(-1)

    @cached_property
    def logp(self) -> Tensor:
        """Log-probability of each target, with gradient."""
        given: Any = self._given
        if "log_probs" in vars(self) or not hasattr(given, "log_prob"):
            return self.log_probs.gather(-1, self.ids[:, None])[:, 0]
        logp: Tensor = given.log_prob(self.ids)
        return logp

    @cached_property
    def target_logits(self) -> Tensor:
        """Logit of each target, with gradient."""
        return self.logits.gather(-1, self.ids[:, None])[:, 0]

    # ---- without ----

    @cached_property
    def p(self) -> Tensor:
        """Probability of each target, without gradient."""
        return self.logp.detach().exp()

    @cached_property
    def probs(self) -> Tensor:
        """[m, V] probabilities, without gradient."""
        return self.log_probs.detach().exp()

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the distribution at each target, in nats, without gradient."""
        given: Any = self._given
        if "log_probs" in vars(self) or not hasattr(given, "entropy"):
            return -(self.probs * self.log_probs.detach()).nan_to_num(0.0).sum(-1)
        entropy: Tensor = given.entropy()
        return entropy

    @property
    def recorded(self) -> Tensor:
        """The actor's log-probability of each target; NaN where not recorded."""
        return self.columns["recorded"]

    @property
    def version(self) -> Tensor:
        """Weight version that sampled each target; -1 where not recorded."""
        return self.columns["version"]

    @property
    def trajectory(self) -> Tensor:
        """Which trajectory of the batch each target belongs to."""
        return self.columns["trajectory"]

    @property
    def index(self) -> Tensor:
        """And which of its response tokens it is."""
        return self.columns["index"]

    @property
    def score(self) -> Tensor:
        """The lowest score of the pass that sampled each target; NaN where nothing was judged."""
        return self.columns["score"]

    @property
    def since_edit(self) -> Tensor:
        """Response tokens since the last edit took effect (0: the first one); -1 before any."""
        return self.columns["since_edit"]

    # ---- what `needs` brings ----

    @cached_property
    def reference_log_probs(self) -> Tensor:
        """[m, V] log-probabilities of the reference model. Needs `reference`."""
        assert self._reference_logits is not None
        return self._reference_logits().log_softmax(-1)

    @cached_property
    def reference(self) -> Tensor:
        """Log-probability of each target under the reference model. Needs `reference`."""
        if "reference" in self.columns:
            return self.columns["reference"]
        return self.reference_log_probs.gather(-1, self.ids[:, None])[:, 0]

    @property
    def context(self) -> Tensor:
        """Log-probability of each target under the prompt before the last edit; NaN before any.
        Needs `context`."""
        return self.columns["context"]

    @property
    def advantage(self) -> Tensor:
        """Advantage of the pass that sampled each target over other responses to the same task.
        Needs `groups`."""
        return self.columns["advantage"]


def constant(value: float, like: Tensor) -> Any:
    """[m] of one value."""
    import torch

    return torch.full_like(like, value)
