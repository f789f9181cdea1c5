"""What every trainer of a test is told: no reports, no checkpoints, no bars, data in order."""

from typing import Any

QUIET: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "use_cpu": True,
    "train_sampling_strategy": "sequential",
}
