"""The end of a process that does not listen, tried on real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

# A child by `spawn` that never ends, and a main thread that never looks up.
SCRIPT = """
import multiprocessing, sys, threading, time
from protocol.run import grace

if __name__ == "__main__":
    over = threading.Event()
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,))
    child.start()
    print(child.pid, flush=True)

    def last():
        print("last words", flush=True)
        if "broken" in sys.argv:
            raise ValueError("broken")

    grace.end_within_grace(7, over, last, 0.2)
    if "over" in sys.argv:
        over.set()
        time.sleep(0.5)
        child.kill()
        sys.exit(0)
    time.sleep(100)
"""


def run(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """What became of a process, and the pid of its child."""
    script = folder / "deaf.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    return done, int(done.stdout.split()[0])


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":  # dead, and nobody has asked
            break
        time.sleep(0.05)
    return time.monotonic() < end


def test_a_deaf_process_says_its_last_words_and_is_gone_with_its_children(tmp_path: Path) -> None:
    done, child = run(tmp_path)
    assert done.returncode == 7
    assert done.stdout.endswith("last words\n")
    assert "still busy 0.2 s after the signal" in done.stderr
    assert gone(child)


def test_it_is_gone_even_if_its_last_words_fail(tmp_path: Path) -> None:
    done, child = run(tmp_path, "broken")
    assert done.returncode == 7
    assert gone(child)


def test_one_that_is_over_in_time_is_left_alone(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "over")
    assert done.returncode == 0
    assert "last words" not in done.stdout


def test_a_child_ends_with_its_parent_even_by_kill_9() -> None:
    child = (
        "import os, sys, time\n"
        "from protocol.run.grace import end_with_parent\n"
        "end_with_parent(os.getppid())\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "time.sleep(100)\n"
    )
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    assert gone(pid)


def test_a_child_whose_parent_is_gone_already_does_not_begin() -> None:
    code = (
        "from protocol.run.grace import end_with_parent\n"
        "end_with_parent(1)\n"
        "print('began', flush=True)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stdout) == (-9, "")
