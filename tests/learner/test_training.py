"""What passes through to TRL and DeepSpeed, and what is refused."""

import pytest

from learner.config import LearnerConfig
from learner.training import deepspeed_arguments, training_arguments


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
    arguments = training_arguments(learner(tmp_path, training=training, seed=7))
    assert arguments.learning_rate == 0.5
    assert arguments.attention == "dense"
    assert arguments.lr_scheduler_type == "constant"
    assert arguments.objective == "reward"
    assert arguments.seed == 7


def test_accumulation_shares_the_trajectories_of_a_step(tmp_path):
    training = {"max_steps": 3, "use_cpu": True, "gradient_accumulation_steps": 4}
    arguments = training_arguments(learner(tmp_path, training=training, trajectories_per_step=16))
    assert arguments.per_device_train_batch_size == 4
    with pytest.raises(ValueError, match=r"must be divisible"):
        training_arguments(learner(tmp_path, training=training, trajectories_per_step=18))


@pytest.mark.parametrize(
    ("training", "match"),
    [
        ({"max_steps": 3, "learning_rat": 1}, "did you mean learning_rate"),
        ({"max_steps": 3, "seed": 1}, "set by the run's seed"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({}, "max_steps must be at least 1"),
    ],
)
def test_refuses(tmp_path, training, match):
    with pytest.raises(ValueError, match=match):
        training_arguments(learner(tmp_path, training=training))


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
    assert read["zero_optimization"] == {"stage": 3}
    with pytest.raises(ValueError, match="cannot read"):
        deepspeed_arguments(str(tmp_path / "missing.json"))
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        deepspeed_arguments(str(path))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trajectories_per_step": -1}, "learner.trajectories_per_step must be above 0, got -1"),
        ({"objective": "rewrd"}, "learner.objective must be reward or sft"),
        ({"weight_dtype": "fp32"}, "learner.weight_dtype must be float32"),
    ],
)
def test_config_checks_itself(options, match):
    with pytest.raises(ValueError, match=match):
        LearnerConfig(**options)
