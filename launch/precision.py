"""Which precision `auto` means: bfloat16 where this machine is faster in it, else float32.

On CPUs that is where the matrix units (AMX) multiply it. Processors with AVX512-BF16 alone do not
gain: measured on one, a product of the sizes of a model of 135 million parameters ran at 84
billion operations a second and core, and at 150 in float32.

`training.bf16: auto` and `engine.dtype: auto` are decided when a configuration is read, so what
was decided stands in the resolved one, and a run that is resumed elsewhere keeps it. On GPUs the
engine's `auto` is left to vLLM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from launch.environment import has_gpu

AUTO = "auto"
CPUINFO = Path("/proc/cpuinfo")
TOLERANCE = 0.05
"""How far two sides may differ that each round to eight bits in an order of their own."""

T = TypeVar("T", bound=msgspec.Struct)


def fast_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this machine multiplies matrices of bfloat16 faster than of float32."""
    if has_gpu():
        return True
    try:
        return "amx_bf16" in cpuinfo.read_text().split()
    except OSError:  # not Linux
        return False


def settled(config: T) -> T:
    """The same configuration with every `auto` decided."""
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    changed: dict[str, Any] = {}
    training, engine = fields.get("training"), fields.get("engine")
    if isinstance(training, dict) and training.get("bf16") == AUTO:
        changed["training"] = training | {"bf16": fast_bfloat16()}
    if isinstance(engine, dict) and engine.get("dtype") == AUTO and not has_gpu():
        changed["engine"] = engine | {"dtype": "bfloat16" if fast_bfloat16() else "float32"}
    if {"actor", "learner"} <= fields.keys():
        changed["actor"] = settled(fields["actor"])
        changed["learner"] = _agreeing(fields["actor"], settled(fields["learner"]))
    return msgspec.structs.replace(config, **changed) if changed else config


def _agreeing(actor: Any, learner: Any) -> Any:
    """The learner publishes what an engine in half precision holds, and expects to be less near."""
    if actor.engine.get("dtype") != AUTO or not fast_bfloat16():
        return learner
    default = type(learner)()
    fitting = {
        "weight_dtype": "bfloat16",
        "canary_tolerance": TOLERANCE,
        "logprob_gap_threshold": TOLERANCE,
    }
    unset = {k: v for k, v in fitting.items() if getattr(learner, k) == getattr(default, k)}
    return msgspec.structs.replace(learner, **unset)
