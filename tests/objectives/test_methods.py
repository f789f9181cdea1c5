"""Each method: its numbers by hand, its gradient against finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dynatok_online.objectives import written
from dynatok_online.objectives.asft import Asft
from dynatok_online.objectives.clipped import Decoupled, Grpo, Hapo, Importance, openness
from dynatok_online.objectives.dft import Dft
from dynatok_online.objectives.eksft import Eksft
from dynatok_online.objectives.hinge import Hinge
from dynatok_online.objectives.key import Key
from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.masked import Masked
from dynatok_online.objectives.rollout import Rollout
from dynatok_online.objectives.sft import Sft
from dynatok_online.objectives.sstoken import SsToken
from dynatok_online.objectives.targets import Factor, Loss, Scored
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory
from tests.objectives.worked import P, loss_and_gradient, targets

near = pytest.approx


def about(value: Any) -> Any:
    return pytest.approx(value, abs=6e-5)


def test_the_fixture() -> None:
    t, _ = targets()
    assert t.entropy.item() == about(1.0297)
    assert t.p.item() == near(0.5)
    assert t.reference.item() == near(math.log(0.25))


def test_sft() -> None:
    loss, grad = loss_and_gradient(Sft())
    assert loss == about(0.6931)
    assert grad == near([-0.5, 0.3, 0.2])


def test_dft() -> None:
    loss, grad = loss_and_gradient(Dft())
    assert loss == about(0.3466)
    assert grad == near([-0.25, 0.15, 0.10])


def test_asft() -> None:
    assert loss_and_gradient(Asft())[0] == about(0.3705)
    assert loss_and_gradient(Asft(direction="reverse"))[0] == about(0.3684)
    assert loss_and_gradient(Asft(kl=0.0))[1] == near([-0.25, 0.15, 0.10])


def test_rollout() -> None:
    loss, grad = loss_and_gradient(Rollout())
    assert loss == about(0.2783)
    assert grad == near([1.1 * one for one in (-0.25, 0.15, 0.10)])
    _, grad = loss_and_gradient(Rollout(temperature=2.0))
    assert grad == pytest.approx([-0.237, 0.139, 0.098], abs=6e-4)


def test_samples_of_rollout_converge_to_it() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor(P, dtype=torch.float64)
    drawn = torch.multinomial(p, 200_000, True, generator=generator)
    rewards = torch.where(drawn == 0, 1.0, -0.1)
    each = -rewards * p.log()[drawn]
    error = each.std().item() / len(drawn) ** 0.5
    assert each.mean().item() == pytest.approx(loss_and_gradient(Rollout())[0], abs=4 * error)


def test_hinge() -> None:
    loss, grad = loss_and_gradient(Hinge(), score=0.0)
    assert loss == near(1.2)
    assert grad == near([0.40, -0.36, -0.04])
    assert loss_and_gradient(Hinge(), score=0.5)[0] == 0.0
    assert loss_and_gradient(Hinge(), score=math.nan)[0] == 0.0


def test_eksft_selects_by_earlier_steps() -> None:
    """Ten targets: two of highest KL, and two of highest entropy. Others are a bin away."""
    sharp = np.array([0.35, 0.4, 0.62, 0.64, 0.66, 0.68, 0.7, 0.72, 0.9, 0.95])
    p = [[one, (1 - one) * 0.6, (1 - one) * 0.4] for one in sharp]
    ids, reference = [0] * 10, (0.45, 0.35, 0.2)
    objective, past = Eksft(), Lagged(Eksft.watches)
    t, _ = targets(p, ids, reference)
    first = objective(t, past)
    assert first.tolist() == near((-t.logp).tolist())  # nothing is selected in the first step
    past.step()
    t, _ = targets(p, ids, reference)
    found = objective(t, past).tolist()
    q = np.array(reference)
    divergence = [float(np.sum(np.array(one) * np.log(np.array(one) / q))) for one in p]
    entropy = [float(-np.sum(np.array(one) * np.log(one))) for one in p]
    far, unsure = np.argsort(divergence)[-2:], np.argsort(entropy)[-2:]
    assert set(far) == {8, 9}
    assert set(unsure) == {0, 1}
    for i in range(10):
        wanted = 0.0 if i in {*far, *unsure} else -math.log(sharp[i])
        wanted += 0.05 * divergence[i] if i in far else 0.0
        wanted -= 0.05 * entropy[i] / math.log(3) if i in unsure else 0.0
        assert found[i] == near(wanted), i


def one(lengths: list[tuple[int, int]], scores: list[dict[str, float]] | None = None) -> Trajectory:
    """Passes of `(state, tokens)`."""
    passes, at = [], 0
    for k, (state, count) in enumerate(lengths):
        passes.append(
            Pass(
                layout=(state, RESPONSE),
                states={"slot": str(state)},
                start=at,
                stop=at + count,
                num_cached_tokens=0,
                scores=(scores or [{}] * len(lengths))[k],
            )
        )
        at += count
    pieces = tuple(np.arange(2, dtype=np.int32) for _ in range(2))
    return Trajectory(
        trajectory_id="t",
        pieces=pieces,
        response=np.zeros(at, np.int32),
        logprobs=np.zeros(at, np.float32),
        passes=tuple(passes),
    )


def test_key_tokens_weigh_what_the_others_outnumber_them_by() -> None:
    weights = Key(first=8).weights(one([(0, 20), (1, 28)]))
    assert weights.tolist() == [1.0] * 20 + [5.0] * 8 + [1.0] * 20
    assert Key(first=1).weights(one([(0, 20), (1, 28)]))[20] == 9.0
    assert Key().weights(one([(0, 2), (1, 28)])).tolist() == [1.0] * 30  # keys outnumber others


def test_key_tokens_of_a_rejected_pass_count_nothing() -> None:
    weights = Key(first=8).weights(one([(0, 20), (1, 28)], [{"s": 1.0}, {"s": 0.4}]))
    assert weights.tolist() == [1.0] * 20 + [0.0] * 28


def test_new_weights_are_no_edit() -> None:
    assert Key().weights(one([(0, 20), (0, 28)])).tolist() == [1.0] * 48


def scored(**values: list[float]) -> Scored:
    count = len(next(iter(values.values())))
    none = np.full(count, np.nan)
    names = ("logp", "recorded", "reference", "prompt_mass")
    return Scored(**{name: np.array(values.get(name, none), np.float64) for name in names})


def test_sstoken_keeps_what_is_learned_or_looks_at_the_prompt() -> None:
    history, mass = [-2.0, -1.5, -3.0, -1.0, -2.5], [0.9, 0.1, 0.5, 0.2, 0.1]
    now = [a + b for a, b in zip(history, (0.0, 0.2, 0.4, 0.8, 1.0), strict=True)]
    given = scored(logp=now, recorded=history, prompt_mass=mass)
    assert SsToken().among(given).tolist() == near([1 / 0.6, 0.0, 0.0, 1 / 0.6, 1 / 0.6])
    assert SsToken(loss=1.0, share=0.2).among(given).tolist() == near([0, 0, 0, 0, 5])
    assert SsToken(loss=0.0, share=0.2).among(given).tolist() == near([5, 0, 0, 0, 0])
    given = scored(logp=now, reference=history, prompt_mass=mass)
    assert SsToken(history="reference").among(given).sum() == near(5.0)
    assert SsToken(history="reference").needs == {"attention", "reference"}


def test_masked_hides_more_and_more() -> None:
    objective = Masked()
    assert [objective.chance(done) for done in (0.0, 0.33, 0.66, 1.0)] == near([0, 0.2, 0.4, 0.4])
    assert Masked(warm=0.0).chance(0.0) == 0.4
    assert objective.weights(one([(0, 2), (1, 3)])).tolist() == [1.0] * 5


def test_sstoken_takes_rounding_for_none() -> None:
    """Recorded by the same weights: only the attention decides."""
    mass = [0.1, 0.2, 0.3, 0.4, 0.5]
    noise = [-1.0, -1.00001, -0.99999, -1.0, -1.00002]
    given = scored(logp=noise, recorded=[-1.0] * 5, prompt_mass=mass)
    assert SsToken(share=0.4).among(given).tolist() == near([0, 0, 0, 2.5, 2.5])
    assert len(SsToken().among(scored(logp=[], recorded=[], prompt_mass=[]))) == 0


@pytest.mark.parametrize(
    ("recorded", "advantage", "loss", "moves"),
    [
        (0.5, 1.0, -1.0, True),  # on policy
        (0.25, 1.0, -1.2, False),  # twice as likely already: clipped
        (0.25, -1.0, 2.0, True),
        (1.0, -1.0, 0.8, False),
        (1.0, 1.0, -0.5, True),
    ],
)
def test_grpo(recorded: float, advantage: float, loss: float, moves: bool) -> None:
    found, grad = loss_and_gradient(Grpo(), recorded=math.log(recorded), advantage=advantage)
    assert found == near(loss)
    assert any(grad) == moves


def test_decoupled_and_importance() -> None:
    found, grad = loss_and_gradient(Decoupled(), recorded=math.log(0.1), advantage=1.0)
    assert found == near(-2.0)  # 5, truncated
    assert grad == near([-1.0, 0.6, 0.4])
    t, _ = targets(recorded=math.log(0.4))
    assert Importance()(t, Lagged()).item() == near(1.25)


def past_of(values: list[float]) -> Lagged:
    past = Lagged(Hapo.watches)
    past.watch(Hapo.watches[0], torch.tensor(values))
    past.step()
    return past


def test_hapo_clips_and_advantages() -> None:
    t, _ = targets(recorded=math.log(0.25), advantage=1.0)
    middle = t.entropy.log().item()
    # openness .5: half way from the median to the highest
    wide = past_of([middle - 0.5 - 1.0, middle - 0.5, middle + 0.5])
    h = openness(t, wide).item()
    assert h == pytest.approx(0.5, abs=0.03)
    found, _ = loss_and_gradient(Hapo(), wide, recorded=math.log(0.25), advantage=1.0)
    assert found == near(-(1 + 0.2 * (1 + h)) * (1 + h))  # clipped at 1.3
    narrow = past_of([middle - 0.5, middle + 0.5, middle + 1.5])
    h = openness(t, narrow).item()
    assert h == pytest.approx(-0.5, abs=0.03)
    found, _ = loss_and_gradient(Hapo(), narrow, recorded=math.log(0.9), advantage=-1.0)
    assert found == near((1 - 0.2 * (1 - h)) * (1 - h))  # clipped at 0.7
    assert loss_and_gradient(Hapo(), recorded=math.log(0.5), advantage=1.0)[0] == near(-1.0)


LOSSES: list[Any] = [kind() for kind in written.LOSSES.values()]


@pytest.mark.parametrize("objective", LOSSES, ids=[type(one).__name__ for one in LOSSES])
def test_gradient_against_finite_differences(objective: Loss) -> None:
    """Where p stands for a constant (sg), it is held at what it was."""
    generator = torch.Generator().manual_seed(3)
    at = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 5, (6,), generator=generator)
    other = torch.randn(6, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    columns = {
        "recorded": at.log_softmax(-1).gather(-1, ids[:, None])[:, 0] + 0.05,
        "advantage": torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, 0.0], dtype=torch.float64),
        "score": torch.tensor([0.0, 1.0, 0.0, 1.0, 0.3, math.nan], dtype=torch.float64),
    }
    past = Lagged(objective.watches)
    for name in objective.watches:
        past.watch(name, torch.rand(100, generator=generator))
    past.step()
    past.listening = False

    from dynatok_online.objectives.targets import Targets

    base = Targets(at, ids, columns, lambda: other)
    held = {"p": base.p, "probs": base.probs, "entropy": base.entropy}

    def total(logits: torch.Tensor, fixed: bool) -> torch.Tensor:
        t = Targets(logits, ids, columns, lambda: other)
        if fixed:
            vars(t).update(held)
        return objective(t, past).sum()

    logits = at.clone().requires_grad_()
    (grad,) = torch.autograd.grad(total(logits, fixed=False), logits)
    step = 1e-6
    detached = isinstance(objective, Rollout | Decoupled)  # sg of what is not in `held`
    for i, v in ((0, 0), (2, 3), (4, 1), (5, 2)):
        moved = torch.zeros_like(at)
        moved[i, v] = step
        up, down = (total(at + sign * moved, fixed=True).item() for sign in (1, -1))
        if detached:
            continue
        assert grad[i, v].item() == pytest.approx((up - down) / (2 * step), abs=1e-7), (i, v)


@pytest.mark.parametrize("objective", [Rollout(), Rollout(temperature=2.0)])
def test_gradient_of_rollout_by_its_own_formula(objective: Rollout) -> None:
    """Its weights are constants: finite differences with them held."""
    at = torch.tensor([P], dtype=torch.float64).log()
    q = (at / objective.temperature).softmax(-1)[0]
    rewards = torch.tensor([1.0, -0.1, -0.1], dtype=torch.float64)

    def total(logits: torch.Tensor) -> float:
        return float(-(q * rewards * logits.log_softmax(-1)[0]).sum())

    logits = at.clone().requires_grad_()
    t, _ = targets()
    t.logits = logits
    (grad,) = torch.autograd.grad(objective(t, Lagged()).sum(), logits)
    for v in range(3):
        moved = torch.zeros_like(at)
        moved[0, v] = 1e-6
        wanted = (total(at + moved) - total(at - moved)) / 2e-6
        assert grad[0, v].item() == pytest.approx(wanted, abs=1e-8)


def test_every_parameter_has_a_default() -> None:
    for kind in [*written.LOSSES.values(), *written.FACTORS.values()]:
        assert isinstance(kind(), Loss | Factor)
