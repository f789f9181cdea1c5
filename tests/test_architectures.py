"""Every causal family that transformers and vLLM share: exact, or refused by name."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from benchmarks.models import measure

EXACT = (
    *("afmoe", "apertus", "arcee", "axk1", "cohere", "cohere2", "cohere2_moe", "cwm", "dbrx"),
    *("deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe"),
    *("flex_olmo", "gemma", "gemma3_text", "gemma3n_text", "gemma4_text", "glm", "glm4"),
    *("glm4_moe", "glm4_moe_lite", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss"),
    *("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "hrm_text"),
    *("hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "jais2", "laguna", "llama"),
    *("longcat_flash", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2", "ministral3"),
    *("mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3"),
    *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2"),
)

REFUSED = {
    "soft-capped attention scores": ("gemma2", "vaultgemma"),
    "does not ask transformers' attention registry": ("bloom", "falcon", "gptj", "stablelm"),
    "layers of type 'linear_attention'": (
        *("falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "mamba", "mamba2"),
        *("nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
        "qwen4_exp_text",
    ),
    "layers of type 'hybrid'": ("falcon_h1", "zamba2"),
    "layers of type 'hybrid_sliding'": ("inkling_text",),
    "layers of type 'conv'": ("lfm2", "lfm2_moe"),
    "layers of type 'chunked_attention'": ("llama4_text",),
    "layers of type 'indexed_attention'": ("deepseek_v32", "glm_moe_dsa", "hy_v4"),
    "layers of type 'heavily_compressed_attention'": ("deepseek_v4",),
}

FAST = (
    *("deepseek_v3", "gemma2", "gemma3_text", "gpt_oss", "granite_swa", "llama", "mimo_v2_flash"),
    *("mistral", "mixtral", "opt", "phi3", "qwen2", "qwen3_moe", "qwen3_next"),
)
"""What differs most in attention; the others are `slow` because they are many."""


pytestmark = pytest.mark.usefixtures("one_thread")


def _marked(names):
    return [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(names)
    ]


@pytest.mark.parametrize("family", _marked(EXACT))
def test_exact(family):
    found = measure(family)
    assert found.error is not None, found.said
    assert found.error < 1e-5


@pytest.mark.parametrize("family", _marked(name for names in REFUSED.values() for name in names))
def test_refused_by_name(family):
    (reason,) = (reason for reason, names in REFUSED.items() if family in names)
    assert reason in measure(family).refused


@pytest.mark.slow
def test_no_family_is_left_out():
    from benchmarks._small_models import families

    listed = {*EXACT, *(name for names in REFUSED.values() for name in names)}
    assert families().keys() == listed
