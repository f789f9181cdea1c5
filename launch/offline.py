"""`dynatok train`: starts the ranks of an offline training, and waits for them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import yaml

from launch import environment, picture
from launch.config import free_port
from learner.offline.config import TrainConfig
from protocol.run.json_files import read_json
from protocol.run.run_folder import make_run_folder


def run(config: TrainConfig) -> int:
    """Train to the end; the exit code. Rank 0 speaks for all; the others write to log files."""
    run_dir = make_run_folder(Path(config.dir), config.name)
    (run_dir / "train.json").write_bytes(msgspec.json.encode(config))
    head = "# Resolved configuration. Use it again: dynatok train config.yaml\n"
    text = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)
    (run_dir / "config.yaml").write_text(head + text, encoding="utf-8")
    print(f"dynatok: run folder {run_dir}", file=sys.stderr, flush=True)
    code = _run_ranks(config.ranks, run_dir)
    if code:
        return code
    picture.draw(run_dir)
    print(json.dumps(read_json(run_dir / "result.json")), flush=True)
    return 0


def _run_ranks(ranks: int, run_dir: Path) -> int:
    logs = run_dir / "logs"
    logs.mkdir()
    port = str(free_port())
    threads = str(max(1, environment.cores() // ranks))
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            own = {
                **environment.for_child("learner"),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": threads,
            }
            with (logs / f"rank-{rank}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "learner.offline.train", str(run_dir)],
                        env=own,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=None if rank == 0 else log,
                    )
                )
        return _wait(started, logs)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(started: list[subprocess.Popen[bytes]], logs: Path) -> int:
    """The first exit code that is not 0; a rank that fails ends all."""
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code:
                if code != 2 or rank:
                    where = "" if rank == 0 else f"; see {logs / f'rank-{rank}.log'}"
                    text = f"dynatok: rank {rank} failed with exit code {code}{where}"
                    print(text, file=sys.stderr, flush=True)
                return 2 if code == 2 else 1
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.2)
