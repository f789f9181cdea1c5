"""The peak of a process's memory."""

from __future__ import annotations

import subprocess
import sys

from dynatok_online.memory import peak_memory


def test_a_peak_stays_and_is_not_inherited() -> None:
    code = (
        "from dynatok_online.memory import peak_memory\n"
        "before = peak_memory(); data = bytearray(64 << 20); del data\n"
        "print(before, peak_memory())"
    )
    big = bytearray(256 << 20)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert peak_memory() > len(big)
    assert 1 << 20 < before < 128 << 20
    assert after >= before + (60 << 20)
    assert peak_memory(2**31 - 1) == 0
