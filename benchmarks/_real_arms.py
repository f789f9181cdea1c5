"""The arms of the experiment on a real model, and how one is trained.

As in the tiny world (`_adherence_arms`): every arm sees the same gold texts in the same order, and
makes its own rows of them. Weights are kept in float32; on a GPU the model that runs is a bfloat16
copy of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks._adherence_arms import Arm, owned
from benchmarks._real_data import Gold, Speech
from dynatok_online import attention
from dynatok_online.rows.row import Row
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import ScheduledEdit, Task
from dynatok_online.trajectory import Trajectory

BLOCK_SIZE = 16
WARMUP = 10
CLIP = 1.0

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("packed_exact", "packed spans, exact"),
        Arm("packed_sticky", "packed spans, sticky", reuse="sticky"),
        Arm("truncated", "one truncated pass per state", "truncated"),
        Arm("snapshot_one", "snapshot masking, one state", one_state=True, divisor="states"),
        Arm("appended", "correction appended to the text", appended=True),
        Arm("snapshot_all", "snapshot masking, all states", "snapshot", divisor="states"),
    )
}
"""The most important first."""


@dataclass
class Master:
    """Float32 weights behind a model that may run in bfloat16."""

    model: Any

    def __post_init__(self) -> None:
        self.running = [one for one in self.model.parameters() if one.requires_grad]
        self.same = all(one.dtype == torch.float32 for one in self.running)
        self.weights = (
            self.running
            if self.same
            else [one.detach().float().requires_grad_() for one in self.running]
        )

    def take_gradients(self) -> float:
        """Move the model's gradients to the weights and clip them; their norm before that."""
        if not self.same:
            for weight, one in zip(self.weights, self.running, strict=True):
                assert one.grad is not None
                weight.grad = one.grad.float()
                one.grad = None
        return float(torch.nn.utils.clip_grad_norm_(self.weights, CLIP))

    def give_weights(self) -> None:
        """Copy the weights into the model."""
        if not self.same:
            with torch.no_grad():
                torch._foreach_copy_(self.running, self.weights)


def correction(edit: ScheduledEdit) -> str:
    """What stands in the text where the prompt cannot be edited."""
    return f" ({edit.slot}: {edit.state.text})"


def insertions(task: Task, speech: Speech) -> dict[int, list[int]]:
    """Index of the longer response -> the tokens of the correction that stands there."""
    out, shift = {}, 0
    for edit in task.edits:
        tokens = speech.encode.within(correction(edit))
        out[edit.index + shift] = tokens
        shift += len(tokens)
    return out


def without_edits(task: Task, speech: Speech) -> Task:
    """The task whose corrections are appended: its prompt stays, its text grows by them."""
    extra = sum(map(len, insertions(task, speech).values()))
    return msgspec.structs.replace(task, edits=(), max_tokens=task.max_tokens + extra)


def without_corrections(task: Task, tokens: list[int], speech: Speech) -> list[int]:
    """The response without the corrections, as far as it got."""
    for index, inserted in reversed(insertions(task, speech).items()):
        del tokens[index : index + len(inserted)]
    return tokens


def prepare(
    arm: Arm, gold: Gold, speech: Speech, rng: random.Random
) -> tuple[Trajectory, np.ndarray]:
    """The trajectory of a gold text, and the state that each token counts for.

    [R] int: the index of the pass, -1 for tokens without loss.
    """
    task, tokens = gold.task, gold.tokens
    if arm.appended:
        owner: list[int] = []
        out: list[int] = []
        at = 0
        for state, (index, inserted) in enumerate(insertions(task, speech).items()):
            part = tokens[at : at + index - len(out)]
            out += part + inserted
            owner += [state] * len(part) + [-1] * len(inserted)
            at += len(part)
        owner += [len(task.edits)] * (len(tokens) - at)
        one = scripted_trajectory(
            without_edits(task, speech), out + tokens[at:], speech.encode, block_size=BLOCK_SIZE
        )
        return one, np.array(owner)
    one = scripted_trajectory(task, tokens, speech.encode, reuse=arm.reuse, block_size=BLOCK_SIZE)
    return owned(one, rng if arm.one_state else None)


def batches(
    arm: Arm, golds: Sequence[Gold], speech: Speech, seed: int, batch: int
) -> Iterator[list[tuple[Trajectory, np.ndarray]]]:
    """Batches without end; the same texts in the same order for every arm of a seed."""
    order, rng = random.Random(seed), random.Random(f"{arm.name}/{seed}")
    while True:
        shuffled = list(golds)
        order.shuffle(shuffled)
        for start in range(0, len(shuffled) - batch + 1, batch):
            yield [prepare(arm, one, speech, rng) for one in shuffled[start : start + batch]]


def train(
    model: Any,
    arm: Arm,
    golds: Sequence[Gold],
    speech: Speech,
    *,
    seed: int,
    steps: int,
    batch: int,
    learning_rate: float,
    kernel: str,
    progress: Callable[[int, float], None] = lambda step, nll: None,
) -> dict[str, Any]:
    """Train `model` in place; what every step showed, and what all of it cost."""
    torch.manual_seed(seed)
    attention.prepare(model, kernel)
    model.train()
    master = Master(model)
    fused = model.device.type == "cuda"
    optimizer = torch.optim.AdamW(
        master.weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=fused
    )
    stream = batches(arm, golds, speech, seed, batch)
    result: dict[str, Any] = {"nll": [], "grad_norm": [], "seconds_at": []}
    loss_tokens, tokens, seconds = 0, 0, 0.0
    for step in range(steps):
        rows, count = arm.rows(next(stream))
        _wait(model)
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps)
        nll = backward(model, rows)
        norm = master.take_gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        master.give_weights()
        _wait(model)
        seconds += time.perf_counter() - began
        loss_tokens += count
        tokens += sum(row.tokens for row in rows)
        result["nll"].append(round(nll, 4))
        result["grad_norm"].append(round(norm, 3))
        result["seconds_at"].append(round(seconds, 3))
        progress(step + 1, nll)
    model.eval()
    return {
        **result,
        "seconds": seconds,
        "loss_tokens": loss_tokens,
        "tokens": tokens,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
    }


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a short rise, then half a cosine down to a tenth."""
    rise = min(1.0, (step + 1) / WARMUP)
    fall = 0.5 * (1 + np.cos(np.pi * step / max(steps, 1)))
    return float(rise * (0.1 + 0.9 * fall))


def backward(model: Any, rows: Sequence[Row]) -> float:
    """Gradients of the weighted sum; returns the plain mean NLL of the tokens with loss."""
    total, count = torch.zeros((), device=model.device), 0
    for row in rows:
        logits = model(**attention.inputs(row, model.device), use_cache=False).logits[0]
        targets = torch.as_tensor(row.targets, dtype=torch.long, device=model.device)
        weights = torch.as_tensor(row.weights, device=model.device)
        nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        (nll * weights).sum().backward()
        total += nll.detach()[weights > 0].sum()
        count += int((row.weights > 0).sum())
    return float(total) / count


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def working_attention(model: Any, golds: Sequence[Gold], speech: Speech) -> tuple[str, str]:
    """`concat` where it gives this model's gradients on this device, else `dense`; and why.

    It is tried on two sticky texts, against the written out mask.
    """
    arm = ARMS["packed_sticky"]
    rows, _ = arm.rows([prepare(arm, one, speech, random.Random(0)) for one in golds[:2]])
    found: dict[str, torch.Tensor] = {}
    try:
        for name in ("dense", "concat"):
            attention.prepare(model, name)
            backward(model, rows)
            found[name] = torch.cat(
                [one.grad.float().flatten() for one in model.parameters() if one.grad is not None]
            )
            model.zero_grad(set_to_none=True)
    except Exception as error:
        if "dense" not in found:
            raise
        return "dense", f"attention dense, as concat failed: {type(error).__name__}: {error}"
    apart = float((found["concat"] - found["dense"]).norm() / found["dense"].norm())
    # Two kernels in bfloat16 differ by rounding; a wrong mask differs by far more.
    most = 0.1 if next(model.parameters()).dtype == torch.bfloat16 else 1e-3
    chosen = "concat" if apart <= most else "dense"
    return chosen, f"attention {chosen}: gradients of concat {apart:.1e} from dense"
