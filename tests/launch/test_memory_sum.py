"""The sum of memory: by hand, against real models, against measured peaks."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from benchmarks import memory
from benchmarks.memory import LORA, SIZES, MemoryRow
from launch import doctor
from launch.config import RunConfig
from launch.memory_sum import GB, Shape, actor_sum, learner_sum, longest_row
from learner.config import LearnerConfig

EIGHT_B = LlamaConfig(**memory.EIGHT_B)
MEASURED = Path(__file__).parents[2] / "docs" / "benchmarks" / "memory.jsonl"


def zero(stage: int, **more: object) -> dict[str, object]:
    return {"zero_optimization": {"stage": stage, **more}}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES["0.1B"], tie_word_embeddings=True),
        Qwen3Config(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=500,
            tie_word_embeddings=False,
        ),
    ],
    ids=["llama", "qwen3"],
)
def test_parameters_are_those_of_the_model(config: object) -> None:
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    shape = Shape.of(config)
    real = sum(one.numel() for one in model.parameters())
    assert shape.parameters == pytest.approx(real, rel=1e-3)  # norms of heads are not counted
    with torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(**LORA))
    trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    assert shape.adapters(LORA) == trained
    assert shape.adapters({**LORA, "target_modules": "all-linear"}) == trained


def test_activations_are_what_autograd_keeps() -> None:
    """Counted storage by storage, in two shapes, for one trajectory of one state."""
    from benchmarks._edited_response import edited_response
    from dynatok_online import attention
    from dynatok_online.rows.plan import plan_rows

    for width, inner in ((256, 512), (384, 1024)):
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=200,
        )
        model = AutoModelForCausalLM.from_config(config).train()
        attention.prepare(model, "concat")
        (row,) = plan_rows([edited_response("exact", 64, 8, 120, 1, 200)])
        own = {one.untyped_storage().data_ptr() for one in model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(
            one: torch.Tensor,
            own: set[int] = own,
            kept: dict[int, torch.UntypedStorage] = kept,
        ) -> torch.Tensor:
            storage = one.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return one

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
            model(**attention.inputs(row, "cpu"), use_cache=False)
        found = sum(one.nbytes() for one in kept.values())
        wanted = 4 * Shape.of(config).activations(row.tokens, checkpointing=False)
        assert wanted == pytest.approx(found, rel=0.15)


def test_eight_billion_by_hand() -> None:
    shape = Shape.of(EIGHT_B)
    assert shape.parameters == pytest.approx(8.03e9, rel=1e-3)
    settings = LearnerConfig(ranks=8, training={"bf16": True, "gradient_checkpointing": True})
    found = {t.what: t.nbytes / GB for t in learner_sum(shape, settings, 4096, zero(2)).terms}
    assert found["weights"] == pytest.approx(16.06, rel=1e-3)
    assert found["gradients"] == pytest.approx(16.06 / 8, rel=1e-3)
    assert found["optimizer states"] == pytest.approx(12 * 8.03 / 8, rel=1e-3)
    assert found["weights on their way"] == pytest.approx(2 * 4 * 8.03, rel=1e-3)
    three = {t.what: t.nbytes / GB for t in learner_sum(shape, settings, 4096, zero(3)).terms}
    assert three["weights"] == pytest.approx(16.06 / 8, rel=1e-3)
    assert three["gathered weights"] == pytest.approx(2.0)


def test_offload_moves_and_lora_shrinks() -> None:
    shape = Shape.of(EIGHT_B)
    settings = LearnerConfig(ranks=4, training={"bf16": True})
    here = learner_sum(shape, settings, 512, zero(3))
    cpu = {"device": "cpu"}
    there = learner_sum(shape, settings, 512, zero(3, offload_optimizer=cpu, offload_param=cpu))
    moved = (12 + 2 + 2) * shape.parameters / 4
    assert there.of("host") == pytest.approx(here.of("host") + moved)
    # The float32 share of the step is not needed there either, only a bucket is.
    gone = 4 * shape.parameters / 4 - 2 * 5e8
    assert there.of("device") == pytest.approx(here.of("device") - moved - gone)
    lora = msgspec.structs.replace(settings, lora=LORA, weight_sync="adapter")
    small = learner_sum(shape, lora, 512, zero(2))
    states = next(one for one in small.terms if one.what == "optimizer states")
    assert states.nbytes < 0.2 * GB
    ring = next(one for one in small.terms if one.what == "weights on their way")
    assert ring.nbytes == 2 * 4 * shape.adapters(LORA)


def test_the_sum_is_near_what_was_measured_and_never_far_above() -> None:
    """`dynatok bench memory` made these figures. What glibc keeps, as it is told to, is not in
    the sum, and was up to 0.44 of a peak (docs/scaling.md)."""
    rows = [msgspec.json.decode(one, type=MemoryRow) for one in MEASURED.read_bytes().splitlines()]
    assert rows
    for one in rows:
        config = LlamaConfig(**SIZES[one.size], tie_word_embeddings=one.size == "0.1B")
        settings = LearnerConfig(
            ranks=one.ranks, lora=LORA if one.lora else {}, weight_transport="folder"
        )
        deepspeed = zero(one.stage) if one.stage else None
        found = learner_sum(Shape.of(config), settings, one.tokens, deepspeed).of()
        assert 0.55 * one.measured < found < 1.1 * one.measured, one


def write(tmp_path: Path, config: LlamaConfig, text: str) -> Path:
    config.save_pretrained(tmp_path / "model")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"model": str(tmp_path / "model"), **json.loads(text)}))
    return path


def test_the_doctor_refuses_what_cannot_fit_with_the_sum(tmp_path: Path) -> None:
    from launch.config import load_run

    text = '{"learner": {"deepspeed": {"zero_optimization": {"stage": 2}}}}'
    run = load_run(write(tmp_path, EIGHT_B, text))
    (found,) = doctor.fits(run, doctor.Machine(64 * GB))
    assert not found.ok
    assert "weights 32.1" in found.what
    assert "optimizer states 96.3" in found.what
    assert "KV cache 0.27" in found.what
    assert found.what.endswith("GB more")
    assert " of 64.0" in found.what
    assert "learner.lora" in found.fix
    (found,) = doctor.fits(run, doctor.Machine(1000 * GB))
    assert found.ok


def test_on_gpus_the_engine_has_its_share(tmp_path: Path) -> None:
    from launch.config import load_run

    text = json.dumps(
        {
            "actor": {"engine": {"gpu_memory_utilization": 0.4, "max_model_len": 1024}},
            "learner": {
                "lora": LORA,
                "weight_sync": "adapter",
                "training": {"bf16": True, "gradient_checkpointing": True},
            },
        }
    )
    run = load_run(write(tmp_path, EIGHT_B, text))
    rank, actor, host = doctor.fits(run, doctor.Machine(64 * GB, (80 * GB,)))
    assert rank.ok
    assert "of 48.0 GB that an engine leaves of a card of 80.0" in rank.what
    assert actor.ok
    assert host.ok
    small = doctor.fits(run, doctor.Machine(64 * GB, (24 * GB,)))
    assert [one.ok for one in small] == [False, False, True]


def test_rows_and_actors_of_the_defaults() -> None:
    run = RunConfig()
    least, most = longest_row(run.learner, run.actor)
    assert (least, most) == (512, 16384)
    shape = Shape.of(EIGHT_B)
    assert actor_sum(shape, run.actor, gpu=False).of("device") > 32 * GB


def test_a_model_that_says_no_sizes_is_not_added_up(tmp_path: Path) -> None:
    run = msgspec.structs.replace(RunConfig(), model=str(tmp_path / "nothing"))
    (found,) = doctor.fits(run, doctor.Machine(1.0))
    assert found.ok
    assert "not added up" in found.what
