"""Half an hour of faults (`SOAK_MINUTES` for another time); the figures go to the test's output."""

from __future__ import annotations

import os

import pytest

from tests.launch.soak import soak


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_nothing_is_lost_and_nothing_grows() -> None:
    print(soak(float(os.environ.get("SOAK_MINUTES", "30")), seed=0))
