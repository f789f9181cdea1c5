"""The loss of a row in chunks: the same loss and gradients as from all logits at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks._edited_response import edited_response
from dynatok_online import attention
from dynatok_online.rows.plan import plan_rows
from dynatok_online.training import head
from dynatok_online.training.head import ChunkedHead
from tests.models import make


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MOST_TARGETS", 5)


def row_of(vocabulary: int = 23) -> Any:
    (row,) = plan_rows([edited_response("exact", 13, 3, 12, 3, vocabulary)])
    return row


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def both(model: Any) -> tuple[Any, Any]:
    """(loss, gradients) of all logits at once, and in chunks of five."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention.prepare(base)
    row = row_of()
    targets = torch.as_tensor(row.targets, dtype=torch.long)
    weights = torch.linspace(-0.5, 1.5, len(targets))
    out = []
    for chunked in (False, True):
        model.zero_grad()
        inputs = attention.inputs(row, "cpu")

        def call(given: Any = inputs) -> Any:
            return model(**given, use_cache=False)

        def losses(
            logits: torch.Tensor, piece: slice, most: int = 5 if chunked else len(targets)
        ) -> torch.Tensor:
            assert len(logits) <= most
            nll = F.cross_entropy(logits, targets[piece], reduction="none")
            return nll * weights[piece].to(nll.dtype)

        if chunked:
            loss, found = ChunkedHead(base).run(call, losses)
            assert found.logits.numel() == 0
        else:
            loss = losses(call().logits[0], slice(None)).sum()
        (0.7 * loss).backward()
        out.append((loss.item(), copy.deepcopy(gradients(model))))
    return out[0], out[1]


def check(model: Any, tolerance: float = 1e-12) -> None:
    (wanted, theirs), (found, ours) = both(model)
    assert found == pytest.approx(wanted, rel=tolerance)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = float(theirs[name].abs().max()) or 1.0
        torch.testing.assert_close(gradient, theirs[name], atol=tolerance * scale, rtol=0, msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_loss_and_all_gradients(name: str, tied: bool) -> None:
    change = {"tie_word_embeddings": tied} if name == "qwen3" else {}
    check(make(name, **change))


def test_soft_capped_logits() -> None:
    check(make("gemma3", final_logit_softcapping=0.7), 1e-6)


def test_scaled_logits() -> None:
    import transformers as t

    from tests.models import COMMON

    torch.manual_seed(0)
    check(t.GraniteForCausalLM(t.GraniteConfig(**COMMON, logits_scaling=0.3)).double(), 1e-6)
    torch.manual_seed(0)
    check(t.CohereForCausalLM(t.CohereConfig(**COMMON, logit_scale=0.3)).double(), 1e-6)


def test_a_head_with_a_bias() -> None:
    model = make("qwen3")
    model.lm_head = torch.nn.Linear(32, 23, bias=True).double()
    check(model)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"bias": "lora_only"}])
def test_an_adapter_on_the_head(options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], **options)
    model = get_peft_model(make("qwen3", tie_word_embeddings=False), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    check(model.double(), 1e-6)


def test_a_frozen_head_gets_no_gradient() -> None:
    model = make("qwen3", tie_word_embeddings=False)
    model.lm_head.requires_grad_(False)
    check(model)


def test_half_precision_adds_up_in_float32() -> None:
    """No further from float64 than autograd's own gradient of the same head."""
    model = make("qwen3", torch.bfloat16, tie_word_embeddings=False)
    (_, theirs), (_, ours) = both(model)
    (_, exact), _ = both(make("qwen3", tie_word_embeddings=False))

    def apart(found: dict[str, torch.Tensor]) -> float:
        return float((found["lm_head.weight"].double() - exact["lm_head.weight"]).norm())

    assert apart(ours) <= 1.1 * apart(theirs)


def test_autocast() -> None:
    model = make("qwen3", torch.float32, tie_word_embeddings=False)
    with torch.autocast("cpu", torch.bfloat16):
        (wanted, theirs), (found, ours) = both(model)
    assert found == pytest.approx(wanted, rel=1e-2)
    for name, gradient in ours.items():
        assert gradient.dtype == torch.float32
        cosine = F.cosine_similarity(gradient.flatten(), theirs[name].flatten(), 0)
        assert float(cosine) > 0.999, name


def test_without_gradient() -> None:
    model = make("qwen3")
    attention.prepare(model)
    row = row_of()
    with torch.no_grad():
        loss, _ = ChunkedHead(model).run(
            lambda: model(**attention.inputs(row, "cpu"), use_cache=False),
            lambda logits, piece: logits.logsumexp(-1),
        )
    assert not loss.requires_grad
    assert float(loss) > 0


def test_the_head_is_left_as_it_was() -> None:
    model = make("qwen3")
    attention.prepare(model)
    with pytest.raises(ZeroDivisionError):
        ChunkedHead(model).run(
            lambda: model(**attention.inputs(row_of(), "cpu"), use_cache=False),
            lambda logits, piece: logits.sum() * (1 // 0),
        )
    assert "forward" not in vars(model.lm_head)
    assert not model.lm_head._forward_hooks


def test_a_row_without_targets_has_zero_gradients() -> None:
    from dynatok_online.rows.row import empty_row

    model = make("qwen3")
    attention.prepare(model)
    row = empty_row()
    loss, _ = ChunkedHead(model).run(
        lambda: model(**attention.inputs(row, "cpu"), use_cache=False),
        lambda logits, piece: logits.sum(-1),
    )
    loss.backward()
    assert loss.item() == 0
    assert all(not one.any() for one in gradients(model).values())
    assert "lm_head.weight" in gradients(model)
