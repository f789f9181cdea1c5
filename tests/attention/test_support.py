"""Refused with a reason, never silently wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dynatok_online import attention
from dynatok_online.rows.parts import Part, cut_row
from dynatok_online.rows.plan import Row, plan_rows
from tests.models import COMMON, make
from tests.simulate import World, simulate


def a_row() -> Row:
    (row,) = plan_rows([simulate(np.random.default_rng(0))])
    return row


@pytest.mark.parametrize("interface", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "gemma3", "gpt2"])
def test_a_model_that_is_not_prepared_refuses_rows(name: str, interface: str) -> None:
    model = make(name)
    model.set_attn_implementation(interface)
    with pytest.raises(ValueError, match="not prepared"):
        model(**attention.inputs(a_row(), "cpu"), use_cache=False)


def test_a_prepared_model_refuses_plain_batches() -> None:
    model = make("qwen3")
    attention.prepare(model)
    with pytest.raises(ValueError, match=r"attention\.inputs\(row, device\)"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))


def refused(model: Any) -> str:
    with pytest.raises(ValueError) as error:
        attention.prepare(model)
    return str(error.value)


def test_dropout() -> None:
    assert "attention_dropout = 0.1; set it to 0" in refused(make("qwen3", attention_dropout=0.1))


def test_soft_caps_and_other_layers() -> None:
    import transformers as t

    small = {**COMMON, "num_hidden_layers": 2}
    capped = t.Gemma2ForCausalLM(t.Gemma2Config(**small))
    assert "use attention: flex" in refused(capped)
    hybrid = t.Qwen3NextForCausalLM(
        t.Qwen3NextConfig(
            **{
                **small,
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 8,
                "shared_expert_intermediate_size": 8,
                "linear_num_value_heads": 2,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "layer_types": ["linear_attention", "full_attention"],
            }
        )
    )
    assert "layers of type 'linear_attention'" in refused(hybrid)


def test_recurrent_models_and_alibi() -> None:
    import transformers as t

    mamba = t.MambaForCausalLM(
        t.MambaConfig(vocab_size=23, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    assert "Mamba" in refused(mamba)
    bloom = t.BloomForCausalLM(t.BloomConfig(vocab_size=23, hidden_size=16, n_layer=1, n_head=2))
    assert "Bloom" in refused(bloom)


def test_not_a_transformers_model() -> None:
    assert "AutoModelForCausalLM" in refused(torch.nn.Linear(2, 2))


def test_unknown_attention() -> None:
    with pytest.raises(ValueError, match="use one of dense, concat, flex"):
        attention.prepare(make("llama"), "flash")


def test_flex_says_that_it_has_no_backward_on_cpu() -> None:
    model = make("llama", torch.float32)
    attention.prepare(model, "flex")
    with pytest.raises(ValueError, match="use attention: concat"):
        model(**attention.inputs(a_row(), "cpu"), use_cache=False)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_flex_forward_equals_dense(name: str) -> None:
    rng = np.random.default_rng(0)
    (row,) = plan_rows([simulate(rng) for _ in range(6)])
    assert row.tokens > 128
    logits = {}
    for kind in ("dense", "flex"):
        model = make(name, torch.float32)
        attention.prepare(model, kind)
        with torch.no_grad():
            logits[kind] = model(**attention.inputs(row, "cpu"), use_cache=False).logits
    assert (logits["flex"] - logits["dense"]).abs().max() < 1e-4


def test_flex_forward_of_parts_equals_dense() -> None:
    rng = np.random.default_rng(1)
    world = World(text=(60, 90), sampled=(30, 60))
    (row,) = plan_rows([simulate(rng, world=world) for _ in range(2)])
    assert any(part.below for part in cut_row(row))
    logits: dict[str, list[torch.Tensor]] = {"dense": [], "flex": []}
    for kind, found in logits.items():
        model = make("mistral", torch.float32, sliding_window=70, max_position_embeddings=1024)
        attention.prepare(model, kind)

        def forward(part: Part, layout: attention.Layout) -> torch.Tensor:
            found.append(model(**attention.inputs(part.row, "cpu", layout), use_cache=False).logits)  # noqa: B023
            return torch.zeros(())

        with torch.no_grad():
            for part in cut_row(row):
                attention.run_part(part, forward, lambda _, loss: None)
    for dense, flex in zip(logits["dense"], logits["flex"], strict=True):
        assert torch.allclose(flex, dense, rtol=0, atol=1e-4)


def test_flex_computes_soft_caps_and_sinks() -> None:
    """Against transformers' own attention, pass by pass; forward only, as on any CPU."""
    from benchmarks._edited_response import edited_response
    from benchmarks._small_models import small_model

    trajectory = edited_response("exact", 13, 3, 12, 3, 60)
    (row,) = plan_rows([trajectory])
    changes: dict[str, dict[str, float]] = {"gemma2": {"attn_logit_softcapping": 0.5}}
    for name in ("gemma2", "gpt_oss"):
        model = small_model(name, **changes.get(name, {})).float()
        plain = []
        with torch.no_grad():
            for k in range(len(trajectory.passes)):
                ids = torch.as_tensor(trajectory.tokens(k), dtype=torch.long)[None]
                at = slice(trajectory.fed_length(k) - 1, -1)
                plain.append(model(input_ids=ids, use_cache=False).logits[0, at])
            attention.prepare(model, "flex")
            found = model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
        torch.testing.assert_close(found, torch.cat(plain), atol=1e-4, rtol=1e-4)


def test_sinks_that_a_model_keeps_to_itself() -> None:
    from dynatok_online.attention.support import check_call

    class Odd(torch.nn.Module):
        sinks = torch.zeros(4)

    with pytest.raises(ValueError, match="does not hand them to the attention function"):
        check_call(Odd(), torch.zeros(1, 4, 3, 8), 0.0, None, {})
