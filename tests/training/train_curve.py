"""Trains a tiny model on fixed trajectories and writes its loss curve. Started by tests, under
torchrun's environment.

    RANK=0 WORLD_SIZE=1 ... python tests/training/train_curve.py OUT.json \
        '{"zero": 2, "max_steps": 20, "per_device_train_batch_size": 4}'

Keys of its own: `zero` (absent: no DeepSpeed), `lora`, `resume`; the rest is DynamicSFTConfig's.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory

VOCAB = 50


def tiny_model():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=True,
        )
    )


def trajectories(count):
    rng = np.random.default_rng(0)
    out = []
    for index in range(count):
        pieces = [rng.integers(0, VOCAB, 12).astype(np.int32)]
        passes, at = [], 0
        for state in range(3):
            pieces.append(rng.integers(0, VOCAB, 4).astype(np.int32))
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
                pieces=tuple(pieces),
                response=rng.integers(0, VOCAB, at).astype(np.int32),
                logprobs=np.full(at, -4.0, np.float32),
                passes=tuple(passes),
            )
        )
    return out


def main(out, options):
    torch.set_num_threads(1)
    zero, lora = options.pop("zero", None), options.pop("lora", False)
    resume = options.pop("resume", None)
    if zero is not None:  # compile nothing: reductions go through gloo
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = tiny_model()
    peft_config = None
    if lora:
        from peft import LoraConfig

        torch.manual_seed(0)
        peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DynamicSFTTrainer(
            model,
            DynamicSFTConfig(
                **{
                    "output_dir": folder,
                    "learning_rate": 3e-3,
                    "lr_scheduler_type": "constant",
                    "logging_steps": 1,
                    "report_to": "none",
                    "save_strategy": "no",
                    "gradient_checkpointing": False,
                    "disable_tqdm": True,
                    "use_cpu": True,
                    "ddp_backend": "gloo",
                    "objective": "reward",
                    "train_sampling_strategy": "sequential",
                    "deepspeed": None
                    if zero is None
                    else {
                        "zero_optimization": {"stage": zero},
                        "train_micro_batch_size_per_gpu": "auto",
                        "gradient_accumulation_steps": "auto",
                        "gradient_clipping": "auto",
                    },
                    **options,
                }
            ),
            train_dataset=trajectories(48),
            peft_config=peft_config,
        )
        trainer.train(resume_from_checkpoint=resume)
        if trainer.is_world_process_zero():
            logs = [one for one in trainer.state.log_history if "loss" in one]
            curve = {name: [one.get(name) for one in logs] for name in ("loss", "grad_norm")}
            Path(out).write_text(json.dumps(curve))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
