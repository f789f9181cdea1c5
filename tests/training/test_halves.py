"""Half fine-tuning: what stands still is equal bit by bit, and what does not, moves."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch
from transformers import TrainerCallback

from dynatok_online.training.halves import Halves, draw
from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from tests.edited import tiny_model, trajectories
from tests.models import make

pytestmark = pytest.mark.usefixtures("one_thread")


class Watch(TrainerCallback):
    """Compares weights and moments before and after every step."""

    def __init__(self, halves):
        self.halves, self.before, self.steps, self.frozen = halves, {}, 0, []

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **_):
        self.before = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.moments = self._moments(model, optimizer)

    def on_step_end(self, args, state, control, model=None, optimizer=None, **_):
        still = {id(one) for one in self.halves.frozen}
        self.frozen.append([n for n, p in model.named_parameters() if id(p) in still])
        for name, one in model.named_parameters():
            assert torch.equal(one, self.before[name]) == (id(one) in still), name
        after = self._moments(model, optimizer)
        for name, moments in self.moments.items():
            if name in self.frozen[-1]:
                assert all(map(torch.equal, moments, after[name])), name
        self.steps += 1

    @staticmethod
    def _moments(model, optimizer):
        out = {}
        for name, one in model.named_parameters():
            mapping = getattr(one, "_hp_mapping", None)
            if mapping is not None:
                states = (mapping.optim_fragment or {}).values()
                out[name] = [x.clone() for x in [mapping.get_hp_fragment(), *states]]
            elif one in optimizer.state:
                out[name] = [x.clone() for x in optimizer.state[one].values() if x.ndim]
        return out


def run(folder, **options):
    trainer = DynamicSFTTrainer(
        tiny_model(),
        DynamicSFTConfig(
            output_dir=str(folder),
            max_steps=6,
            learning_rate=3e-3,
            weight_decay=0.1,
            report_to="none",
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            use_cpu=True,
            per_device_train_batch_size=2,
            halves=2,
            **options,
        ),
        train_dataset=trajectories(24),
    )
    (halves,) = [o for o in trainer.callback_handler.callbacks if isinstance(o, Halves)]
    watch = Watch(halves)
    trainer.add_callback(watch)
    trainer.train()
    assert watch.steps == 6
    return trainer, watch


def test_what_is_frozen_stands_still_and_the_rest_moves(tmp_path):
    trainer, watch = run(tmp_path)
    rounds = watch.frozen
    assert rounds[0] == rounds[1] != rounds[2] == rounds[3] != rounds[4] == rounds[5]
    assert all(one.requires_grad for one in trainer.model.parameters())
    assert not any("embed" in name or "lm_head" in name for one in rounds for name in one)


@pytest.mark.engine
@pytest.mark.parametrize("stage", [0, 2])
def test_under_deepspeed(tmp_path, stage, monkeypatch):
    import deepspeed as library

    # Compile nothing: reductions go through gloo.
    monkeypatch.setitem(library.ops.__compatible_ops__, "deepspeed_shm_comm", False)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    deepspeed = {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    run(tmp_path, deepspeed=deepspeed)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gpt_oss"])
def test_half_of_every_layer(name):
    model = make(name, torch.float32)
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    for seed in range(5):
        still = {id(one) for one in draw(model, str(seed))}
        for layer in layers:
            wide = [p for n, p in layer.named_parameters() if p.ndim > 1]
            share = sum(id(p) in still for p in wide) / len(wide)
            assert 0.25 <= share <= 0.75
        attention = [p for n, p in layers[0].named_parameters() if "attn.q_proj.weight" in n
                     or "attn.k_proj.weight" in n or "attn.v_proj.weight" in n
                     or "attn.o_proj.weight" in n]  # fmt: skip
        if attention:
            assert sum(id(p) in still for p in attention) == 2


def test_the_draw_is_that_of_seed_and_round():
    model = make("qwen3", torch.float32)
    names = {id(p): n for n, p in model.named_parameters()}
    one, other = ([names[id(p)] for p in draw(model, seed)] for seed in ("0/1", "0/1"))
    assert one == other
    assert one != [names[id(p)] for p in draw(model, "0/2")]


def test_what_cannot_be_halved():
    with pytest.raises(ValueError, match="at least 1 optimizer step, got 0"):
        Halves(every=0)
    model = make("qwen3", torch.float32)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="found nothing to freeze"):
        draw(model, "0")
    with pytest.raises(ValueError, match="halves must be a number of steps"):
        DynamicSFTConfig(output_dir="x", halves=-1)
