"""The model of a fleet, where its answer can be known by hand; and what the pages say."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import fleet
from benchmarks._fleet_report import FleetResult, write_page
from benchmarks._fleet_simulation import Costs, Setting, arrival, check, costs, read, simulate

PAID = Costs(cpu=100e-6, beat=10e-6, tell=1e-3)


def result(actors: int, channel_us: float, io_us: float, per_second: float) -> FleetResult:
    return FleetResult(
        actors=actors,
        per_second=per_second,
        least=4,
        most=5,
        learner_cpu_us=200.0,
        channel_cpu_us=channel_us,
        io_cpu_us=io_us,
        client_cpu_us=100.0,
        heard_s=actors * 1e-3,
    )


def test_the_model_goes_through_its_two_ends_and_the_middle_is_a_check() -> None:
    measured = [result(10, 60, 20, 1000), result(100, 66, 30, 900), result(1000, 80, 110, 500)]
    paid = costs(measured)
    assert paid.cpu == pytest.approx(60e-6)
    assert paid.beat == pytest.approx((110e-6 - 60e-6) * 500 / 1000)
    assert paid.tell == pytest.approx(1e-3)
    assert check(measured, paid)[2:] == [
        "| 10 | 1 | 60 | 60 | 10 | 10 |",
        "| 100 | 1 | 66 | 63 | 100 | 100 |",
        "| 1,000 | 1 | 110 | 110 | 1,000 | 1,000 |",
    ]
    with pytest.raises(ValueError, match="different sizes"):
        costs(measured[:1])


def test_a_version_takes_the_narrowest_line() -> None:
    setting = Setting(
        actors_per_host=4, weight_gb=2.0, learner_gb_s=1.0, host_gb_s=0.5, store_gb_s=10.0
    )
    assert arrival(1, setting) == (4.0, 4.0, 2.0 + 4.0)
    assert arrival(100, setting) == (200.0, 50.0, 2.0 + 5.0)


def test_a_small_fleet_is_always_busy_and_a_large_one_waits_for_its_learner() -> None:
    setting = Setting(
        sessions=2, trajectory_seconds=2.0, per_step=8, step_seconds=4.0, weight_gb=0.01
    )
    small = simulate(1, PAID, setting)
    assert small.busy == pytest.approx(1.0)
    assert small.trained_per_second == pytest.approx(2 / 2, rel=0.1), "of 2 s each"
    large = simulate(200, PAID, setting)
    assert large.trained_per_second == pytest.approx(8 / 4, rel=0.1), "a step of 8 takes 4 s"
    assert large.busy < 0.5
    assert large.lag_max <= setting.max_policy_lag
    expected = large.generated_per_second * PAID.cpu + 200 * PAID.beat
    assert large.learner_load == pytest.approx(expected)


def test_the_pages_are_written_from_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "fleet.md"
    rows = [result(10, 60, 20, 1000)] * 3, [result(1000, 80, 110, 900)] * 3
    write_page(page, *rows, 256)
    assert (
        "| trajectories/s, as fast as they can | 1,000 (1,000–1,000) | 900 (900–900) | 0.90 |"
        in page.read_text()
    )
    file = page.with_suffix(".jsonl")
    assert costs(read([file])) == costs([*rows[0], *rows[1]])
    simulated = tmp_path / "scaling.md"
    simulated.write_text("above\n<!-- fleet -->\nold\n<!-- end of fleet -->\nbelow\n")
    known = ["--page", str(simulated), "--measured"]
    assert fleet.main(["--simulate", "30", *known, str(file)]) == 0
    said = msgspec.json.decode(capsys.readouterr().out)
    assert [one["actors"] for one in said["fleets"]] == [10, 30]
    written = simulated.read_text()
    assert written.startswith("above\n")
    assert written.endswith("below\n")
    assert "old\n" not in written
    assert "\n| 30 |" in written
    assert "\n| 1,000 | 3 | 110 | 110 |" in written
    assert fleet.main(["--simulate", "30", *known, str(tmp_path / "none")]) == 0
    assert "no two fleets were measured" in simulated.read_text()
