"""The folder that vLLM loads a version's adapters from."""

import json

import torch
from safetensors.torch import load_file

from actor.engine.adapter_file import write_adapter
from protocol.wire.messages import Canary, PlacedWeights, TensorSpec


def test_a_payload_with_gaps_becomes_a_folder_of_peft(tmp_path):
    a, b = torch.randn(2, 3), torch.randn(5, 2)
    path = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    payload = b"other!!!" + a.numpy().tobytes().ljust(64) + b.numpy().tobytes()
    (tmp_path / "payload").write_bytes(payload)
    placed = PlacedWeights(
        version=3,
        transport="shm",
        slot=0,
        nbytes=len(payload) - 8,
        tensors=(
            TensorSpec(f"{path}A.weight", "F32", (2, 3), 0, 24, 0),
            TensorSpec(f"{path}B.weight", "F32", (5, 2), 64, 40, 0),
        ),
        canary=Canary((), (), 0.0),
        adapter_rank=2,
        path=str(tmp_path / "payload"),
        start=8,
    )
    write_adapter(tmp_path / "adapter", placed)
    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert found[f"{path}A.weight"].equal(a)
    assert found[f"{path}B.weight"].equal(b)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert config["target_modules"] == ["q_proj"]
