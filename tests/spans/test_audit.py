"""The audit names what contradicts, with both numbers."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dynatok_online.spans.audit import audit
from dynatok_online.trajectory import RESPONSE, Reuse
from tests.simulate import simulate
from tests.written import make


def test_random_trajectories_pass_the_audit() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        policy = "sticky" if seed % 2 else "exact"
        one = simulate(rng, policy, block_size=1 + seed % 3)
        assert audit(one) == []


GOOD = ((0, 1, RESPONSE), "xyz", ())


@pytest.mark.parametrize(
    ("reuse", "cached", "says"),
    [
        ((Reuse(0, 0, 4),), 5, "computed 4 positions, but the engine computed 3"),
        ((Reuse(0, 0, 3), Reuse(0, 2, 4)), 5, "overlaps or precedes"),
        ((Reuse(0, 0, 8),), 8, "leaves no fed token"),
        ((Reuse(1, 0, 4),), 4, "names pass 1 as its origin, but only 1 passes"),
        ((Reuse(0, 0, 5),), 5, "at position 4 this pass has token 66 and pass 0 token 65"),
        ((Reuse(0, 5, 6),), 1, "(policy exact reuses unchanged prefixes)"),
    ],
)
def test_audit_names_both_numbers(reuse: tuple[Reuse, ...], cached: int, says: str) -> None:
    one = make(["abcd", "A", "B"], [GOOD, ((0, 2, RESPONSE), "u", reuse)])
    passes = list(one.passes)
    passes[1] = msgspec.structs.replace(passes[1], num_cached_tokens=cached)
    found = audit(msgspec.structs.replace(one, passes=tuple(passes)))
    assert any(says in str(mismatch) for mismatch in found), [str(m) for m in found]
    assert all("trajectory t, pass 1: " in str(mismatch) for mismatch in found)


def test_audit_checks_blocks() -> None:
    one = make(["abcd", "A", "B"], [GOOD, ((0, 2, RESPONSE), "u", (Reuse(0, 0, 3),))])
    found = audit(msgspec.structs.replace(one, block_size=2))
    assert [m.what for m in found] == ["reuse 0 .. 3 does not fall on blocks of 2 tokens"]
