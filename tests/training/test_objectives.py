"""Every objective through the trainer: the same loss and gradients however the batch is cut up."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Scored, Targets
from dynatok_online.objectives.written import objective_of
from dynatok_online.training.groups import advantages, group_keys
from dynatok_online.training.trainer import DynamicSFTTrainer
from dynatok_online.trajectory import Trajectory
from tests.edited import responses, tiny_model
from tests.oracle import attention_on_the_prompt, exact_logits, without_edit
from tests.training.table import CUTS, HINDSIGHT, MASKED, OBJECTIVES, cell, run, trainer
from tests.training.test_trainer import config, spawn

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-6
WHOLE = (16384, 1, "row")
THIN: list[Any] = ["eksft", "hapo", {"name": "contrast", "power": 2}, "sstoken", MASKED]
"""Of earlier steps; groups and recorded log-probabilities; ghosts; whole trajectories; inputs."""


@pytest.fixture(scope="module")
def whole() -> Any:
    """What an objective gives where all eight responses are one row; computed once."""
    runs = cache(lambda at: cell(OBJECTIVES[at], WHOLE))
    return lambda objective: runs(OBJECTIVES.index(objective))


def apart(found: Any, wanted: Any) -> float:
    """The largest relative difference of a step's loss, or of all its gradients."""
    (losses, gradients), (others, theirs) = found, wanted
    assert len(losses) == len(gradients) == 2
    of_losses = np.abs(losses - others) / np.maximum(np.abs(others), 1e-3)
    norms = np.linalg.norm(gradients - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    return float(max(of_losses.max(), norms.max()))


@pytest.mark.parametrize("objective", THIN, ids=str)
def test_same_in_rows_parts_and_micro_batches(whole: Any, objective: Any) -> None:
    """A thin slice of the table below."""
    assert apart(cell(objective, (256, 4, "pass")), whole(objective)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_table(whole: Any, tmp_path: Path) -> None:
    """Row budgets x accumulation x memory x ranks x every objective: the same losses and gradients,
    or a refusal that names the reason (there is none)."""
    out = spawn(tmp_path, 2, "tests/training/table.py", "{out}", suffix=".npz", seconds=1800)
    two = np.load(out)
    worst: dict[tuple[str, int], float] = {}
    for i, objective in enumerate(OBJECTIVES):
        wanted = whole(objective)
        assert not isinstance(wanted, str), wanted
        for j, cut in enumerate(CUTS):
            assert f"{i}.{j}.refused" not in two, f"{objective} {cut}: {two[f'{i}.{j}.refused']}"
            both = {
                1: cell(objective, cut),
                2: (two[f"{i}.{j}.losses"], two[f"{i}.{j}.gradients"]),
            }
            for ranks, found in both.items():
                assert not isinstance(found, str), f"{objective} {cut}: {found}"
                key = str(objective), ranks
                worst[key] = max(worst.get(key, 0.0), apart(found, wanted))
    for (name, ranks), most in worst.items():
        print(f"{name}, {ranks} rank(s), {len(CUTS)} cuts: at most {most:.1e} apart")
    assert max(worst.values()) < TOLERANCE


@pytest.fixture(scope="module")
def plain() -> Any:
    """[R] each, of every response: logits by a forward per pass, and what needs bring."""
    model, eager = tiny_model().double(), tiny_model().double()
    eager.set_attn_implementation("eager")
    found = []
    for one in responses():
        with torch.no_grad():
            logits = torch.cat([logits for _, logits in exact_logits(model, one)])
        found.append((logits, without_edit(model, one), attention_on_the_prompt(eager, one)))
    return found


def known(one: Trajectory, logits: torch.Tensor, context: Any, mass: Any, made: Any) -> Any:
    """[R] each: the columns of a response, without any of the code that plans or scores rows."""
    lengths = [part.stop - part.start for part in one.passes]
    ids = torch.as_tensor(one.response.astype(np.int64))
    logp = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].numpy()
    # The reference is the model itself: it has not moved yet.
    scored = Scored(logp=logp, recorded=one.logprobs, reference=logp, prompt_mass=mass)
    columns = {
        "weight": np.ones(len(ids)),
        "recorded": one.logprobs,
        "score": np.repeat([part.scores["slot"] for part in one.passes], lengths),
        "context": context,
        **made.columns(one),
        **{key: factor.among(scored) for (key, _), factor in made.whole().items()},
    }
    return ids, {name: torch.as_tensor(values) for name, values in columns.items()}, lengths


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(one, marks=[] if one in THIN else [pytest.mark.slow], id=str(one))
        for one in OBJECTIVES
        if one not in (MASKED, HINDSIGHT)  # tests/training/test_masked.py, test_hindsight.py
    ],
)
def test_against_one_plain_forward_per_state(whole: Any, plain: Any, objective: Any) -> None:
    data, made = responses(), objective_of(objective)
    keys, scores = group_keys(data)
    given = torch.tensor(keys), torch.tensor(scores)
    advantage = iter(advantages(*given, *given).tolist())
    total, count = 0.0, 0
    for one, (logits, context, mass) in zip(data, plain, strict=True):
        ids, columns, lengths = known(one, logits, context, mass, made)
        of_passes = [next(advantage) for _ in lengths]
        columns["advantage"] = torch.tensor(of_passes).repeat_interleave(torch.tensor(lengths))
        t = Targets(logits, ids, columns, lambda x=logits: x)  # type: ignore[misc]
        total += float(made(t, Lagged(made.watches)).sum())
        count += len(ids)
    assert whole(objective)[0][0] == pytest.approx(total / count, rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_trls_name_for_dft(whole: Any) -> None:
    losses, _ = run("sft", loss_type="dft")
    assert losses.tolist() == whole("dft")[0].tolist()
    with pytest.raises(ValueError, match="contradict each other"):
        run("asft", loss_type="dft")


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
    options: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 1,
        "output_dir": str(tmp_path),
    }
    run("eksft", max_steps=1, **options)
    made = trainer("eksft", **options)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    losses = [one["loss"] for one in made.state.log_history if "loss" in one]
    assert losses[-1] == pytest.approx(whole("eksft")[0][-1], rel=1e-6)


@pytest.mark.slow
def test_a_reference_of_switched_off_adapters_is_a_copy_of_the_start(tmp_path: Path) -> None:
    from peft import LoraConfig

    found = {}
    for reference in ("start", "adapter"):
        torch.manual_seed(0)
        made = DynamicSFTTrainer(
            tiny_model(),
            config(tmp_path, objective="asft", reference=reference, per_device_train_batch_size=8),
            train_dataset=responses() * 3,
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        )
        made.train()
        found[reference] = [one["loss"] for one in made.state.log_history if "loss" in one]
    assert found["adapter"] == pytest.approx(found["start"], rel=1e-6)


@pytest.mark.slow
def test_a_reference_of_another_folder(tmp_path: Path, whole: Any) -> None:
    tiny_model().save_pretrained(tmp_path / "other")
    losses, _ = run("asft", reference=str(tmp_path / "other"))
    assert losses == pytest.approx(whole("asft")[0], rel=1e-6)


def test_what_cannot_be_is_said_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="train with LoRA, or use reference: start"):
        run("asft", reference="adapter")
    with pytest.raises(ValueError, match="and nothing is published here; write start, adapter or"):
        run("asft", reference="published")
    with pytest.raises(ValueError, match="'asfd' is unknown; did you mean 'asft'"):
        run("asfd")
    with pytest.raises(ValueError, match="objective context needs the log-probability of tokens"):
        run("context", strategy="truncated")


def test_groups_that_are_none_are_an_error() -> None:
    with pytest.raises(ValueError, match="no two responses of this step answer the same prompt"):
        run("grpo", per_device_train_batch_size=1)


def test_advantages_by_hand() -> None:
    keys = torch.tensor([1, 1, 2, 2, 3, 1])
    scores = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.9, math.nan])
    assert advantages(keys, scores, keys, scores).tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert advantages(keys[:1], scores[:1], keys, scores).tolist() == [-1.0]
