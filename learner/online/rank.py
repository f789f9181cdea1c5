"""One of several processes of an online learner; `learner.ranks` starts them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from learner.config import LearnerConfig
from learner.online.group import rank


def main(path: Path) -> int:
    """Train as the configuration in this file says; the exit code."""
    config = msgspec.json.decode(path.read_bytes(), type=LearnerConfig)
    if rank() == 0:
        from learner.main import run_first

        return run_first(config)
    from learner.online.follower import follow

    return follow(config)
