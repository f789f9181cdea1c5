"""Settings are checked where they are written, and importing them is cheap."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from actor.config import ActorConfig, DraftsConfig, EvaluationConfig, SamplingConfig
from actor.offline.config import CollectConfig


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
        (lambda: DraftsConfig(tokens=-1), "drafts.tokens is -1; write 0"),
        (lambda: DraftsConfig(tokens=65), "drafts.tokens is 65; write 0"),
    ],
)
def test_impossible_values_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


DRAFTS = DraftsConfig(tokens=4)


@pytest.mark.parametrize("config", [ActorConfig, CollectConfig])
@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"sampling": SamplingConfig(min_p=0.1)}, r"sampling.min_p is 0.1.*drafts: \{tokens: 0"),
        ({"engine": {"logits_processors": ["a:B"]}}, r"logits_processors.*drafts: \{tokens: 0"),
        ({"engine": {"async_scheduling": True}}, r"async_scheduling.*drafts: \{tokens: 0"),
    ],
)
def test_what_vllm_has_not_beside_drafts_is_refused(config, given, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        config(drafts=DRAFTS, **given)
    config(**given)


def test_drafts_of_vllm_itself_are_written_as_ours() -> None:
    with pytest.raises(ValueError, match=r"actor.engine.speculative_config: write actor.drafts"):
        ActorConfig(engine={"speculative_config": {"method": "eagle"}})


def test_round_trip() -> None:
    config = ActorConfig(engine={"max_num_seqs": 8}, sampling=SamplingConfig(top_k=5))
    plain = msgspec.to_builtins(config)
    assert msgspec.convert(plain, ActorConfig) == config
