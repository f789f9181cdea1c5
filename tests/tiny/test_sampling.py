"""The sampler's cache is the one that spans describe: every log-probability comes out again."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM

from dynatok_online import attention
from dynatok_online.rows.plan import plan_rows
from dynatok_online.spans.audit import audit
from dynatok_online.tiny import model_path, world
from dynatok_online.tiny.sampling import decode, encode, sample_trajectories


@pytest.mark.parametrize(
    ("reuse", "block_size"),
    [("exact", 16), ("sticky", 16), ("sticky", 1), ("refresh:0-40+3", 1), ("refresh:999", 16)],
)
def test_logprobs_are_those_of_the_spans(reuse: str, block_size: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    tasks = list(islice(world.tasks("heldout", seed=3, max_tokens=128, edits=(2, 3)), 6))
    made = sample_trajectories(model, tasks, seed=1, reuse=reuse, block_size=block_size)
    assert not any(audit(one) for one in made)
    assert all(len(one.passes) >= 3 for one in made)
    attention.prepare(model, "concat")
    worst, other = 0.0, 0.0
    with torch.no_grad():
        for strategy in ("packed", "truncated"):
            for row in plan_rows(made, strategy=strategy):
                logits = model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]
                targets = torch.as_tensor(row.targets, dtype=torch.long)
                found = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
                gap = float((found - torch.as_tensor(row.logprobs)).abs().max())
                worst, other = (max(worst, gap), other) if strategy == "packed" else (worst, gap)
    assert worst < 1e-4
    # A fresh prompt says something else after a sticky edit.
    assert (other > 1e-2) == (reuse in ("sticky", "refresh:0-40+3"))


def test_forced_text_stands_where_it_was_put() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    (task,) = islice(world.tasks("heldout", seed=3, max_tokens=128, edits=(1, 1)), 1)
    (one,) = sample_trajectories(model, [task], forced=[{5: "[owls]"}])
    assert decode(one.response.tolist())[5:11] == "[owls]"
    assert encode("[owls]") == one.response[5:11].tolist()


def test_gold_responses_follow_every_edit() -> None:
    for task in islice(world.tasks("train", seed=9), 40):
        text = world.gold_response(task)
        assert len(text) == task.max_tokens
        for word in text.replace(".", " ").lower().split()[:-1]:
            assert word.isdecimal() or word in world.words()


def test_a_sampler_that_turns_no_keys_says_so() -> None:
    tasks = list(islice(world.tasks("heldout", seed=3, max_tokens=128, edits=(1, 1)), 1))
    with pytest.raises(ValueError, match=r"reuse is 'turned'.*write sticky"):
        sample_trajectories(torch.nn.Module(), tasks, reuse="turned")
