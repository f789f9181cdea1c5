"""LoRA adapters of one version as the folder that vLLM loads them from.

Names are peft's, and the scaling is in the matrices already, so `lora_alpha` is the rank.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path

from protocol.weights.base import Tensor
from protocol.weights.safetensors_file import Layout
from protocol.wire.messages import PlacedWeights


def write_adapter(folder: Path, placed: PlacedWeights) -> None:
    """Make `folder` of a payload that was fetched and verified."""
    names = {spec.name.partition(".lora_")[0].rpartition(".")[2] for spec in placed.tensors}
    config = {
        "peft_type": "LORA",
        "r": placed.adapter_rank,
        "lora_alpha": placed.adapter_rank,
        "target_modules": sorted(names),
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with open(placed.path, "rb") as source:
        payload = memoryview(mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ))
    payload = payload[placed.start : placed.start + placed.nbytes]
    tensors = {
        one.name: Tensor(one.dtype, one.shape, payload[one.offset : one.offset + one.nbytes])
        for one in placed.tensors
    }
    layout = Layout({name: (one.dtype, one.shape) for name, one in tensors.items()})
    with (folder / "adapter_model.safetensors").open("wb") as file:
        layout.write(file.fileno(), placed.version, tensors.items())
