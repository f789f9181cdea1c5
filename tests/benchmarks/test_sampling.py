"""Sampling under edits: what was recorded is what a packed forward of the trajectory computes."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks._sampling import sample_trajectories
from dynatok_online import attention
from dynatok_online.rows.plan import plan_rows
from dynatok_online.spans.audit import audit
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from dynatok_online.trajectory import Trajectory
from tests.models import make

STOP = 0


def encode(text: str) -> list[int]:
    return [ord(sign) for sign in text]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def tasks() -> list[Task]:
    """Prompts of several lengths; states of several widths; two rows edited at the same index."""
    edits = [((4, "b", "one"), (9, "a", "UPPER CASE")), ((4, "a", "x"),), (), ((1, "b", "yy"),)]
    return [
        Task(
            f"t{i}",
            "Write" + "." * i + "{{a}} and {{b}}:",
            {"a": SlotState("low"), "b": SlotState("three")},
            tuple(ScheduledEdit(at, slot, SlotState(text)) for at, slot, text in some),
            max_tokens=16 - i,
        )
        for i, some in enumerate(edits)
    ]


def again(model: LlamaForCausalLM, trajectories: list[Trajectory]) -> float:
    """The largest distance of recorded log-probabilities from those of the packed rows."""
    prepared = copy.deepcopy(model)
    attention.prepare(prepared, "dense")
    worst = 0.0
    for row in plan_rows(trajectories):
        with torch.no_grad():
            logits = prepared(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
        targets = torch.as_tensor(row.targets).long()
        found = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].numpy()
        worst = max(worst, float(np.abs(found - row.logprobs).max()))
    return worst


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("reuse", ["exact", "sticky", "refresh:1-5", "refresh:2+1", "turned"])
def test_recorded_logprobs_are_those_of_the_packed_rows(
    model: LlamaForCausalLM, reuse: str, block_size: int
) -> None:
    found = sample_trajectories(model, tasks(), encode, reuse=reuse, block_size=block_size)
    assert [len(one.passes) for one in found] == [3, 2, 1, 2]
    assert not any(audit(one) for one in found)
    assert again(model, found) < 1e-4


def test_a_slot_behind_the_response_moves_and_is_recomputed(model: LlamaForCausalLM) -> None:
    late = [
        msgspec.structs.replace(one, template="Go: {{response}} ({{a}}, {{b}})") for one in tasks()
    ]
    assert again(model, sample_trajectories(model, late, encode)) < 1e-4


def test_both_ways_of_reuse_in_one_batch(model: LlamaForCausalLM) -> None:
    both = [tasks()[0], tasks()[0]]
    found = sample_trajectories(model, both, encode, reuse=["exact", "sticky"], block_size=2)
    assert [one.policy for one in found] == ["exact", "sticky"]
    assert again(model, found) < 1e-4


def test_a_response_ends_with_a_stop_token_and_later_edits_are_left_out(
    model: LlamaForCausalLM,
) -> None:
    words = {0: [*encode("ab"), STOP]}
    one, *_ = sample_trajectories(model, tasks()[:1], encode, stop={STOP}, forced=[words])
    assert one.response.tolist() == [*encode("ab"), STOP]
    assert [part.finish_reason for part in one.passes] == ["stop"]
    assert not one.edits


def test_forced_tokens_stand_where_they_should_and_are_scored(model: LlamaForCausalLM) -> None:
    found = sample_trajectories(
        model, tasks()[:2], encode, forced=[{2: encode("xyz")}, {0: encode("q")}]
    )
    assert found[0].response[2:5].tolist() == encode("xyz")
    assert found[1].response[0] == ord("q")
    assert again(model, found) < 1e-4


def test_the_same_seed_draws_the_same_tokens(model: LlamaForCausalLM) -> None:
    first, second, other = (
        sample_trajectories(model, tasks(), encode, seed=seed) for seed in (1, 1, 2)
    )
    assert [one.response.tolist() for one in first] == [one.response.tolist() for one in second]
    assert [one.response.tolist() for one in first] != [one.response.tolist() for one in other]


def test_windows_shorter_than_the_text_are_refused(model: LlamaForCausalLM) -> None:
    windowed = copy.deepcopy(model)
    windowed.config.sliding_window = 8
    with pytest.raises(ValueError, match="windows of 8 tokens"):
        sample_trajectories(windowed, tasks(), encode)


def test_turning_is_refused_by_name_before_anything_is_sampled() -> None:
    gpt2 = make("gpt2", torch.float32)
    with pytest.raises(ValueError, match=r"gpt2.* is not known to turn whole keys"):
        sample_trajectories(gpt2, tasks(), encode, reuse="turned")
