"""Checks this environment for what a run needs, and says how to fix what is missing.

Every check is a function that yields findings; a finding that fails carries its fix. Nothing is
changed. `dynatok doctor` exits 0 where all is well, 1 where something must be fixed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

from dynatok_online.models import resolve
from launch import surroundings
from launch.config import RunConfig, check_port, load_run
from launch.decode import ConfigError
from launch.environment import has_gpu
from launch.memory_sum import GB, Shape, Sum, actor_sum, learner_sum, longest_row, together
from launch.surroundings import Finding
from protocol.run.threads import cores as available_cores

LOCKS = Path(__file__).parent / "locks"
_SETUP = "bash launch/setup.sh"
_MIB = 2**20


def main(config: Path | None = None) -> int:
    """Run all checks and print them; returns the exit code."""
    failed = 0
    for finding in examine(config):
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}", flush=True)
        if not finding.ok:
            failed += 1
            print(f"      fix: {finding.fix}")
    print(f"{failed} to fix" if failed else "ready: bash launch/quickstart.sh")
    return 1 if failed else 0


def examine(config: Path | None = None) -> Iterator[Finding]:
    """All findings. Raises ConfigError where `config` cannot be read."""
    run = load_run(config) if config else RunConfig()
    kind = "gpu" if _version("vllm") else "cpu"
    yield python()
    yield from versions(kind)
    yield dependencies(kind)
    yield torch_build(kind)
    yield plugin()
    yield block_size(run, kind)
    yield shared_memory(Path("/dev/shm"))
    yield memory()
    yield surroundings.home()
    yield from surroundings.models(run.model)
    yield surroundings.temporary()
    yield surroundings.clock(Path(run.dir))
    yield from surroundings.fuse()
    yield port(run)
    yield from compiler(os.environ.get("PATH", ""))
    yield embedded_model(run)
    if run.model != "tiny":
        yield from borders(run)
    if config:
        yield from fits(run, Machine.here())


def python() -> Finding:
    """The locks are made for one minor version of Python."""
    found = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Finding(
        found == "3.11",
        f"Python {found} at {sys.executable}",
        f"the locked packages are for Python 3.11; run {_SETUP} and use .venv/bin/dynatok",
    )


def read_lock(path: Path) -> dict[str, str]:
    """Package -> version of a lock file."""
    pins = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("#")[0].strip().partition("==")
        if equals:
            pins[name] = version
    return pins


def versions(kind: str) -> Iterator[Finding]:
    """What is installed against the lock."""
    lock = LOCKS / f"{kind}.txt"
    pins = read_lock(lock)
    flag = " --gpu" if kind == "gpu" else ""
    different = []
    for name, wanted in pins.items():
        found = _version(name)
        if found is None or found.partition("+")[0] != wanted.partition("+")[0]:
            different.append(f"{name} {found or 'missing'} (lock: {wanted})")
    shown = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
    yield Finding(
        not different,
        f"{len(pins) - len(different)} of {len(pins)} packages as in {lock.name}"
        + (f"; {shown}" if different else ""),
        _SETUP + flag,
    )
    unwanted = [name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name)]
    if kind == "cpu" and unwanted:
        yield Finding(
            False,
            f"{', '.join(unwanted)} installed: a build for another torch breaks model imports",
            f"{sys.executable} -m pip uninstall -y {' '.join(unwanted)}",
        )


def dependencies(kind: str) -> Finding:
    """What `pip check` says, less what the lock leaves out on purpose."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    left_out = LOCKS / f"{kind}-left-out.txt"
    known = set(left_out.read_text().splitlines()) if left_out.exists() else set()
    problems = [
        line
        for line in done.stdout.splitlines()
        if (found := re.search(r" requires (\S+), which is not installed", line)) is None
        or found[1] not in known
    ]
    problems = [line for line in problems if line != "No broken requirements found."]
    shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
    if done.returncode and not done.stdout:  # there is no pip, for example
        shown = "pip check: " + done.stderr.strip().rpartition("\n")[2]
    return Finding(
        not shown,
        shown or "packages agree (pip check)",
        _SETUP + (" --gpu" if kind == "gpu" else ""),
    )


def torch_build(kind: str) -> Finding:
    """torch is imported in a process of its own: a broken one may not even raise."""
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(False, "importing torch took more than 120 s", "look for a hanging disk")
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(False, f"torch cannot be imported: {words}", f"rm -rf .venv; {_SETUP}")
    version, cuda, usable = done.stdout.split()
    wanted = read_lock(LOCKS / "gpu.txt")["torch"]
    if version.partition("+")[0] != wanted:
        return Finding(False, f"torch {version}, but vLLM is built for {wanted}", _SETUP)
    if kind == "cpu":
        return Finding(
            cuda == "None",
            f"torch {version}, {'CPU build' if cuda == 'None' else f'CUDA {cuda} build'}",
            f"a CPU environment needs a CPU build; {_SETUP}",
        )
    return Finding(
        usable == "True",
        f"torch {version}, CUDA {cuda}, GPU {'usable' if usable == 'True' else 'not usable'}",
        "check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES",
    )


def plugin() -> Finding:
    """vLLM finds our plugin through the installed project's entry points."""
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    return Finding(
        any(point.name == "dynatok" for point in points),
        "vLLM plugin 'dynatok' registered",
        f"the project is not installed: {_SETUP}",
    )


def block_size(run: RunConfig, kind: str) -> Finding:
    """vLLM's CPU attention takes blocks of a multiple of 32 tokens."""
    size = run.actor.engine.get("block_size")
    if size is None:
        return Finding(True, "KV block size: the actor's default")
    return Finding(
        isinstance(size, int) and size > 0 and (kind == "gpu" or size % 32 == 0),
        f"KV block size {size}",
        "on CPUs actor.engine.block_size must be a multiple of 32; write 32",
    )


def shared_memory(path: Path, needed: int = 512 * _MIB) -> Finding:
    """Weights and vLLM's queues go through shared memory."""
    fix = "in a container: --shm-size=2g; otherwise: mount -o remount,size=2g /dev/shm"
    if not os.access(path, os.W_OK):
        return Finding(False, f"{path} is missing or read-only", fix)
    free = shutil.disk_usage(path).free
    return Finding(free >= needed, f"{path}: {free // _MIB} MiB free", fix)


def memory(needed: int = 4096 * _MIB) -> Finding:
    """Two processes with torch, and vLLM's cache."""
    cores = available_cores()
    free = psutil.virtual_memory().available
    return Finding(
        free >= needed and cores >= 2,
        f"{cores} cores, {free // _MIB} MiB of memory free",
        f"a run of the embedded default needs 2 cores and {needed // _MIB} MiB",
    )


def port(run: RunConfig) -> Finding:
    """The endpoint's port can be listened on."""
    try:
        check_port(run.protocol.endpoint)
    except ConfigError as error:
        return Finding(False, str(error), "set protocol.endpoint: ipc://*")
    return Finding(True, f"{run.protocol.endpoint} can be listened on")


def compiler(path: str) -> Iterator[Finding]:
    """DeepSpeed builds a small extension on first use."""
    tools = path + os.pathsep + str(Path(sys.prefix) / "bin")
    for tool, fix in (
        ("g++", "apt install g++ (or your system's C++ compiler)"),
        ("ninja", _SETUP),
    ):
        found = shutil.which(tool, path=tools)
        yield Finding(
            found is not None,
            f"{tool} at {found}" if found else f"no {tool}: DeepSpeed cannot build its extension",
            fix,
        )


def embedded_model(run: RunConfig) -> Finding:
    """The embedded model came with the checkout; another one is looked up when the run starts."""
    if run.model != "tiny":
        return Finding(True, f"model {run.model} (looked up when the run starts)")
    from dynatok_online.tiny import model_path

    weights = model_path() / "model.safetensors"
    return Finding(
        weights.is_file(),
        f"embedded model at {model_path()}",
        "python -m dynatok_online.tiny.pretrain (minutes on a CPU)",
    )


def borders(run: RunConfig) -> Iterator[Finding]:
    """Where the first task's prompt is cut unlike the model's tokenizer would cut it.

    Of a model that is on this machine: nothing is downloaded here.
    """
    from actor.task_source import tasks
    from actor.tokenizer import chat_of, load_tokenizer
    from dynatok_online.tasks.rendering import border_notes

    actor = run.actor
    try:
        model = resolve(run.model)
    except ValueError as error:
        yield Finding(False, str(error).partition("; ")[0], f"dynatok model {run.model}")
        return
    if not Path(model).is_dir():
        return
    options = actor.placement, actor.system_prompt, actor.chat_template_kwargs
    try:
        encoder = load_tokenizer(model).encode
        chat = partial(chat_of, model, *options)
        task = next(tasks(actor.tasks, "train", run.seed, chat=chat))
        notes = border_notes(task, encoder, actor.placement)
    except (OSError, ValueError) as error:
        first = str(error).partition("\n")[0]
        yield Finding(False, f"tasks: {first}", "mend the tasks, or name others in actor.tasks")
        return
    for note in notes:
        yield Finding(True, f"prompt of {task.task_id}: {note}")
    if not notes:
        yield Finding(True, f"prompt of {task.task_id}: pieces are the tokenizer's own ids")


class Machine(NamedTuple):
    """What a run may take of this host."""

    memory: float
    """Bytes of main memory, of its container where that has less."""
    cards: tuple[float, ...] = ()
    """Bytes of each GPU."""

    @classmethod
    def here(cls, limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Machine:
        """As this process finds it."""
        total = float(psutil.virtual_memory().total)
        with contextlib.suppress(OSError, ValueError):
            total = min(total, float(limit.read_text()))
        cards: tuple[float, ...] = ()
        if has_gpu():
            ask = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                said = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True)
                cards = tuple(float(line) * _MIB for line in said.stdout.split())
        return cls(total, cards)


_FIT = (
    "write learner.lora, learner.training.gradient_checkpointing, bf16 with deepspeed, ZeRO 3 over "
    "more learner.ranks, offload to the host, or a smaller model (docs/scaling.md)"
)


def fits(run: RunConfig, machine: Machine) -> Iterator[Finding]:
    """Whether learner and actors can have what they need at least, and the sum of it."""
    from transformers import AutoConfig

    from learner.training import deepspeed_arguments

    try:
        config = AutoConfig.from_pretrained(resolve(run.model), local_files_only=True)
        shape = Shape.of(config)
    except (OSError, ValueError) as error:
        first = str(error).partition("\n")[0].partition("; ")[0]
        yield Finding(True, f"memory is not added up: {first}")
        return
    try:
        deepspeed = deepspeed_arguments(run.learner.deepspeed)
    except ValueError as error:
        yield Finding(False, str(error), "mend learner.deepspeed")
        return
    least, most = longest_row(run.learner, run.actor)
    learner = learner_sum(shape, run.learner, least, deepspeed)
    larger = learner_sum(shape, run.learner, most, deepspeed)
    actor = actor_sum(shape, run.actor, bool(machine.cards))
    ranks = run.learner.ranks
    if not machine.cards:
        needed = together(((learner, ranks), (actor, run.actors)))
        yield Finding(
            needed <= machine.memory,
            f"memory: {ranks} x learner {learner.spelled_out()}; {run.actors} x actor "
            f"{actor.spelled_out()}; together {needed / GB:.1f} GB of {machine.memory / GB:.1f}"
            + _longer(larger, learner, most),
            _FIT,
        )
        return
    card = min(machine.cards)
    engine = float(run.actor.engine.get("gpu_memory_utilization", 0.92)) * card
    alone = len(machine.cards) >= ranks + run.actors
    left = card if alone else card - engine
    device = learner.of("device")
    yield Finding(
        device <= left,
        f"GPU memory of a rank: {learner.spelled_out('device')}; of {left / GB:.1f} GB"
        + ("" if alone else f" that an engine leaves of a card of {card / GB:.1f}")
        + _longer(larger, learner, most),
        _FIT if alone else f"lower actor.engine.gpu_memory_utilization, or {_FIT}",
    )
    yield Finding(
        actor.of("device") < engine,
        f"GPU memory of an actor: {actor.spelled_out('device')}; of {engine / GB:.1f} GB "
        "(actor.engine.gpu_memory_utilization), what is left is KV cache",
        "raise actor.engine.gpu_memory_utilization, or use a smaller model",
    )
    needed = together(((learner, ranks), (actor, run.actors)), "host")
    yield Finding(
        needed <= machine.memory,
        f"main memory: {ranks} x learner {learner.spelled_out('host')}; {run.actors} x actor "
        f"{actor.spelled_out('host')}; together {needed / GB:.1f} GB of {machine.memory / GB:.1f}",
        _FIT,
    )


def _longer(larger: Sum, learner: Sum, tokens: int) -> str:
    """What the longest row takes more."""
    more = (larger.of() - learner.of()) / GB
    return f"; a row of {tokens} tokens takes {more:.1f} GB more" if more > 0.1 else ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
