"""The trainer: one sum over all loss tokens, divided once, however the batch is cut up."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import numpy as np
import pytest
import torch

from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from dynatok_online.trajectory import to_row
from tests.edited import tiny_model, trajectories
from tests.training.quiet import QUIET

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("one_thread")


def config(folder, **options):
    return DynamicSFTConfig(
        **{
            **QUIET,
            "output_dir": str(folder),
            "max_steps": 3,
            "learning_rate": 3e-3,
            "objective": "reward",
            **options,
        }
    )


def train(folder, data=None, resume=None, peft_config=None, **options):
    trainer = DynamicSFTTrainer(
        tiny_model(),
        config(folder, **options),
        train_dataset=trajectories(24) if data is None else data,
        peft_config=peft_config,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def curve(trainer, name="loss"):
    return [one[name] for one in trainer.state.log_history if "loss" in one]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three steps of eight trajectories, each in one row."""
    return train(tmp_path_factory.mktemp("whole"), per_device_train_batch_size=8)


def test_first_loss_is_the_weighted_sum_over_the_number_of_tokens(whole):
    """Against plain forwards, one per pass, without spans, plans or our attention."""
    model = tiny_model()
    total, count = 0.0, 0
    for one in trajectories(24)[:8]:
        for k, part in enumerate(one.passes):
            ids = torch.as_tensor(one.tokens(k), dtype=torch.long)[None]
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)
            at = np.arange(one.fed_length(k) - 1, ids.shape[1] - 1)
            chosen = logprobs[at, ids[0, at + 1]]
            total -= part.scores["slot"] * float(chosen.sum())
            count += part.stop - part.start
    assert curve(whole)[0] == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize(
    "cut",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 8, "max_row_tokens": 130},
        {"per_device_train_batch_size": 8, "attention": "dense"},
        {"per_device_train_batch_size": 8, "strategy": "truncated"},
        {"per_device_train_batch_size": 8, "strategy": "snapshot"},
        {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
        {"per_device_train_batch_size": 8, "memory": "pass"},
        {
            "per_device_train_batch_size": 8,
            "max_row_tokens": 130,
            "gradient_checkpointing": True,
            "memory": "pass",
        },
    ],
    ids=lambda cut: next(iter(reversed(cut))),
)
def test_same_curve_however_it_is_cut(whole, tmp_path, cut):
    other = train(tmp_path, **cut)
    assert curve(other) == pytest.approx(curve(whole), rel=2e-6)
    assert curve(other, "grad_norm") == pytest.approx(curve(whole, "grad_norm"), rel=1e-5)


def test_rows_of_a_dataset_are_the_same_as_objects(whole, tmp_path):
    path = tmp_path / "trajectories.jsonl"
    path.write_text("".join(json.dumps(to_row(one)) + "\n" for one in trajectories(24)))
    data = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert curve(train(tmp_path, data, per_device_train_batch_size=8)) == curve(whole)


def test_an_iterable_without_a_length(whole, tmp_path):
    stream = (one for one in trajectories(24))
    assert curve(train(tmp_path, stream, per_device_train_batch_size=8)) == curve(whole)
    with pytest.raises(ValueError, match="max_steps"):
        train(tmp_path, iter([]), max_steps=-1)


def test_an_iterable_that_ends_early_ends_the_training(tmp_path):
    stream = (one for one in trajectories(16))
    trainer = train(tmp_path, stream, per_device_train_batch_size=8, max_steps=100_000)
    assert trainer.state.global_step == 2


def test_what_is_logged(whole):
    first = whole.state.log_history[0]
    assert 0 < first["packing_ratio"] < 1
    assert 0 < first["weight_mean"] < 1
    assert first["logprob_drift"] > 0
    assert first["tokens_per_second"] > first["loss_tokens_per_second"] > 0
    assert first["peak_memory_mb"] > 50


@pytest.mark.parametrize("budget", [16384, 130])
def test_entropy_and_ratio_are_those_of_plain_forwards(tmp_path, budget):
    """Of the weights before the step, against what trajectories recorded."""
    model, data = tiny_model(), trajectories(8)
    entropy, values = [], []
    for one in data:
        for k, part in enumerate(one.passes):
            ids = torch.as_tensor(one.tokens(k), dtype=torch.long)[None]
            with torch.no_grad():
                logs = model(ids).logits[0].double().log_softmax(-1)
            at = np.arange(one.fed_length(k) - 1, ids.shape[1] - 1)
            entropy += (-(logs.exp() * logs).sum(-1)[at]).tolist()
            recorded = torch.as_tensor(one.logprobs[part.start : part.stop])
            values += (logs[at, ids[0, at + 1]] - recorded).exp().tolist()
    (first,) = train(
        tmp_path, data, max_steps=1, per_device_train_batch_size=8, max_row_tokens=budget
    ).state.log_history[:1]
    ratios = np.array(values)
    assert first["entropy"] == pytest.approx(np.mean(entropy), rel=1e-6)
    assert first["importance_ratio"] == pytest.approx(np.mean(ratios), rel=1e-5)
    assert first["importance_ratio_max"] == pytest.approx(np.max(ratios), rel=1e-5)
    assert first["policy_kl"] == pytest.approx(np.mean(ratios - 1 - np.log(ratios)), rel=1e-5)


def test_resumes_where_it_was_saved(whole, tmp_path):
    options = {"per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 1}
    train(tmp_path, max_steps=1, **options)
    resumed = train(tmp_path, resume=str(tmp_path / "checkpoint-1"), **options)
    assert curve(resumed) == pytest.approx(curve(whole), rel=1e-6)


def test_evaluation_is_a_loss(whole, tmp_path):
    trainer = DynamicSFTTrainer(
        tiny_model(),
        config(tmp_path, per_device_eval_batch_size=8),
        train_dataset=trajectories(8),
        eval_dataset=trajectories(8),
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(curve(whole)[0], rel=1e-6)


def test_experts_are_balanced_over_the_tokens_of_a_row(tmp_path):
    """As transformers does over the same tokens, which stand in one sequence of its own."""
    from benchmarks._edited_response import edited_response
    from benchmarks._small_models import small_model

    data = [edited_response("exact", 13, 3, 12, 1, 60)]
    losses = {}
    for coefficient in (0.0, 0.5):
        trainer = DynamicSFTTrainer(
            small_model("qwen3_moe").float(),
            config(
                tmp_path,
                objective="sft",
                max_steps=1,
                per_device_train_batch_size=1,
                router_aux_loss_coef=coefficient,
            ),
            train_dataset=data,
        )
        trainer.train()
        losses[coefficient] = curve(trainer)[0]
    ids = torch.as_tensor(data[0].tokens(0)[:-1], dtype=torch.long)[None]
    plain = small_model("qwen3_moe").float()
    wanted = plain(ids, output_router_logits=True, use_cache=False).aux_loss.item()
    assert wanted > 0
    assert curve(trainer, "aux_loss")[0] == pytest.approx(wanted, rel=1e-5)
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * wanted, rel=1e-4)


def test_lora_trains_the_adapters_only(whole, tmp_path):
    from peft import LoraConfig

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = train(tmp_path, peft_config=lora, per_device_train_batch_size=8)
    assert curve(trainer)[0] == pytest.approx(curve(whole)[0], rel=1e-6)
    assert curve(trainer)[-1] != curve(whole)[-1]
    before, model = tiny_model(), trainer.model.get_base_model()
    assert model.model.embed_tokens.weight.equal(before.model.embed_tokens.weight)


@pytest.mark.parametrize("memory", ["row", "pass"])
def test_bf16_stays_near(whole, tmp_path, memory):
    half = train(tmp_path, bf16=True, memory=memory, per_device_train_batch_size=8)
    assert curve(half) == pytest.approx(curve(whole), rel=0.02)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"packing": True}, "packing=True is not supported: rows are always packed"),
        ({"strategy": "pcked"}, "strategy must be one of packed, truncated, snapshot"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"max_row_tokens": 0}, "max_row_tokens must be at least 1"),
        ({"memory": "little"}, "memory must be one of row, pass"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        config(tmp_path, **options)


def test_what_bears_no_parts_is_refused(tmp_path):
    reentrant = {"use_reentrant": True}
    with pytest.raises(ValueError, match="reentrant checkpointing does not build"):
        config(
            tmp_path,
            memory="pass",
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=reentrant,
        )
    with pytest.raises(ValueError, match="activation_offloading, which expects"):
        config(tmp_path, memory="pass", activation_offloading=True)


def test_data_that_is_not_trajectories(tmp_path):
    text = datasets.Dataset.from_list([{"text": "hello"}])
    with pytest.raises(ValueError, match=r"lacks the columns .*to_row"):
        train(tmp_path, text)
    with pytest.raises(ValueError, match=r"load a file with datasets\.load_dataset"):
        train(tmp_path, "trajectories.jsonl")


def test_the_example_trains(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    path = tmp_path / "trajectories.jsonl"
    path.write_text("".join(json.dumps(to_row(one)) + "\n" for one in trajectories(8)))
    example = runpy.run_path(str(ROOT / "docs/example_dynamic_sft.py"))
    example["main"](str(tmp_path / "model"), str(path), str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()


def run_ranks(tmp_path, ranks, *, share, **options):
    """The curve of `train_curve.py` on so many ranks, over 20 steps."""
    options = {"max_steps": 20, "max_row_tokens": 150} | options
    options["per_device_train_batch_size"] = share
    script = "tests/training/train_curve.py"
    return json.loads(spawn(tmp_path, ranks, script, "{out}", json.dumps(options)).read_text())


def spawn(tmp_path, ranks, script, *arguments, suffix=".json", seconds=240):
    """Run a script of ours as so many ranks. Returns the file `{out}` that it wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}{suffix}"
    given = [one.replace("{out}", str(out)) for one in arguments]
    logs = [out.with_suffix(f".{rank}.log") for rank in range(ranks)]
    started = []
    deadline = time.monotonic() + seconds
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as text:
                started.append(
                    subprocess.Popen(
                        [sys.executable, str(ROOT / script), *given],
                        env={
                            **os.environ,
                            "PYTHONPATH": str(ROOT),
                            "RANK": str(rank),
                            "LOCAL_RANK": str(rank),
                            "WORLD_SIZE": str(ranks),
                            "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": str(port),
                            "OMP_NUM_THREADS": "1",
                        },
                        stdout=text,
                        stderr=subprocess.STDOUT,
                    )
                )
        for process, log in zip(started, logs, strict=True):
            code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
            assert code == 0, log.read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return out


WAYS: list[dict[str, Any]] = [
    *({"ranks": n, "zero": z, "accumulate": a} for n in (1, 2) for z in range(4) for a in (1, 4)),
    *({"ranks": 2, "accumulate": a} for a in (1, 4)),
    *({"ranks": n, "zero": z, "accumulate": 2, "memory": "pass"} for n, z in ((2, None), (2, 2))),
    *(
        {"ranks": n, "zero": z, "accumulate": a, "lora": True}
        for n, z, a in ((1, 2, 4), (2, None, 4), (2, 1, 1), (2, 2, 4), (2, 3, 1))
    ),
]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The curve of one rank without DeepSpeed, of all weights or of adapters."""
    folder = tmp_path_factory.mktemp("single")
    return cache(lambda lora: run_ranks(folder, 1, lora=lora, share=8)["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", WAYS, ids=lambda way: "-".join(f"{k}{v}" for k, v in way.items() if v is not None)
)
def test_ranks_stages_and_accumulation_agree(tmp_path, single, way):
    """Eight trajectories a step, in rows of at most 150 tokens, so that ranks have unequal rows."""
    way = dict(way)
    ranks, steps = way.pop("ranks"), way.pop("accumulate")
    got = run_ranks(
        tmp_path, ranks, gradient_accumulation_steps=steps, **way, share=8 // ranks // steps
    )
    wanted = single(way.get("lora", False))
    assert len(got["loss"]) == len(wanted) == 20
    assert wanted[-1] < wanted[0]
    difference = np.abs(np.array(got["loss"]) / np.array(wanted) - 1).max()
    print(f"largest relative difference: {difference:.1e}")
    assert difference < 5e-6
