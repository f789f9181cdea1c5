"""Real processes, really killed: what a run leaves behind, and what it says.

The children are small Python programs that behave as the real ones do: they write their logs and
`learner.json`, start workers, hold shared memory, and obey SIGTERM or do not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest

import launch
from launch import process, supervisor
from launch.supervisor import Command, supervise
from protocol.run.stop import StopRequest, ask_to_stop, asked_to_stop

ROOT = Path(launch.__file__).parent.parent

SLEEP = "import time; print('ready', flush=True); time.sleep(60)"
# A worker, and shared memory and a lock that only a clean end removes.
FAMILY = """
import mmap, multiprocessing, os, subprocess, sys, time
name = '/dev/shm/dynatok-test-' + sys.argv[1]
with open(name, 'w+b') as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 4096)
lock = multiprocessing.get_context('spawn').Lock()
os.link('/dev/shm/sem.' + lock._semlock.name[1:], name + '-lock')
worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
print(worker.pid, flush=True)
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Looks and restarts come often: what is tested is their order, not their length."""
    monkeypatch.setattr(supervisor, "INTERVAL", 0.02)
    monkeypatch.setattr(supervisor, "SCAN", 0.1)
    monkeypatch.setattr(supervisor, "BACK_OFF", (0.1, 0.4))


class Quiet:
    """A display that calls back."""

    def __init__(self, at_update=lambda seconds: None):
        self.at_update = at_update
        self.closed = False
        self.states = []
        self.said = []

    def update(self, state, seconds):
        self.states.append(dict(state))
        self.at_update(seconds)

    def say(self, text):
        self.said.append(text)

    def close(self):
        self.closed = True


def command(name, code, *arguments):
    return Command(name, [sys.executable, "-c", code, *arguments], os.environ)


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def log_of(run_dir, name):
    path = run_dir / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def test_all_children_ending_well_is_a_finished_run(tmp_path):
    write = (
        "import json, sys; json.dump({'learner_steps': 3, 'audit_mismatches': 0}, "
        "open(sys.argv[1] + '/learner.json', 'w'))"
    )
    display = Quiet()
    outcome = supervise(
        tmp_path, [command("learner", write, str(tmp_path)), command("actor", "pass")], display
    )
    assert (outcome.status, outcome.code, outcome.message) == ("finished", 0, "")
    assert display.closed
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["learner_steps"] == 3
    assert result["audit_mismatches"] == 0
    assert result["edits"] is None


def test_a_learner_that_left_early_is_no_finished_run(tmp_path):
    (tmp_path / "learner.json").write_text('{"finished": false}')
    outcome = supervise(tmp_path, [command("learner", "pass")], Quiet())
    assert (outcome.status, outcome.code) == ("failed", 1)
    assert "before its last step" in outcome.message


def test_an_actor_that_crashes_again_and_again_is_given_up_and_the_others_go_on(tmp_path):
    (tmp_path / "learner.json").write_text('{"finished": true}')
    display = Quiet()
    brief = "import time; time.sleep(2)"
    outcome = supervise(
        tmp_path,
        [
            command("learner", brief),
            command("actor", "raise SystemExit(1)"),
            command("actor-1", brief),
        ],
        display,
        restarts=1,
    )
    assert (outcome.status, outcome.code) == ("finished", 0)
    assert [line for line in display.said if "given up" in line] == [
        f"actor exited with code 1 and is given up; the run goes on with the other actors (log: "
        f"{tmp_path}/logs/actor.log)"
    ]
    assert display.states[-1]["actor"] == "exited with code 1"


def test_the_last_actor_that_crashes_ends_the_run(tmp_path):
    crash = "raise SystemExit(1)"
    outcome = supervise(
        tmp_path,
        [command("learner", SLEEP), command("actor", crash), command("actor-1", crash)],
        Quiet(),
        restarts=1,
    )
    assert (outcome.status, outcome.code) == ("failed", 1)


def test_a_failing_child_is_named_with_its_log_and_last_words(tmp_path):
    code = "print('first'); raise RuntimeError('no more memory')"
    started = time.monotonic()
    outcome = supervise(tmp_path, [command("learner", code), command("actor", SLEEP)], Quiet())
    assert time.monotonic() - started < 5
    assert (outcome.status, outcome.code) == ("failed", 1)
    assert "learner" in outcome.message
    assert "exited with code 1" in outcome.message
    assert str(tmp_path / "logs" / "learner.log") in outcome.message
    assert "RuntimeError: no more memory" in outcome.message
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"


def test_a_child_that_refuses_its_configuration_is_exit_2_with_its_reason(tmp_path):
    code = "import sys; print('importing'); print('learner: max_steps is 0'); sys.exit(2)"
    outcome = supervise(tmp_path, [command("learner", code)], Quiet())
    assert outcome.code == 2
    assert outcome.message.startswith("learner: max_steps is 0 (log: ")
    assert "\n" not in outcome.message


def test_a_killed_child_ends_the_run_and_takes_its_workers_along(tmp_path):
    name = f"{os.getpid()}-killed"
    worker: list[int] = []
    up: list[float] = []

    def kill_when_up(seconds):
        text = log_of(tmp_path, "learner").partition("\n")[0]
        if not text or worker:
            return
        up.append(seconds)
        if seconds > up[0] + 0.3:  # after a scan for shared memory: what kill -9 leaves is known
            worker.append(int(text))
            os.kill(os.getsid(int(text)), signal.SIGKILL)

    outcome = supervise(
        tmp_path,
        [command("learner", FAMILY, name), command("actor", SLEEP)],
        Quiet(kill_when_up),
        patience=1,
    )
    assert outcome.code == 1
    assert "was killed by SIGKILL" in outcome.message
    assert not alive(worker[0])
    assert not list(Path("/dev/shm").glob(f"dynatok-test-{name}*"))


CRASH_TWICE = """
import os, sys, time
from pathlib import Path
count = Path(sys.argv[1])
count.write_text(count.read_text() + 'x' if count.exists() else 'x')
if len(count.read_text()) <= 2:
    os.kill(os.getpid(), 9)
"""


def test_a_crashed_child_is_started_again_alone(tmp_path):
    display = Quiet()
    count = tmp_path / "count"
    patient = (
        "import sys, time; from pathlib import Path; print('started', flush=True)\n"
        "count = Path(sys.argv[1])\n"
        "while not (count.exists() and len(count.read_text()) == 3): time.sleep(0.02)"
    )
    outcome = supervise(
        tmp_path,
        [command("learner", patient, str(count)), command("actor", CRASH_TWICE, str(count))],
        display,
        restarts=2,
    )
    assert (outcome.status, outcome.code) == ("finished", 0)
    assert count.read_text() == "xxx"
    assert log_of(tmp_path, "learner").count("started") == 1
    assert [text.split("; ")[0] for text in display.said] == ["actor was killed by SIGKILL"] * 2
    assert "restart 2 of 2" in display.said[1]
    assert json.loads((tmp_path / "result.json").read_text())["crashes"] == {"actor": 2}


def test_a_child_that_goes_on_crashing_is_given_up(tmp_path):
    outcome = supervise(
        tmp_path,
        [command("learner", SLEEP), command("actor", "raise RuntimeError('no memory')")],
        Quiet(),
        restarts=2,
    )
    assert (outcome.status, outcome.code) == ("failed", 1)
    assert "actor" in outcome.message
    assert "exited with code 1 3 times" in outcome.message
    assert "no memory" in outcome.message


@pytest.mark.parametrize("code", [2, 3])
def test_a_child_that_says_no_is_not_asked_again(tmp_path, code):
    said = f"import sys; print('learner: it makes no sense'); sys.exit({code})"
    started = time.monotonic()
    outcome = supervise(tmp_path, [command("learner", said)], Quiet(), restarts=9)
    assert time.monotonic() - started < 3
    assert outcome.message.startswith("learner: it makes no sense (log: ")


def test_memory_that_others_use_stays_when_one_is_started_again(tmp_path):
    name = f"/dev/shm/held-by-a-test-{os.getpid()}"  # a sender would clear unlocked files of ours
    hold = (
        "import mmap, os, sys, time\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 4096)\n"
        "held = mmap.mmap(fd, 4096); print(os.getpid(), flush=True)\n"
        "while not os.path.exists(sys.argv[2]): time.sleep(0.02)\n"
        "print(os.path.exists(sys.argv[1]), flush=True); os.path.exists(sys.argv[1]) and sys.exit()"
    )
    go = tmp_path / "go"
    ready: list[float] = []

    def kill_when_seen(seconds):
        started = log_of(tmp_path, "actor").split()
        if not log_of(tmp_path, "learner") or not started:
            return
        ready.append(seconds)
        if len(started) == 2:  # started again
            go.touch()
        elif seconds > ready[0] + 0.3:  # after a scan
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(started[0]), signal.SIGKILL)

    try:
        outcome = supervise(
            tmp_path,
            [command(one, hold, name, str(go)) for one in ("learner", "actor")],
            Quiet(kill_when_seen),
            restarts=1,
        )
        assert outcome.code == 0
        assert log_of(tmp_path, "learner").split()[1:] == ["True"]
        assert log_of(tmp_path, "actor").split()[2:] == ["True"]
    finally:
        Path(name).unlink(missing_ok=True)


def test_an_interrupt_stops_everything_even_what_does_not_listen(tmp_path):
    name = f"{os.getpid()}-interrupt"

    def interrupt_when_up(seconds):
        if log_of(tmp_path, "actor") and log_of(tmp_path, "learner"):
            signal.raise_signal(signal.SIGINT)

    started = time.monotonic()
    outcome = supervise(
        tmp_path,
        [command("learner", FAMILY, name), command("actor", STUBBORN)],
        Quiet(interrupt_when_up),
        patience=0.5,
    )
    assert time.monotonic() - started < 8
    assert (outcome.status, outcome.code) == ("interrupted", 130)
    assert not alive(int(log_of(tmp_path, "learner").split()[0]))
    assert not list(Path("/dev/shm").glob(f"dynatok-test-{name}*"))
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_wait(tmp_path):
    class Impatient(Quiet):
        def say(self, text):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    def interrupt_when_up(seconds):
        if log_of(tmp_path, "actor"):
            signal.raise_signal(signal.SIGINT)

    started = time.monotonic()
    outcome = supervise(
        tmp_path, [command("actor", STUBBORN)], Impatient(interrupt_when_up), patience=30
    )
    assert time.monotonic() - started < 10
    assert (outcome.status, outcome.code) == ("interrupted", 130)


def test_the_time_limit_is_a_failure(tmp_path):
    outcome = supervise(tmp_path, [command("actor", SLEEP)], Quiet(), time_limit=0.3)
    assert (outcome.status, outcome.code) == ("failed", 1)
    assert "time limit of 0.3 s" in outcome.message
    assert "actor.log" in outcome.message


def test_killing_the_supervisor_leaves_nothing_behind(tmp_path):
    name = f"{os.getpid()}-orphan"
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from launch.supervisor import Command, supervise\n"
        "class Quiet:\n"
        "    def update(self, state, seconds): pass\n"
        "    def say(self, text): pass\n"
        "    def close(self): pass\n"
        f"argv = [sys.executable, '-c', {FAMILY!r}, {name!r}]\n"
        f"supervise(Path({str(tmp_path)!r}), [Command('actor', argv, os.environ)], Quiet())\n"
    )
    segment = Path(f"/dev/shm/dynatok-test-{name}")
    supervisor = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_for(lambda: log_of(tmp_path, "actor").strip())
        worker = int(log_of(tmp_path, "actor").split()[0])
        leader = os.getsid(worker)
        assert alive(leader)
        assert segment.exists()
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_for(lambda: not alive(leader) and not alive(worker) and not segment.exists())


def test_members_and_exits_are_described(tmp_path):
    child = process.Child("a", [sys.executable, "-c", SLEEP], os.environ, tmp_path / "a.log")
    wait_for(lambda: child.last_words() == "ready")
    assert process.members([child.pid]) == [child.pid]
    assert process.stop([child.pid], patience=2)
    wait_for(lambda: child.poll() == -signal.SIGTERM)
    assert process.members([child.pid]) == []
    assert process.describe_exit(-signal.SIGTERM) == "was killed by SIGTERM"
    assert process.describe_exit(3) == "exited with code 3"


def test_what_must_be_killed_is_reported(tmp_path):
    child = process.Child("a", [sys.executable, "-c", STUBBORN], os.environ, tmp_path / "a.log")
    wait_for(lambda: child.last_words() == "ready")
    assert not process.stop([child.pid], patience=0.2)
    wait_for(lambda: child.poll() == -signal.SIGKILL)


@pytest.mark.parametrize("lines", [1, 2])
def test_last_words_are_the_end_of_the_log(tmp_path, lines):
    code = "print('one'); print(); print('two'); print('three')"
    child = process.Child("a", [sys.executable, "-c", code], os.environ, tmp_path / "a.log")
    wait_for(lambda: child.poll() is not None)
    assert child.last_words(lines) == "\n".join(["two", "three"][-lines:])


OBEYS = """
import pathlib, sys, time
stop = pathlib.Path(sys.argv[1]) / 'stop.json'
while not stop.exists():
    time.sleep(0.02)
"""


@pytest.mark.parametrize("by", ["file", "SIGUSR1"])
def test_asked_to_stop_the_learner_ends_first_and_the_others_after_it(tmp_path, by):
    def ask(seconds):
        if seconds > 0.3 and not (tmp_path / "stop.json").exists():
            if by == "file":
                ask_to_stop(tmp_path, StopRequest("somebody"))
            else:
                os.kill(os.getpid(), signal.SIGUSR1)

    ask_to_stop(tmp_path, StopRequest("an earlier run"))  # is none of this one
    display = Quiet(ask)
    outcome = supervise(
        tmp_path, [command("learner", OBEYS, str(tmp_path)), command("actor", SLEEP)], display
    )
    who = "somebody" if by == "file" else "SIGUSR1"
    assert (outcome.status, outcome.code, outcome.message) == (
        "interrupted",
        0,
        f"stopped by {who}",
    )
    assert display.states[-1]["actor"] == "running", "it was asked after the learner had ended"
    request = asked_to_stop(tmp_path)
    assert request is not None
    assert request.again is (by == "SIGUSR1")


def test_a_learner_that_does_not_save_in_time_is_ended(tmp_path):
    def ask(seconds):
        ask_to_stop(tmp_path, StopRequest("somebody"))

    outcome = supervise(tmp_path, [command("learner", SLEEP)], Quiet(ask), saving=0.3)
    assert (outcome.status, outcome.code) == ("interrupted", 1)
    assert "had not saved 0.3 s later" in outcome.message


def test_an_actor_whose_place_was_taken_is_started_again_and_a_finished_one_is_not(tmp_path):
    """A scheduler ends it well; so does the end of the run."""
    code = (
        "import pathlib, sys\n"
        "starts, learner = map(pathlib.Path, sys.argv[1:])\n"
        "starts.write_text(starts.read_text() + 'x')\n"
        "if len(starts.read_text()) == 3:\n"
        "    learner.write_text('{\"finished\": true}')\n"
    )
    starts, learner = tmp_path / "starts", tmp_path / "learner.json"
    starts.write_text("")
    actor = command("actor", code, str(starts), str(learner))
    actor = msgspec.structs.replace(actor, rejoins=True)
    brief = "import time; time.sleep(4)"
    outcome = supervise(tmp_path, [command("learner", brief), actor], Quiet(), restarts=9)
    assert (outcome.status, outcome.code) == ("finished", 0)
    assert len(starts.read_text()) == 3


def test_a_child_is_asked_to_end_by_the_signal_that_it_knows(tmp_path):
    """srun answers SIGTERM by killing its tasks."""
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    pathlib.Path(sys.argv[1]).write_text('well')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGUSR1, end)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    step = msgspec.structs.replace(
        command("learner", code, str(tmp_path / "how")), stop_signal=signal.SIGUSR1
    )

    def interrupt(seconds):
        if log_of(tmp_path, "learner"):
            os.kill(os.getpid(), signal.SIGTERM)

    supervise(tmp_path, [step], Quiet(interrupt))
    assert (tmp_path / "how").read_text() == "well"
