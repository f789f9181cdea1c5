"""Adapters of their own: vLLM serves what peft trains, version after version, edits in the middle.

The engine is one that serves adapters, beside the one that other tests share.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actor.online.weight_updater import WeightUpdater
from actor.sessions.serving import Serving
from protocol.weights.shm import ShmReceiver, ShmSender
from protocol.wire.messages import Canary, WeightsApplied, WeightsRejected
from tests.actor.models import full_forward
from tests.actor.sessions.test_parity import Swarm, check
from tests.conftest import SharedEngine, small_engine

if TYPE_CHECKING:
    from protocol.wire.messages import WeightManifest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

RUN_ID = "adapter-tests"
LORA = {
    "r": 4,
    "lora_alpha": 12,
    "target_modules": "all-linear",
    "rank_pattern": {"q_proj": 6},
    "use_rslora": True,
}
TEXT = tuple(range(5, 45))


@pytest.fixture(scope="module")
def serving_adapters(random_model: Path) -> Iterator[SharedEngine]:
    """An engine with the arguments that `dynatok launch` would give it."""
    from learner.lora import engine_arguments

    with small_engine(random_model, RUN_ID, engine_arguments(LORA)) as shared:
        yield shared


@pytest.fixture(scope="module")
def trained(random_model: Path) -> Any:
    """The engine's model with adapters of peft, as after some training."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(random_model, dtype="float32")
    return moved(get_peft_model(plain.eval(), LoraConfig(task_type="CAUSAL_LM", **LORA)), 0)


def moved(model: Any, seed: int) -> Any:
    """A copy whose adapters have moved."""
    import torch

    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for one in other.parameters():
            if one.requires_grad:
                one.add_(0.1 * torch.randn_like(one))
    return other


def merged(model: Any) -> Any:
    return copy.deepcopy(model).merge_and_unload().eval()


@pytest.fixture
def publish(trained: Any) -> Iterator[Callable[..., WeightManifest]]:
    """`publish(version, model)`: its adapters, into shared memory."""
    import msgspec
    import torch

    from learner.online.gather import to_publish
    from learner.online.publisher import shapes, to_bytes
    from protocol.weights.payload import payload_bytes

    sent = to_publish(trained, torch.float32, "adapter")
    sender = ShmSender(RUN_ID, payload_bytes(shapes(sent.shapes)), slots=3)

    def one(version: int, model: Any, canary_of: Any = None) -> WeightManifest:
        texts = (TEXT, tuple(range(60, 10, -1)))
        asked = model if canary_of is None else canary_of
        said = tuple(tuple(map(float, full_forward(asked, text))) for text in texts)
        stream = to_publish(model, torch.float32, "adapter").stream()
        tensors = ((name, to_bytes(tensor)) for name, tensor in stream)
        manifest = sender.publish(version, tensors, Canary(texts, said, 1e-4))
        return msgspec.structs.replace(manifest, adapter_rank=sent.adapter_rank)

    yield one
    sender.close()


class AdapterSwarm(Swarm):
    """New adapters where the others have new weights."""

    async def _update(self, weights: WeightUpdater, version: int, model: Any = None) -> None:
        one = moved(self.reference, version)
        self.models[version] = merged(one)
        answer = await weights.update(self.ring(version, one))
        assert isinstance(answer, WeightsApplied), answer
        assert answer.canary_gap < 1e-5


@pytest.mark.parametrize("reuse", ["exact", "sticky"])
def test_parity(serving_adapters: Any, publish: Any, trained: Any, reuse: str) -> None:
    """Live sessions with edits, adapters changing in the middle, blocks evicted."""
    evicted = serving_adapters.engine.cache_log.removed_blocks
    swarm = AdapterSwarm(
        serving_adapters,
        publish,
        trained,
        reuse=reuse,
        placement="head",
        count=16,
        updates=2,
        on_weights="restart",
        seed=0,
        at_once=16,
    )
    done = serving_adapters.run(swarm.run(), timeout=280)
    found = check(swarm, done)
    found["evicted"] = serving_adapters.engine.cache_log.removed_blocks - evicted
    print(reuse, found)
    assert found["reused"] > 0
    assert found["versions"] == 3
    assert found["mean"] < 2e-6


def test_wrong_adapters_never_serve(serving_adapters: Any, publish: Any, trained: Any) -> None:
    """Refused by the canary; the last good ones are put back; nothing is left on disk."""
    vllm = serving_adapters
    serving = Serving(vllm.engine, f"{RUN_ID}/wrong")
    weights = WeightUpdater(vllm.engine, serving, ShmReceiver(RUN_ID), timeout=30)
    good, other = moved(trained, 1), moved(trained, 2)
    answer = vllm.run(weights.update(publish(1, good)))
    assert isinstance(answer, WeightsApplied), answer
    answer = vllm.run(weights.update(publish(2, other, canary_of=good)))
    assert isinstance(answer, WeightsRejected)
    assert "canary" in answer.reason
    said = vllm.run(vllm.engine.prompt_logprobs(TEXT, cache_salt=serving.cache_salt))
    assert np.abs(np.array(said) - full_forward(good, TEXT)).max() < 1e-5
    assert len(list(vllm.engine._sockets.glob("adapter-*"))) == 1


def test_an_engine_without_adapters_says_so(vllm: Any, publish: Any, trained: Any) -> None:
    serving = Serving(vllm.engine, f"{RUN_ID}/off")
    weights = WeightUpdater(vllm.engine, serving, ShmReceiver(RUN_ID), timeout=30)
    answer = vllm.run(weights.update(publish(1, trained)))
    vllm.run(vllm.engine.set_weight_label("default"))
    assert isinstance(answer, WeightsRejected)
    assert "actor.engine.enable_lora is off" in answer.reason
