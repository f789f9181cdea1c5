"""A real SLURM on this machine: munged, slurmctld, and a slurmd for each of its nodes.

Everything lies in one folder and listens on ports of its own, so nothing that is installed is
changed, and several may run beside each other. Needs Debian's packages `slurm-wlm` and `munge`,
and root, as slurmd does.

    python -m tests.launch.slurm_cluster          # until Ctrl-C; says what to export
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
EnforcePartLimits=ALL
KillWait=15
OverTimeLimit=0
GresTypes=gpu
NodeName=n[0-{last}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{end}] CPUs=4 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
PartitionName=closed Nodes=ALL AllowAccounts=lab MaxTime=60 State=UP
"""


def missing() -> str:
    """What is not there to run SLURM with; empty: all is."""
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"no {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return "" if os.getuid() == 0 else "slurmd needs root"


@contextlib.contextmanager
def slurm_cluster(nodes: int = 3) -> Iterator[dict[str, str]]:
    """A cluster of so many nodes, each with four CPUs and, in name, two GPUs; the environment to
    use it with."""
    folder = Path(tempfile.mkdtemp(prefix="dynatok-slurm-"))  # short: it holds a socket
    daemons: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(*argv: str) -> None:
        with (folder / f"{len(daemons)}.out").open("wb") as out:
            daemons.append(
                subprocess.Popen(
                    argv,
                    env=environment,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    try:
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        (folder / "state").mkdir()
        base = _free_range(1 + nodes)
        (folder / "slurm.conf").write_text(
            _CONF.format(
                folder=folder,
                host=socket.gethostname(),
                ports=[base],
                last=nodes - 1,
                first=base + 1,
                end=base + nodes,
            )
        )
        # GPUs in name: SLURM only counts them.
        for gpu in range(2):
            (folder / f"gpu{gpu}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
        start(
            *("munged", "--foreground", "--force", f"--socket={folder}/munge.socket"),
            *(f"--key-file={key}", f"--pid-file={folder}/munge.pid"),
            *(f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"),
        )
        _wait(lambda: (folder / "munge.socket").exists(), folder)
        start("slurmctld", "-D")
        for node in range(nodes):
            (folder / f"spool-n{node}").mkdir()
            start("slurmd", "-D", "-N", f"n{node}")
        _wait(lambda: _idle(environment) == nodes, folder)
        yield environment
    finally:
        subprocess.run(
            ["scancel", "--signal=KILL", "--full", "--user=root"],
            env=environment,
            capture_output=True,
            check=False,
        )
        subprocess.run(
            ["scancel", "--user=root"], env=environment, capture_output=True, check=False
        )
        time.sleep(1)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _idle(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return sum(int(one) for one in done.stdout.split() if one.isdecimal())


def _free_range(count: int) -> int:
    """A port from which on so many are free. SLURM's configuration names ports before it binds."""
    for base in range(21_000, 31_000, 100):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(base, base + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return base
    raise RuntimeError("no free ports")


def _wait(ready, folder: Path) -> None:
    end = time.monotonic() + 60
    while not ready():
        if time.monotonic() > end:
            said = "\n".join(
                f"{path.name}: {path.read_text(errors='replace')[-800:]}"
                for path in sorted(folder.glob("*.out"))
            )
            raise RuntimeError(f"SLURM did not start:\n{said}")
        time.sleep(0.2)


def main() -> None:
    """Keep a cluster until Ctrl-C."""
    if problem := missing():
        sys.exit(problem)
    with slurm_cluster() as environment, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={environment['SLURM_CONF']}", flush=True)
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main()
