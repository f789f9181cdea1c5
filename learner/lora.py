"""What of `learner.lora` can be served: actors hold a plain model, adapters merged into it.

`check_names` looks at the names alone. `check_model` builds model and adapters without weights and
looks at what came out; it is exact, and takes as long as importing torch and peft does. A process
of its own does it before a run starts:

    python -m learner.lora MODEL '{"r": 8, "target_modules": ["embed_tokens"]}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

_UNSERVABLE: Final = {
    "alora_invocation_tokens": "it adapts only what follows certain tokens",
    "arrow_config": "it chooses among adapters token by token",
    "use_bdlora": "peft does not merge its blocks",
    "layer_replication": "it makes a model with other layers",
    "megatron_config": "it is for Megatron's layers",
}
"""Arguments of peft's `LoraConfig` -> why no plain model computes the same."""


def check_names(lora: Mapping[str, Any], where: str = "learner.lora") -> None:
    """Raise ValueError for an argument that cannot be served whatever the model is."""
    for name, why in _UNSERVABLE.items():
        if lora.get(name):
            raise ValueError(
                f"{where}.{name} cannot be served: actors load adapters merged into the weights, "
                f"and {why}; leave it out"
            )


def check_model(model: str, lora: Mapping[str, Any]) -> None:
    """Raise ValueError where the adapters that `lora` puts into `model` cannot be served."""
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from learner.online.adapters import check_servable
    from learner.training import lora_arguments

    config = lora_arguments({**lora, "init_lora_weights": False})["peft_config"]
    try:
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
            plain.tie_weights()
            adapted = get_peft_model(plain, config)
    except Exception:
        return  # the learner itself says what is wrong, with the weights at hand
    check_servable(adapted)


if __name__ == "__main__":
    try:
        check_model(sys.argv[1], json.loads(sys.argv[2]))
    except ValueError as error:
        sys.exit(" ".join(str(error).split()))
