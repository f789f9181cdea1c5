"""metrics.jsonl: whole lines, whatever writes at the same time."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from protocol.run.metrics import FILE, Metrics, Tail


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / FILE).read_text().splitlines()]


def test_one_record_is_one_line_with_time_process_and_step(tmp_path):
    with Metrics(tmp_path / "run", "learner", tensorboard=False) as metrics:
        metrics.log(3, loss=1.25, tokens=7)
        metrics.log(None, loss=np.float32(0.5), count=np.int64(2))
    first, second = lines(tmp_path / "run")
    assert first.pop("time") > 1e9
    assert first == {"process": "learner", "step": 3, "loss": 1.25, "tokens": 7}
    assert (second["step"], second["loss"], second["count"]) == (None, 0.5, 2)


def test_what_is_not_finite_is_null(tmp_path):
    with Metrics(tmp_path, "learner", tensorboard=False) as metrics:
        metrics.log(1, loss=float("nan"), gap=float("inf"))
    assert lines(tmp_path)[0]["loss"] is None
    assert lines(tmp_path)[0]["gap"] is None


def test_writers_do_not_tear_each_others_lines(tmp_path):
    def write(process):
        with Metrics(tmp_path, process, tensorboard=False) as metrics:
            for step in range(200):
                metrics.log(step, **{f"number_{i}": float(i) for i in range(20)})

    threads = [threading.Thread(target=write, args=(f"p{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = lines(tmp_path)
    assert len(records) == 800
    for process in ("p0", "p1", "p2", "p3"):
        assert [r["step"] for r in records if r["process"] == process] == list(range(200))


def test_names_of_the_record_itself_are_refused(tmp_path):
    with (
        Metrics(tmp_path, "actor", tensorboard=False) as metrics,
        pytest.raises(ValueError, match=r"\['time'\] cannot be names"),
    ):
        metrics.log(1, time=3.0)


def test_logging_after_close_says_so(tmp_path):
    metrics = Metrics(tmp_path, "actor", tensorboard=False)
    metrics.close()
    metrics.close()
    with pytest.raises(ValueError, match="'actor' are closed"):
        metrics.log(1, loss=1.0)


def test_tail_yields_each_record_once_and_waits_for_whole_lines(tmp_path):
    tail = Tail(tmp_path)
    assert list(tail.read()) == []
    with Metrics(tmp_path, "actor", tensorboard=False) as metrics:
        metrics.log(1, loss=1.0)
        assert [r["step"] for r in tail.read()] == [1]
        metrics.log(2, loss=1.0)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"process": "actor", "st')
    assert [r["step"] for r in tail.read()] == [2]
    with (tmp_path / FILE).open("a") as file:
        file.write('ep": 3}\nnot json\n')
    assert [r["step"] for r in tail.read()] == [3]


def test_steps_are_copied_to_tensorboard(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    with Metrics(tmp_path, "learner") as metrics:
        metrics.log(1, loss=1.0)
    assert list((tmp_path / "tensorboard" / "learner").glob("events.*"))
