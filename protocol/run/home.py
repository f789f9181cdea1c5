"""A home for libraries' caches, and a user name, where the machine gives this process none.

In containers and batch jobs a process may run under a number that no user has, without HOME, or
with a home that cannot be written. vLLM, torch, triton, Hugging Face's libraries and others then
fail deep inside, or make a folder that is called `~`.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_CACHES: Final = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCH_EXTENSIONS_DIR": "torch-extensions",
    "TRITON_CACHE_DIR": "triton",
    "VLLM_CACHE_ROOT": "vllm",
    "VLLM_CONFIG_ROOT": "vllm-config",
}
"""What is written when something starts, and where. Models that were downloaded stay in the home
that can only be read: `HF_HOME` moves them."""


def home_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to add to the environment so that libraries find a place for their caches.

    Nothing where the home can be written and the user has a name. No home: `HOME` becomes a
    folder of this user below the one for temporary files. One that can only be read stays, and
    what must be written goes to that folder. What is set already stays.
    """
    user = os.getuid()
    found: dict[str, str] = {}
    try:
        entry = pwd.getpwuid(user)
        home = environment.get("HOME") or entry.pw_dir
    except KeyError:
        found |= {"USER": f"user-{user}", "LOGNAME": f"user-{user}"}
        home = environment.get("HOME", "")
    if not home or not Path(home).is_dir():
        found["HOME"] = str(_folder(user))
    elif not os.access(home, os.W_OK | os.X_OK):
        folder = _folder(user)
        found |= {name: str(folder / below) for name, below in _CACHES.items()}
    return {
        name: value for name, value in found.items() if name == "HOME" or name not in environment
    }


def _folder(user: int) -> Path:
    """Of this user alone: nobody else may put code into its caches."""
    folder = Path(tempfile.gettempdir()) / f"dynatok-home-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != user or folder.stat().st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix=f"dynatok-home-{user}-"))
    return folder
