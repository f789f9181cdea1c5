"""What passes through to TRL and DeepSpeed, and what is refused."""

from typing import Any

import pytest

from dynatok_online.objectives.written import FACTORS, LOSSES
from learner.config import LearnerConfig
from learner.offline.config import TrainConfig
from learner.training import deepspeed_arguments, stream_arguments, training_arguments


def learner(tmp_path, **options):
    return LearnerConfig(
        **{
            "run_dir": str(tmp_path),
            "training": {"max_steps": 3, "use_cpu": True},
            "deepspeed": {},
            **options,
        }
    )


def test_passes_through_over_the_defaults(tmp_path):
    training = {"max_steps": 3, "use_cpu": True, "learning_rate": 0.5, "attention": "dense"}
    arguments = stream_arguments(learner(tmp_path, training=training, seed=7), tmp_path)
    assert arguments.learning_rate == 0.5
    assert arguments.attention == "dense"
    assert arguments.lr_scheduler_type == "constant"
    assert arguments.objective == "reward"
    assert arguments.seed == 7


def test_accumulation_shares_the_trajectories_of_a_step(tmp_path):
    training = {"max_steps": 3, "use_cpu": True, "gradient_accumulation_steps": 4}
    arguments = stream_arguments(
        learner(tmp_path, training=training, trajectories_per_step=16), tmp_path
    )
    assert arguments.per_device_train_batch_size == 4
    with pytest.raises(ValueError, match=r"must be divisible"):
        stream_arguments(learner(tmp_path, training=training, trajectories_per_step=18), tmp_path)


@pytest.mark.parametrize(
    ("training", "match"),
    [
        ({"max_steps": 3, "learning_rat": 1}, "did you mean learning_rate"),
        ({"max_steps": 3, "seed": 1}, r"learner\.training\.seed is set by learner\.seed"),
        ({"max_steps": 3, "save_total_limit": 1}, "must keep two whole checkpoints"),
        ({"max_steps": 3, "gradient_accumulation_steps": 0}, "must be at least 1, got 0"),
        ({"max_steps": 3, "eval_strategy": "never"}, r"learner\.training: .*never"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({}, "max_steps must be at least 1"),
    ],
)
def test_refuses(tmp_path, training, match):
    with pytest.raises(ValueError, match=match):
        stream_arguments(learner(tmp_path, training=training), tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"training": {"learning_rat": 1}},
            "training.learning_rat is not an argument of SFTConfig; did you mean learning_rate?",
        ),
        ({"training": {"seed": 1}}, "training.seed is set by seed instead"),
        (
            {"training": {"max_steps": 0}},
            "training.max_steps must be at least 1, got 0: it says when training ends",
        ),
        ({"deepspeed": "nowhere.json"}, "deepspeed: cannot read nowhere.json"),
        (
            {"training": {"gradient_accumulation_steps": 3}},
            "trajectories_per_step (16) must be divisible by gradient_accumulation_steps times "
            "the number of ranks (3)",
        ),
    ],
)
def test_offline_errors_name_the_fields_of_dynatok_train(tmp_path, options, said):
    config = TrainConfig(data="x", **options)
    with pytest.raises(ValueError) as error:
        training_arguments(config, tmp_path, where="", defaults={"max_steps": 3, "use_cpu": True})
    assert str(error.value) == said


def test_offline_may_keep_one_checkpoint(tmp_path):
    config = TrainConfig(data="x", training={"save_total_limit": 1, "use_cpu": True}, deepspeed={})
    arguments = training_arguments(config, tmp_path, where="", defaults={"max_steps": 3})
    assert arguments.save_total_limit == 1


def test_deepspeed_is_a_mapping_or_a_file(tmp_path):
    assert deepspeed_arguments({}) is None
    given = deepspeed_arguments({"zero_optimization": {"stage": 1}, "gradient_clipping": 0.5})
    assert given is not None
    assert given["gradient_clipping"] == 0.5
    assert given["train_batch_size"] == "auto"
    path = tmp_path / "zero3.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    read = deepspeed_arguments(str(path))
    assert read is not None
    assert read["zero_optimization"]["stage"] == 3
    with pytest.raises(ValueError, match="cannot read"):
        deepspeed_arguments(str(tmp_path / "missing.json"))
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        deepspeed_arguments(str(path))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trajectories_per_step": -1}, "learner.trajectories_per_step must be above 0, got -1"),
        (
            {"objective": "rewrd"},
            "learner.objective: objective 'rewrd' is unknown; did you mean 'reward'",
        ),
        ({"weight_dtype": "fp32"}, "learner.weight_dtype must be float32"),
        ({"training": {"learning_rate": "fast"}}, "learning_rate must be a number, got 'fast'"),
    ],
)
def test_config_checks_itself(options, match):
    with pytest.raises(ValueError, match=match):
        LearnerConfig(**options)


@pytest.mark.parametrize(
    "objective",
    [
        *LOSSES,
        *FACTORS,
        {"name": "asft", "kl": 0.03, "times": ["reward", "key", "importance"]},
        ["reward", {"name": "hinge", "scale": 0.1}],
    ],
    ids=str,
)
def test_the_learner_takes_every_objective(tmp_path, objective):
    arguments = stream_arguments(learner(tmp_path, objective=objective), tmp_path)
    assert arguments.make_objective().terms


@pytest.mark.parametrize(
    ("objective", "match"),
    [
        ({"name": "asft", "lk": 1}, r"learner\.objective: .*did you mean 'kl'"),
    ],
)
def test_objectives_that_the_learner_cannot_have_are_named(tmp_path, objective, match):
    with pytest.raises(ValueError, match=match):
        learner(tmp_path, objective=objective)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "asft needs a reference, which canno"),
        ({"training": {"reference": "adapter"}}, "adapters switched off, and it has none; write"),
    ],
)
def test_references_that_cannot_be_are_named(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        LearnerConfig(objective="asft", **options)
    LearnerConfig(objective="dft", **options)
    with pytest.raises(ValueError, match=match):
        TrainConfig(data="x.jsonl", objective="asft", **options)


def test_nothing_is_published_offline():
    given: dict[str, Any] = {"objective": "asft", "training": {"reference": "published"}}
    assert LearnerConfig(**given).training["reference"] == "published"
    with pytest.raises(ValueError, match="and nothing is published offline; write start, adapter"):
        TrainConfig(data="x.jsonl", **given)


def test_hindsight_needs_passes_that_compute_earlier_text():
    hinge = {"name": "hinge", "times": ["hindsight"]}
    common: dict[str, Any] = {"data": "x.jsonl", "objective": ["reward", hinge]}
    TrainConfig(**common)
    with pytest.raises(
        ValueError, match=r"hindsight needs passes that .*reuse is both; write exac"
    ):
        TrainConfig(**common, reuse="both")
    with pytest.raises(ValueError, match="with placement late it stands before the slots; write"):
        TrainConfig(**common, placement="late")


def test_offline_training_takes_groups():
    assert TrainConfig(data="x.jsonl", objective="hapo").objective == "hapo"
    with pytest.raises(ValueError, match="did you mean 'hapo'"):
        TrainConfig(data="x.jsonl", objective="hapoo")


@pytest.mark.parametrize(
    ("zero", "whole"),
    [
        ({"stage": 3}, True),
        ({"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}, False),
        ({"stage": 2}, None),
    ],
)
def test_zero_3_saves_a_whole_model_unless_told_otherwise(zero, whole):
    made = deepspeed_arguments({"zero_optimization": zero})
    assert made is not None
    assert made["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save") is whole
