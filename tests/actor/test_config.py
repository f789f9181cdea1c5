"""Settings are checked where they are written, and importing them is cheap."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from actor.config import ActorConfig, EvaluationConfig, SamplingConfig


def test_importing_the_config_pulls_in_nothing_heavy() -> None:
    heavy = "{'torch', 'vllm', 'transformers', 'deepspeed'}"
    code = f"import sys, actor.config; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ActorConfig(sessions=0), "actor.sessions"),
        (lambda: SamplingConfig(temperature=-1), "temperature"),
        (lambda: SamplingConfig(top_p=0), "top_p"),
        (lambda: SamplingConfig(min_p=2), "min_p"),
        (lambda: SamplingConfig(top_k=-1), "top_k"),
        (lambda: SamplingConfig(max_tokens=0), "max_tokens"),
        (lambda: EvaluationConfig(tasks=0), "tasks"),
    ],
)
def test_impossible_values_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_round_trip() -> None:
    config = ActorConfig(engine={"max_num_seqs": 8}, sampling=SamplingConfig(top_k=5))
    plain = msgspec.to_builtins(config)
    assert msgspec.convert(plain, ActorConfig) == config
