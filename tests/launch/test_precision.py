"""`auto` is decided once, by what the processor says, and stands in the resolved configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import launch
from actor.offline.config import EvalConfig, GoldConfig
from launch import precision
from launch.config import RunConfig, load_process, load_run
from launch.precision import fast_bfloat16, settled
from learner.offline.config import TrainConfig

CONFIGS = Path(launch.__file__).parent / "configs"
AUTO = {
    "actor": {"engine": {"dtype": "auto"}},
    "learner": {"training": {"bf16": "auto", "max_steps": 3}, "canary_tolerance": 0.2},
}


@pytest.fixture(params=[True, False], ids=["amx", "no amx"])
def amx(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    flags = "fpu sse2 avx512f avx512_bf16" + (" amx_bf16 amx_tile" if request.param else "")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbogomips\t: 1\n")
    monkeypatch.setattr(precision, "has_gpu", lambda: False)
    monkeypatch.setattr(precision.fast_bfloat16, "__defaults__", (cpuinfo,))
    return bool(request.param)


def test_it_is_bfloat16_where_matrix_units_multiply_it(amx: bool) -> None:
    assert fast_bfloat16() is amx


def test_a_machine_that_says_nothing_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_gpu", lambda: False)
    assert not fast_bfloat16(Path("/nowhere/cpuinfo"))


def test_a_run_agrees_on_what_was_decided(amx: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(AUTO))
    config = load_run(path)
    assert config.actor.engine == {"dtype": "bfloat16" if amx else "float32"}
    learner, default = config.learner, RunConfig().learner
    assert learner.training == {"bf16": amx, "max_steps": 3}
    assert learner.weight_dtype == ("bfloat16" if amx else "float32")
    assert learner.canary_tolerance == 0.2  # what is written stays
    assert learner.logprob_gap_threshold == (0.05 if amx else default.logprob_gap_threshold)
    assert settled(config) == config


def test_an_engine_in_float32_keeps_the_tight_bounds(amx: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"learner": AUTO["learner"]}))
    learner = load_run(path, ["--learner.canary-tolerance", "1e-3"]).learner
    assert learner.training["bf16"] is amx
    assert (learner.weight_dtype, learner.logprob_gap_threshold) == ("float32", 1e-3)


def test_the_shipped_real_model_decides_and_the_tiny_one_stays(amx: bool) -> None:
    train = load_process(CONFIGS / "smollm2-train.yaml", TrainConfig)
    assert train.training["bf16"] is amx
    for name, into in (("gold", GoldConfig), ("eval", EvalConfig)):
        engine = load_process(CONFIGS / f"smollm2-{name}.yaml", into).engine
        assert engine["dtype"] == ("bfloat16" if amx else "float32")
    loop = load_run(CONFIGS / "smollm2.yaml")
    assert (loop.learner.training["bf16"], loop.learner.weight_dtype) == (amx, "float32")
    tiny = load_run(CONFIGS / "tiny.yaml")
    assert "bf16" not in tiny.learner.training
    assert "dtype" not in tiny.actor.engine


def test_a_gpus_engine_decides_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_gpu", lambda: True)
    assert settled(GoldConfig(engine={"dtype": "auto"})).engine == {"dtype": "auto"}
    train = TrainConfig(data="x.jsonl", training={"bf16": "auto"})
    assert settled(train).training == {"bf16": True}
