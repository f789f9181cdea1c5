"""What is published, and what the publisher knows about it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.online.publisher import Publisher, shapes
from protocol.config import ProtocolConfig
from protocol.weights.base import NoFreeSlot
from protocol.weights.transports import open_sender
from protocol.wire.messages import Canary, WeightManifest

CANARY = Canary(((1, 2),), ((-0.5,),), 0.1)


class World:
    """A publisher of two tensors, of which one is trained."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.weights = {"trained": torch.ones(100, dtype=dtype), "frozen": torch.ones(900)}
        self.sender = open_sender(
            "shm", ProtocolConfig(), f"test-{uuid.uuid4().hex}", folder, shapes(self.weights)
        )
        self.taken: list[str] = []
        self.announced: list[WeightManifest] = []
        self.log: list[str] = []
        self.publisher = Publisher(
            sender=self.sender,
            canary=self._canary,
            gather=self._gather,
            trained=["trained"],
            readers=lambda: [],
            announce=self.announced.append,
            published=lambda version: self.log.append(f"published {version}"),
        )

    def _canary(self) -> Canary:
        self.log.append("canary")
        return CANARY

    def _gather(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, one in self.weights.items():
            self.taken.append(name)
            yield name, one


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def one(**options: Any) -> World:
        made.append(World(tmp_path, **options))
        return made[-1]

    yield one
    for each in made:
        each.sender.close()


def test_how_much_of_what_is_trained_changed_is_counted(
    world: Callable[..., World], capsys: pytest.CaptureFixture[str]
) -> None:
    here = world()
    assert here.publisher.publish()
    assert here.publisher.changed == -1.0
    here.weights["trained"][:25] += 1e-6
    assert here.publisher.publish()
    assert here.publisher.changed == 0.25
    assert [one.changed for one in here.announced][1:] == [0.25]
    assert "differs" not in capsys.readouterr().err


def test_updates_that_rounding_swallows_are_said(
    world: Callable[..., World], capsys: pytest.CaptureFixture[str]
) -> None:
    here = world(dtype=torch.bfloat16)
    trained = torch.ones(100)
    assert here.publisher.publish()
    for _ in range(2):
        trained += 1e-4
        here.weights["trained"] = trained.to(torch.bfloat16)
        assert here.publisher.publish()
        assert here.publisher.changed == 0.0
    assert "only 0.00% of what is trained differs from version 0" in capsys.readouterr().err
    for _ in range(40):  # and they add up
        trained += 1e-4
    here.weights["trained"] = trained.to(torch.bfloat16)
    assert here.publisher.publish()
    assert here.publisher.changed == 1.0


def test_a_transport_that_gives_up_leaves_no_rank_waiting(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up while it is written: the others gather on, so all is taken."""
    here = world()

    def full(version: int, tensors: Iterator[Any], *rest: Any, **more: Any) -> WeightManifest:
        next(tensors)
        raise NoFreeSlot("no room")

    monkeypatch.setattr(here.sender, "publish", full)
    assert not here.publisher.publish()
    assert here.taken == ["trained", "frozen"]
    assert (here.publisher.postponed, here.publisher.obstacle) == (1, "no room")
    assert here.log == ["canary"], "nothing is announced"
    assert here.publisher.version == -1
