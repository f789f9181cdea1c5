"""What a configuration may say about the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynatok_online.objectives.reward import Reward
from dynatok_online.objectives.sft import Sft
from dynatok_online.objectives.targets import BROUGHT, Loss
from dynatok_online.objectives.written import FACTORS, LOSSES, objective_of


class Own(Loss, frozen=True):
    """One of a user's own."""

    floor: float = 0.5


def test_a_name_is_a_loss_with_its_defaults() -> None:
    (term,) = objective_of("sft").terms
    assert term.loss == Sft()
    assert not term.factors


def test_a_factor_multiplies_the_loss_of_sft() -> None:
    (term,) = objective_of({"name": "reward", "power": 2}, {"power": 3, "threshold": 0.5}).terms
    assert term.loss == Sft()
    assert term.factors == (("reward", Reward(power=2.0, threshold=0.5)),)


def test_a_sum() -> None:
    one, two = objective_of(["sft", {"name": "sft", "times": "reward", "scale": 0.1}]).terms
    assert (one.scale, two.scale) == (1.0, 0.1)
    assert [name for name, _ in two.factors] == ["reward"]


def test_a_class_of_ones_own() -> None:
    (term,) = objective_of({"name": f"{__name__}:Own", "floor": 0.2}).terms
    assert getattr(term.loss, "floor", None) == 0.2
    assert type(term.loss).__name__ == "Own"


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ("rewrd", "'rewrd' is unknown; did you mean 'reward'"),
        ({"name": "reward", "powr": 1}, "reward has no 'powr'; did you mean 'power'"),
        ({"name": "reward", "power": "high"}, "objective reward: Expected `float`"),
        ({"name": "reward", "power": -1}, "power must be at least 0"),
        ({"name": "sft", "times": ["sft"]}, "sft is a loss of its own, not a factor"),
        ({"name": "reward", "times": ["reward"]}, "names a factor twice"),
        ({"name": "sft", "scale": "half"}, "scale must be a number"),
        ({"power": 1}, "must be a name, or a mapping with one"),
        ([], "empty list"),
        ("no.such.module:Thing", "No module named"),
        (f"{__name__}:Nothing", "no attribute"),
        ({"name": f"{__name__}:Own", "flor": 1}, "did you mean 'floor'"),
    ],
)
def test_what_cannot_be(written: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        objective_of(written)


def test_what_is_needed_and_not_there_is_named() -> None:
    class Needy(Sft, frozen=True):
        needs = frozenset({"context"})

    import sys

    setattr(sys.modules[__name__], "Needy", Needy)  # noqa: B010
    objective = objective_of(["sft", f"{__name__}:Needy"])
    objective.check(["context"])
    with pytest.raises(ValueError, match=r"Needy needs the log-probability of tokens under"):
        objective.check(["reference"])
    assert objective.needs == {"context"}


def test_the_page_lists_every_one() -> None:
    page = (Path(__file__).parents[2] / "docs/objectives.md").read_text()
    for name, kind in {**LOSSES, **FACTORS}.items():
        (line,) = (one for one in page.splitlines() if one.startswith(f"| `{name}` |"))
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in line


def test_masked_goes_with_what_sees_the_same_inputs() -> None:
    objective_of({"name": "dft", "times": ["masked"]}).check(BROUGHT)
    objective_of({"name": "asft", "times": ["reward", "hindsight", "context"]}).check(BROUGHT)
    for other, why in (
        ("importance", "importance needs the log-probabilities that the actor recorded, which ear"),
        ("sstoken", "sstoken needs the log-probabilities that the actor recorded, which earlier"),
        ("masked", "leave one of them out"),
    ):
        with pytest.raises(ValueError, match=why):
            objective_of({"name": "sft", "times": [other, "hindsight"]}).check(BROUGHT)
    with pytest.raises(ValueError, match=r"grpo needs .*, which earlier text has none of"):
        objective_of({"name": "grpo", "times": ["hindsight"]}).check(BROUGHT)
    with pytest.raises(ValueError, match="names hindsight twice"):
        objective_of(["hindsight", {"name": "hinge", "times": ["hindsight"]}])
    with pytest.raises(ValueError, match="grpo compares with what the actor recorded, which saw"):
        objective_of({"name": "grpo", "times": ["masked"]}).check(BROUGHT)
    with pytest.raises(ValueError, match="masked twice; all terms see the same rows"):
        objective_of(["masked", {"name": "dft", "times": ["masked"]}])


def test_nothing_heavy_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from dynatok_online.objectives import written; "
        "written.objective_of('reward'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
