"""What LoRA trains is what vLLM serves: the canary is the adapted model's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from actor.online.weight_updater import WeightUpdater
from actor.sessions.serving import Serving
from protocol.config import ProtocolConfig
from protocol.weights.transports import FollowingReceiver, open_sender
from protocol.wire.messages import Canary, WeightsApplied, WeightsRejected
from tests.actor.models import full_forward

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Answer = WeightsApplied | WeightsRejected
TEXT = tuple(range(5, 45))


def gathered(model: Any) -> dict[str, Any]:
    """All of a stream, kept."""
    import torch

    from learner.online.gather import stream_weights

    return {name: one.clone() for name, one in stream_weights(model, torch.float32)}


class Sync:
    """A learner's sender and the shared engine's updater."""

    def __init__(self, vllm: Any, run_dir: Path, weights: Mapping[str, Any]) -> None:
        from learner.online.publisher import shapes

        self.sender = open_sender(
            "shm", ProtocolConfig(), vllm.run_id, run_dir, shapes(dict(weights))
        )
        self.transport = FollowingReceiver(ProtocolConfig(), vllm.run_id, run_dir)
        serving = Serving(vllm.engine, f"{vllm.run_id}/adapters")
        self.updater = WeightUpdater(vllm.engine, serving, self.transport, timeout=30)
        self.run = vllm.run

    def update(self, version: int, weights: Mapping[str, Any], trained: Any) -> Answer:
        """Publish `weights`, which are said to compute what `trained` computes."""
        from learner.online.publisher import to_bytes

        canary = Canary((TEXT,), (tuple(map(float, full_forward(trained, TEXT))),), 1e-4)
        tensors = ((name, to_bytes(one)) for name, one in weights.items())
        manifest = self.sender.publish(version, tensors, canary, ["actor"])
        answer: Answer = self.run(self.updater.update(manifest))
        if isinstance(answer, WeightsApplied):
            self.sender.applied("actor", version)
        else:
            self.sender.rejected("actor", version)
        return answer


@pytest.fixture
def sync(vllm: Any, reference: Any, tmp_path: Path) -> Iterator[Sync]:
    weights = gathered(reference)
    one = Sync(vllm, tmp_path, weights)
    yield one
    try:
        assert isinstance(one.update(9, weights, reference), WeightsApplied)
    finally:
        one.transport.close()
        one.sender.close()
        vllm.run(vllm.engine.set_weight_label("default"))


def test_the_engine_computes_what_the_adapted_model_computes(reference: Any, sync: Sync) -> None:
    """DoRA on linear layers and embeddings, a trained head and norm, adapters by pattern."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        use_dora=True,
        use_rslora=True,
        rank_pattern={"q_proj": 8},
        target_modules=["q_proj", "v_proj", "down_proj", "embed_tokens"],
        modules_to_save=["lm_head", "norm"],
    )
    model = get_peft_model(copy.deepcopy(reference), config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(0.05 * torch.randn_like(one))
    weights = gathered(model)
    answer = sync.update(1, weights, model)
    assert isinstance(answer, WeightsApplied), answer
    assert answer.canary_gap < 1e-5

    plain = gathered(reference)
    for version, name in enumerate(("model.embed_tokens.weight", "model.norm.weight"), 2):
        bad = {**weights, name: plain[name]}
        answer = sync.update(version, bad, model)
        assert isinstance(answer, WeightsRejected), f"{name} without its adapter"
        assert "canary" in answer.reason
