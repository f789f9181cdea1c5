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

import torch

from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from tests.edited import tiny_model, trajectories
from tests.training.quiet import QUIET


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
                    **QUIET,
                    "output_dir": folder,
                    "learning_rate": 3e-3,
                    "ddp_backend": "gloo",
                    "objective": "reward",
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
