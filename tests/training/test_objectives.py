"""Every objective through the trainer: the same loss and gradients however the batch is cut up."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Targets
from dynatok_online.objectives.written import LOSSES, objective_of
from dynatok_online.training.groups import advantages, group_keys
from dynatok_online.training.trainer import DynamicSFTTrainer
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory
from tests.training.test_trainer import config
from tests.training.train_curve import VOCAB, tiny_model

OBJECTIVES: list[Any] = [
    *LOSSES,
    {"name": "sft", "times": ["reward", "key", "importance"]},
    ["reward", {"name": "hinge", "scale": 0.1}],
]


def responses(count: int = 8) -> list[Trajectory]:
    """Four responses to each of two tasks, in three states."""
    rng = np.random.default_rng(0)
    tasks = [
        [rng.integers(0, VOCAB, n).astype(np.int32) for n in (12, 4, 4, 4)]
        for _ in range(count // 4)
    ]
    out = []
    for index in range(count):
        passes, at = [], 0
        for state in range(3):
            stop = at + int(rng.integers(3, 25))
            passes.append(
                Pass(
                    layout=(0, state + 1, RESPONSE),
                    states={"slot": str(state)},
                    start=at,
                    stop=stop,
                    num_cached_tokens=0,
                    scores={"slot": float(rng.random())},
                )
            )
            at = stop
        out.append(
            Trajectory(
                trajectory_id=str(index),
                pieces=tuple(tasks[index % len(tasks)]),
                response=rng.integers(0, VOCAB, at).astype(np.int32),
                logprobs=(rng.normal(-math.log(VOCAB), 0.2, at)).astype(np.float32),
                passes=tuple(passes),
            )
        )
    return out


class Gradients(TrainerCallback):
    """Keeps those of each step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.steps.append(torch.cat(found).clone())


def run(folder: Path, objective: Any, **options: Any) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and all gradients of two steps of eight responses."""
    keeps = Gradients()
    trainer = DynamicSFTTrainer(
        tiny_model().double(),
        config(
            folder,
            **{
                "objective": objective,
                "max_steps": 2,
                "optim": "sgd",
                "learning_rate": 0.1,
                "per_device_train_batch_size": 8,
                **options,
            },
        ),
        train_dataset=responses() * 2,
        callbacks=[keeps],
    )
    trainer.train()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    return losses, keeps.steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    runs = cache(lambda at: run(folder, OBJECTIVES[at]))
    return lambda objective: runs(OBJECTIVES.index(objective))


CUTS: list[dict[str, Any]] = [
    {"per_device_train_batch_size": 8 // a, "gradient_accumulation_steps": a, "memory": m}
    | {"max_row_tokens": budget}
    for budget in (256, 16384)
    for a in (1, 4)
    for m in ("row", "pass")
]


def check(whole: Any, folder: Path, objective: Any, cut: dict[str, Any]) -> None:
    losses, gradients = run(folder, objective, **cut)
    wanted, theirs = whole(objective)
    assert losses == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    for ours, other in zip(gradients, theirs, strict=True):
        assert float((ours - other).norm() / other.norm()) < 1e-6


@pytest.mark.parametrize("objective", ["eksft", "hapo"])
def test_same_in_rows_parts_and_micro_batches(whole: Any, tmp_path: Path, objective: Any) -> None:
    (cut,) = (one for one in CUTS if list(one.values()) == [2, 4, "pass", 256])
    check(whole, tmp_path, objective, cut)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: "-".join(map(str, cut.values())))
def test_same_over_all_cuts(whole: Any, tmp_path: Path, objective: Any, cut: Any) -> None:
    check(whole, tmp_path, objective, cut)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(one, marks=[] if one in ("eksft", "hapo") else [pytest.mark.slow])
        for one in OBJECTIVES
    ],
    ids=str,
)
def test_against_one_plain_forward_per_state(whole: Any, objective: Any) -> None:
    model, data = tiny_model().double(), responses()
    keys, scores = group_keys(data)
    given = torch.tensor(keys), torch.tensor(scores)
    advantage = iter(advantages(*given, *given).tolist())
    made = objective_of(objective)
    total, count = 0.0, 0
    for one in data:
        known = made.columns(one)
        for k, part in enumerate(one.passes):
            ids = torch.as_tensor(one.tokens(k), dtype=torch.long)
            with torch.no_grad():
                logits = model(ids[None]).logits[0, one.fed_length(k) - 1 : -1]
            own = slice(part.start, part.stop)
            columns = {
                "weight": torch.ones(part.stop - part.start),
                "recorded": torch.as_tensor(one.logprobs[own]),
                "score": torch.full((part.stop - part.start,), part.scores["slot"]),
                "advantage": torch.full((part.stop - part.start,), next(advantage)),
                **{name: torch.as_tensor(values[own]) for name, values in known.items()},
            }
            # The reference is the model itself: it has not moved yet.
            t = Targets(logits, ids[one.fed_length(k) :], columns, lambda x=logits: x)  # type: ignore[misc]
            total += float(made(t, Lagged(made.watches)).sum())
            count += part.stop - part.start
    assert whole(objective)[0][0] == pytest.approx(total / count, rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_trls_name_for_dft(whole: Any, tmp_path: Path) -> None:
    losses, _ = run(tmp_path, "sft", loss_type="dft")
    assert losses == whole("dft")[0]
    with pytest.raises(ValueError, match="contradict each other"):
        run(tmp_path, "asft", loss_type="dft")


@pytest.mark.slow
def test_dft_is_trls(tmp_path: Path) -> None:
    """On one static text, by TRL's own trainer."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    from dynatok_online.training.sources import no_tokenizer

    text = responses()[0]
    only = text.passes[0]
    ids = text.tokens(0).tolist()
    row = {"input_ids": ids, "labels": [-100] * text.fed_length(0) + ids[text.fed_length(0) :]}
    options: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 1,
    }
    theirs = SFTTrainer(
        tiny_model(),
        SFTConfig(**options, loss_type="dft", dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=datasets.Dataset.from_list([row]),
        processing_class=no_tokenizer(),
    )
    theirs.train()
    static = Trajectory(
        trajectory_id="static",
        pieces=text.pieces,
        response=text.response[: only.stop],
        logprobs=text.logprobs[: only.stop],
        passes=(only,),
    )
    ours = DynamicSFTTrainer(
        tiny_model(), config(tmp_path, max_steps=1, objective="dft"), train_dataset=[static] * 8
    )
    ours.train()
    found, wanted = (one.state.log_history[0]["loss"] for one in (ours, theirs))
    assert found == pytest.approx(wanted, rel=1e-6)


def test_statistics_go_on_from_a_checkpoint(whole: Any, tmp_path: Path) -> None:
    """Of EKSFT: the second step selects by what the first one saw."""
    options = {"save_strategy": "steps", "save_steps": 1}
    trainer = DynamicSFTTrainer(
        tiny_model().double(),
        config(
            tmp_path,
            objective="eksft",
            optim="sgd",
            learning_rate=0.1,
            max_steps=2,
            per_device_train_batch_size=8,
            **options,
        ),
        train_dataset=responses() * 2,
    )
    run(tmp_path, "eksft", max_steps=1, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    assert losses[-1] == pytest.approx(whole("eksft")[0][-1], rel=1e-6)


@pytest.mark.slow
def test_a_reference_of_switched_off_adapters_is_a_copy_of_the_start(tmp_path: Path) -> None:
    from peft import LoraConfig

    found = {}
    for reference in ("start", "adapter"):
        torch.manual_seed(0)
        trainer = DynamicSFTTrainer(
            tiny_model(),
            config(tmp_path, objective="asft", reference=reference, per_device_train_batch_size=8),
            train_dataset=responses() * 3,
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        )
        trainer.train()
        found[reference] = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    assert found["adapter"] == pytest.approx(found["start"], rel=1e-6)


@pytest.mark.slow
def test_a_reference_of_another_folder(tmp_path: Path, whole: Any) -> None:
    tiny_model().save_pretrained(tmp_path / "other")
    losses, _ = run(tmp_path, "asft", reference=str(tmp_path / "other"))
    assert losses == pytest.approx(whole("asft")[0], rel=1e-6)


def test_what_cannot_be_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train with LoRA, or use reference: start"):
        run(tmp_path, "asft", reference="adapter")
    with pytest.raises(ValueError, match="'asfd' is unknown; did you mean 'asft'"):
        run(tmp_path, "asfd")
    with pytest.raises(ValueError, match="objective context needs the log-probability of tokens"):
        run(tmp_path, "context", strategy="truncated")


def test_groups_that_are_none_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no two responses of this step answer the same prompt"):
        run(tmp_path, "grpo", per_device_train_batch_size=1)


def test_advantages_by_hand() -> None:
    keys = torch.tensor([1, 1, 2, 2, 3, 1])
    scores = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.9, math.nan])
    assert advantages(keys, scores, keys, scores).tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert advantages(keys[:1], scores[:1], keys, scores).tolist() == [-1.0]
