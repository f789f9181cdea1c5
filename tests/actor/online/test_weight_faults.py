"""Weights that must not serve, on the real engine while it generates: found, refused, said."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actor.online.weight_updater import WeightUpdater
from actor.sessions.serving import Serving
from protocol.config import ProtocolConfig
from protocol.weights.base import Tensor, WeightSender
from protocol.weights.folder import weights_path
from protocol.weights.payload import as_tensor
from protocol.weights.transports import FOLDER, TRANSPORTS, FollowingReceiver, open_sender
from protocol.wire.messages import Canary, WeightManifest, WeightsApplied, WeightsRejected
from tests.actor.engine.test_engine import session, task
from tests.actor.models import full_forward

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Models = tuple[Any, Any]


@pytest.fixture(scope="module")
def models(random_model: Path) -> Models:
    """The model that serves, and one that an optimizer step of usual size makes of it."""
    import torch
    from transformers import AutoModelForCausalLM

    one = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32)
    other = copy.deepcopy(one)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1e-5 * torch.randn_like(parameter))
    return one, other


def tensors(model: Any) -> dict[str, Tensor]:
    state = {n: t.detach() for n, t in model.state_dict().items()}
    return {n: as_tensor("F32", t.shape, t.numpy()) for n, t in state.items()}


class Sync:
    """A learner's sender and an actor's receiver, by one transport."""

    def __init__(self, vllm: Any, transport: str, run_dir: Path, model: Any) -> None:
        config = ProtocolConfig(
            endpoint="tcp://127.0.0.1:1",  # no learner listens: its host counts
            weights_store=f"file://{run_dir}/store",
        )
        shapes = {n: (t.dtype, t.shape) for n, t in tensors(model).items()}
        self.run_dir = run_dir
        self.open = partial(open_sender, transport, config, vllm.run_id, run_dir, shapes)
        self.sender: WeightSender = self.open()
        self.transport = FollowingReceiver(config, vllm.run_id, run_dir)
        self.serving = Serving(vllm.engine, f"{vllm.run_id}/faults")
        self.weights = WeightUpdater(vllm.engine, self.serving, self.transport, timeout=30)

    def publish(self, version: int, model: Any) -> WeightManifest:
        text = tuple(range(5, 45))
        expected = tuple(map(float, full_forward(model, text)))
        canary = Canary((text,), (expected,), 1e-3)
        return self.sender.publish(version, tensors(model).items(), canary, ["actor"])

    def file(self, manifest: WeightManifest) -> tuple[Path, int]:
        if manifest.transport == "folder":
            return weights_path(self.run_dir / FOLDER, manifest.version), self.start(manifest)
        assert manifest.transport == "shm"
        return self.transport.locate(manifest)

    def start(self, manifest: WeightManifest) -> int:
        return self.transport.locate(manifest)[1]

    def close(self) -> None:
        self.transport.close()
        self.sender.close()


@pytest.fixture
def sync(vllm: Any, models: Models, tmp_path: Path) -> Iterator[Callable[[str], Sync]]:
    opened: list[Sync] = []

    def open_one(transport: str) -> Sync:
        opened.append(Sync(vllm, transport, tmp_path, models[0]))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
    vllm.run(vllm.engine.set_weight_label("default"))


def flip(sync: Sync, manifest: WeightManifest) -> WeightManifest:
    path, start = sync.file(manifest)
    at = start + manifest.tensors[3].offset + 5
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    return manifest


def lose(sync: Sync, manifest: WeightManifest) -> WeightManifest:
    return msgspec.structs.replace(manifest, tensors=manifest.tensors[:-1])


def swap(sync: Sync, manifest: WeightManifest) -> WeightManifest:
    """Two names exchanged, hashes and all: only the values can tell."""
    specs = list(manifest.tensors)
    a, b = (
        next(i for i, spec in enumerate(specs) if spec.name.endswith(f"layers.0.mlp.{name}.weight"))
        for name in ("up_proj", "gate_proj")
    )
    assert specs[a].shape == specs[b].shape
    specs[a], specs[b] = (
        msgspec.structs.replace(specs[a], name=specs[b].name),
        msgspec.structs.replace(specs[b], name=specs[a].name),
    )
    return msgspec.structs.replace(manifest, tensors=tuple(specs))


def truncate(sync: Sync, manifest: WeightManifest) -> WeightManifest:
    path, _ = sync.file(manifest)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    return manifest


def vanish(sync: Sync, manifest: WeightManifest) -> WeightManifest:
    sync.sender.close()
    return msgspec.structs.replace(manifest, version=manifest.version + 1)


FAULTS = {
    "flipped": ("shm", flip, "its bytes do not match its hash"),
    "flipped in a file": ("folder", flip, "its bytes do not match its hash"),
    "missing": ("shm", lose, "lack 'lm_head.weight'|lack "),
    "swapped": ("shm", swap, "canary"),
    "truncated": ("folder", truncate, "bytes instead of"),
    "dead learner": ("zmq", vanish, "nothing came|does not have them"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_bad_set_never_serves(
    vllm: Any, sync: Callable[[str], Sync], models: Models, fault: str
) -> None:
    transport, break_it, says = FAULTS[fault]
    here = sync(transport)
    right, other = models
    text = list(range(20, 60))

    async def run() -> tuple[Any, Any, Any, float, Any]:
        first = await here.weights.update(here.publish(1, right))
        writing = asyncio.create_task(session(here.serving, task("faults", max_tokens=300)).run())
        await asyncio.sleep(0.3)
        bad = break_it(here, here.publish(2, other))
        begun = time.monotonic()
        answer = await here.weights.update(bad)
        seconds = time.monotonic() - begun
        after = await vllm.engine.prompt_logprobs(text, cache_salt=here.serving.new_salt(0))
        return first, answer, await writing, seconds, after

    first, answer, finished, seconds, after = vllm.run(run())
    assert isinstance(first, WeightsApplied), first
    assert isinstance(answer, WeightsRejected), answer
    assert answer.serving == 1
    assert any(one in answer.reason for one in says.split("|")), answer.reason
    assert seconds < 10
    assert len(finished.trajectory.response) == 300, "generation went on"
    assert {run.version for one in finished.trajectory.passes for run in one.weight_versions} == {1}
    assert np.abs(np.array(after) - full_forward(right, text)).max() < 1e-4


def test_a_learner_that_is_back_with_bad_weights_leaves_the_old_ones_in_service(
    vllm: Any, sync: Callable[[str], Sync], models: Models
) -> None:
    """Its first version is refused: the file of the process before it is still there."""
    here = sync("folder")
    right, other = models
    text = list(range(20, 60))

    async def run() -> tuple[list[Any], Any]:
        answers = [await here.weights.update(here.publish(1, right))]
        here.sender = here.open()
        answers.append(await here.weights.update(swap(here, here.publish(2, other))))
        after = await vllm.engine.prompt_logprobs(text, cache_salt=here.serving.new_salt(0))
        here.sender.rejected("actor", 2)
        answers.append(await here.weights.update(here.publish(3, other)))
        return answers, after

    (first, refused, last), after = vllm.run(run())
    assert isinstance(first, WeightsApplied)
    assert isinstance(refused, WeightsRejected), refused
    assert refused.serving == 1
    assert "canary" in refused.reason
    assert np.abs(np.array(after) - full_forward(right, text)).max() < 1e-4
    assert isinstance(last, WeightsApplied), last


def test_an_update_that_changes_nothing_is_found_out(
    vllm: Any, sync: Callable[[str], Sync], models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is so small that both sets pass the canary's tolerance."""
    here = sync("shm")
    right, other = models

    async def run() -> list[Any]:
        answers = [await here.weights.update(here.publish(1, right))]
        here.sender.applied("actor", 1)

        async def nothing(manifest: WeightManifest) -> None:
            pass

        with monkeypatch.context() as patched:
            patched.setattr(vllm.engine, "load_weights", nothing)
            answers.append(await here.weights.update(here.publish(2, other)))
        here.sender.rejected("actor", 2)
        answers.append(await here.weights.update(here.publish(3, other)))
        return answers

    first, silent, last = vllm.run(run())
    assert isinstance(first, WeightsApplied)
    assert isinstance(silent, WeightsRejected)
    assert "changed nothing" in silent.reason
    assert silent.serving == 1
    assert isinstance(last, WeightsApplied), last


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_transport_brings_weights_to_the_engine(
    vllm: Any, sync: Callable[[str], Sync], models: Models, transport: str
) -> None:
    here = sync(transport)
    text = list(range(20, 60))
    for version, model in ((1, models[0]), (2, models[1]), (3, models[0])):
        answer = vllm.run(here.weights.update(here.publish(version, model)))
        here.sender.applied("actor", version)
        assert isinstance(answer, WeightsApplied), answer
        found = vllm.run(
            vllm.engine.prompt_logprobs(text, cache_salt=here.serving.new_salt(version))
        )
        assert np.abs(np.array(found) - full_forward(model, text)).max() < 1e-4


def test_old_weights_can_be_put_back_after_the_learner_came_back(
    vllm: Any, models: Models, tmp_path: Path
) -> None:
    """Its new ring took the name of the old one, and its first weights are bad."""
    right, other = models
    first = Sync(vllm, "shm", tmp_path, right)
    assert isinstance(vllm.run(first.weights.update(first.publish(1, right))), WeightsApplied)
    first.sender.close()
    second = Sync(vllm, "shm", tmp_path, right)
    bad = swap(second, second.publish(2, other))
    answer = vllm.run(first.weights.update(bad))
    assert isinstance(answer, WeightsRejected)
    assert first.serving.version == 1
    text = list(range(20, 60))
    found = vllm.run(vllm.engine.prompt_logprobs(text, cache_salt=first.serving.new_salt(0)))
    assert np.abs(np.array(found) - full_forward(right, text)).max() < 1e-4
    last = vllm.run(first.weights.update(second.publish(3, other)))
    assert isinstance(last, WeightsApplied), last
    first.transport.close()
    second.close()
