"""The loss of a row in chunks: the same loss and gradients as from all logits at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks._edited_response import edited_response
from dynatok_online import attention
from dynatok_online.rows.plan import plan_rows
from dynatok_online.training import chunk, head
from dynatok_online.training.chunk import Chunk
from dynatok_online.training.head import ChunkedHead
from tests.models import make


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MOST_TARGETS", 5)
    monkeypatch.setitem(chunk._AT_ONCE, "cpu", 50)  # of a vocabulary of 23: two rows


Losses = Callable[[Chunk, torch.Tensor], torch.Tensor]
"""(logits of targets, their ids) -> their losses."""


def by_log_prob(logits: Chunk, ids: torch.Tensor) -> torch.Tensor:
    return -logits.log_prob(ids)


def by_logits(logits: Chunk, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.whole, ids, reduction="none")


def by_both(logits: Chunk, ids: torch.Tensor) -> torch.Tensor:
    """Whole logits, asked for second, and two words of each target."""
    other = logits.log_prob((ids + 1) % 23)
    spread = logits.whole.softmax(-1).square().sum(-1)
    return spread * logits.log_prob(ids) - 0.3 * other


def row_of(vocabulary: int = 23) -> Any:
    (row,) = plan_rows([edited_response("exact", 13, 3, 12, 3, vocabulary)])
    return row


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def both(model: Any, loss_of: Losses = by_log_prob) -> tuple[Any, Any]:
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

        if chunked:

            def losses(logits: Chunk, piece: slice) -> torch.Tensor:
                assert len(logits) <= 5
                loss = loss_of(logits, targets[piece])
                return loss * weights[piece].to(loss.dtype)

            loss, found = ChunkedHead(base).run(call, losses)
            assert found.logits.numel() == 0
        else:
            loss = loss_of(Plain(head._wide(call().logits[0])), targets)  # type: ignore[arg-type]
            loss = (loss * weights.to(loss.dtype)).sum()
        (0.7 * loss).backward()
        out.append((loss.item(), copy.deepcopy(gradients(model))))
    return out[0], out[1]


class Plain:
    """All logits as autograd has them: what chunks are held against."""

    def __init__(self, whole: torch.Tensor) -> None:
        self.whole = whole

    def log_prob(self, ids: torch.Tensor) -> torch.Tensor:
        return self.whole.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def check(model: Any, tolerance: float = 1e-12, loss_of: Losses = by_log_prob) -> None:
    (wanted, theirs), (found, ours) = both(model, loss_of)
    assert found == pytest.approx(wanted, rel=tolerance)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = float(theirs[name].abs().max()) or 1.0
        torch.testing.assert_close(gradient, theirs[name], atol=tolerance * scale, rtol=0, msg=name)


EVERY = pytest.mark.parametrize("loss_of", [by_log_prob, by_logits, by_both])


@EVERY
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_loss_and_all_gradients(name: str, tied: bool, loss_of: Losses) -> None:
    change = {"tie_word_embeddings": tied} if name == "qwen3" else {}
    check(make(name, **change), loss_of=loss_of)


@EVERY
def test_soft_capped_logits(loss_of: Losses) -> None:
    check(make("gemma3", final_logit_softcapping=0.7), 1e-6, loss_of)


@EVERY
def test_scaled_logits(loss_of: Losses) -> None:
    import transformers as t

    from tests.models import COMMON

    torch.manual_seed(0)
    check(
        t.GraniteForCausalLM(t.GraniteConfig(**COMMON, logits_scaling=0.3)).double(), 1e-6, loss_of
    )
    torch.manual_seed(0)
    check(t.CohereForCausalLM(t.CohereConfig(**COMMON, logit_scale=0.3)).double(), 1e-6, loss_of)


def test_a_head_with_a_bias() -> None:
    model = make("qwen3")
    model.lm_head = torch.nn.Linear(32, 23, bias=True).double()
    check(model)


@EVERY
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"bias": "lora_only"}])
def test_an_adapter_on_the_head(options: dict[str, Any], loss_of: Losses) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], **options)
    model = get_peft_model(make("qwen3", tie_word_embeddings=False), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    check(model.double(), 1e-6, loss_of)


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
            lambda logits, piece: logits.whole.logsumexp(-1),
        )
    assert not loss.requires_grad
    assert float(loss) > 0


def test_the_head_is_left_as_it_was() -> None:
    model = make("qwen3")
    attention.prepare(model)
    with pytest.raises(ZeroDivisionError):
        ChunkedHead(model).run(
            lambda: model(**attention.inputs(row_of(), "cpu"), use_cache=False),
            lambda logits, piece: logits.whole.sum() * (1 // 0),
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
        lambda logits, piece: logits.whole.sum(-1),
    )
    loss.backward()
    assert loss.item() == 0
    assert all(not one.any() for one in gradients(model).values())
    assert "lm_head.weight" in gradients(model)


def test_the_gradient_of_log_p_takes_no_memory_of_its_own() -> None:
    logits = torch.randn(6, 23)
    ids = torch.arange(6)
    wanted = logits.clone().requires_grad_()
    (wanted.log_softmax(-1).gather(-1, ids[:, None])[:, 0] * ids).sum().backward()
    ours = Chunk(logits, spare=True)
    found = ours.gradient((ours.log_prob(ids) * ids).sum())
    assert found is not None
    assert found.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(found, wanted.grad, atol=1e-6, rtol=0)


def test_entropy_takes_no_whole_logits() -> None:
    """Of p = (.5, .3, .2): 1.0297; of three words of which one cannot be: ln 2."""
    import math

    given = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.0, 0.5]]).log() + 3.0
    chunk = Chunk(given.clone())
    found = chunk.entropy()
    torch.testing.assert_close(found, torch.tensor([1.0296530, math.log(2)]))
    assert not found.requires_grad
    assert not chunk.was_whole
    assert Chunk(given[:0]).entropy().shape == (0,)
