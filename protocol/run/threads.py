"""How many CPU threads a process computes on: decided here, for every library that asks.

OpenMP (torch's own kernels, vLLM), MKL and OpenBLAS each read a variable of their own, once,
when they are loaded. A process in which they differ computes at the speed of the smallest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

NAMES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def number_of_threads(
    processes: int, environment: Mapping[str, str] = os.environ, given: int = 0
) -> int:
    """Threads of one of so many processes that share this machine.

    `given`, where that is above 0; else what `OMP_NUM_THREADS` says in `environment`; else an
    equal share of the cores.
    """
    # OpenMP takes a list, one number for each level of nesting.
    said = environment.get(NAMES[0], "").partition(",")[0].strip()
    if not given and said.isdecimal():
        given = int(said)
    return given or max(1, cores() // processes)


def threads(
    processes: int, environment: Mapping[str, str] = os.environ, given: int = 0
) -> dict[str, str]:
    """The variables that say so. One that the user has set stays, unless `given` is above 0."""
    number = str(number_of_threads(processes, environment, given))
    return {name: number if given else environment.get(name, number) for name in NAMES}
