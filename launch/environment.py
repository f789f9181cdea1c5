"""What the processes of a run find in their environment.

Torchrun's variables for the learner, an equal share of the cores each, no accelerator where
there is none, and the virtual environment's tools (ninja) on the path. What the user has set
takes precedence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from protocol.run.threads import threads

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""glibc keeps what a training step freed for the next one, instead of asking the kernel for the
same zeroed pages at every step."""


def has_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an NVIDIA GPU can be used here; asks the driver's device file, imports nothing."""
    return Path("/dev/nvidiactl").exists() and environment.get("CUDA_VISIBLE_DEVICES") != ""


def for_child(
    name: str, environment: Mapping[str, str] = os.environ, *, processes: int = 2
) -> dict[str, str]:
    """The environment of an `actor` or `learner`, one of so many processes on this machine."""
    own = threads(processes, environment) | {
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
        "PYTHONFAULTHANDLER": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if name == "learner":
        own |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",  # torch's store binds a free one, and nobody else has to know it
        }
        if not has_gpu(environment):
            own |= {"DS_ACCELERATOR": "cpu"} | KEEP_MEMORY
    tools = str(Path(sys.prefix) / "bin")
    path = environment.get("PATH", os.defpath)
    if tools not in path.split(os.pathsep):
        path = tools + os.pathsep + path
    return own | dict(environment) | {"PATH": path, "PYTHONUNBUFFERED": "1"}
