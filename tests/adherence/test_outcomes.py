"""Judging a response pass by pass, and the evaluation's tables, on texts done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from actor.offline.config import EvalConfig
from actor.offline.eval import repeated
from actor.offline.eval_report import markdown
from actor.offline.eval_stored import AGAIN
from actor.offline.eval_summary import Sample, over_seeds, summary
from actor.sessions.live_session import Finished
from actor.sessions.recorder import Counts
from dynatok_online.adherence.coverage import Ending
from dynatok_online.adherence.outcomes import Judged, judge
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task

TEXT = "OWLS SAW. THE trees. at NIGHT. OWLS. late"
TASK = Task(
    "t",
    "{{case}} {{marks}}: ",
    {"case": SlotState("UPPER", "upper"), "marks": SlotState("any")},
    (ScheduledEdit(14, "case", SlotState("lower", "lower")),),
    max_tokens=len(TEXT),
)


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def decode(ids: Any) -> str:
    return "".join(map(chr, ids))


def test_every_slot_with_a_requirement_is_judged_in_every_pass() -> None:
    static, edited = judge(TASK, scripted_trajectory(TASK, encode(TEXT), encode), decode)
    assert static == Judged("case", "upper", False, True, 1.0, 0, 14)
    # " trees" "." "at NIGHT" "OWLS" "late": the first sentence after the edit is compliant.
    assert edited == Judged("case", "lower", True, False, 3 / 5, 0, len(TEXT) - 14)


def test_a_pass_that_new_weights_cut_is_judged_whole() -> None:
    whole = scripted_trajectory(TASK, encode(TEXT), encode)
    first, last = whole.passes
    # After "tr" of "trees": that word belongs to neither pass, and to the text after the edit.
    cut = (
        first,
        msgspec.structs.replace(last, stop=17, finish_reason="weights", weight_versions=()),
        msgspec.structs.replace(last, start=17, weight_versions=()),
    )
    assert judge(TASK, msgspec.structs.replace(whole, passes=cut), decode) == judge(
        TASK, whole, decode
    )


def test_latency_is_counted_in_tokens() -> None:
    """Two characters per token, and a first sentence that goes on under the old state."""
    pairs = [TEXT[i : i + 2] for i in range(0, len(TEXT), 2)]

    def two(ids: Any) -> str:
        return "".join(pairs[i] for i in ids)

    task = Task("t", "{{case}}: ", {"case": SlotState("lower", "lower")}, max_tokens=99)
    trajectory = scripted_trajectory(task, list(range(len(pairs))), lambda text: [0])
    (one,) = judge(task, trajectory, two)
    # "late" begins at character 37.
    assert one.latency == 18
    assert one.tokens == len(pairs)


def judged(score: float, latency: int | None, name: str = "upper", edited: bool = True) -> Judged:
    return Judged("case", name, edited, not edited, score, latency, 40)


def sample(*units: Judged) -> Sample:
    counts = Counts(edits=2, generated_tokens=10, computed_tokens=25)
    finished = Finished(scripted_trajectory(TASK, encode(TEXT), encode), counts, ())
    return Sample(finished, TEXT, units)


def test_summary_and_intervals_over_seeds() -> None:
    units = [judged(1.0, 4), judged(0.0, None), judged(1.0, 0, "lower", edited=False)]
    one = summary([sample(*units)])
    assert one["all"]["adherence_after_edit"] == 0.5
    assert one["all"]["adherence_static"] == 1.0
    assert one["all"]["latency"] == (4 + 40) / 2
    assert one["all"]["never"] == 0.5
    assert one["all"]["computed_per_token"] == 2.5
    assert one["by_requirement"]["lower"]["adherence_after_edit"] is None
    other = summary([sample(replace(units[0], score=0.8))])
    both = over_seeds([one, other])
    after = both["all"]["adherence_after_edit"]
    assert after["mean"] == pytest.approx(0.65)
    assert (after["lowest"], after["highest"], after["count"]) == (0.5, 0.8, 2)
    assert both["by_requirement"]["lower"]["adherence_static"]["count"] == 1
    json.dumps(both)
    text = markdown(EvalConfig(), {"exact": {"by_seed": {}, "mean": both}})
    assert "| adherence after an edit | 0.650 ± 1.906 |" in text
    assert "| lower | 0 |  | 1.000 |  |  |" in text
    assert "| edits judged | 3 |" in text
    assert "interval over seeds" in text


def test_one_seed_has_its_interval_over_edits() -> None:
    one = summary([sample(judged(1.0, 4), judged(0.0, None), judged(0.5, 1))])
    alone = over_seeds([one])
    assert alone["all"]["adherence_after_edit"]["half"] == pytest.approx(4.303 * 0.5 / 3**0.5, 1e-4)
    assert alone["edits_judged"] == {"all": 3, "by_requirement": {"upper": 3}}
    text = markdown(EvalConfig(seeds=(0,)), {"exact": {"by_seed": {}, "mean": alone}})
    assert "interval over edits" in text
    assert "| adherence after an edit | 0.500 ± 1.242 |" in text


def test_several_responses_to_a_task_give_coverage() -> None:
    good, bad = Ending("x", True), Ending("x", False)
    ends = [("a", good), ("a", good), ("b", bad), ("b", None)]
    samples = [replace(sample(judged(1.0, 4)), ending=end, task=task) for task, end in ends]
    one = summary(samples)["all"]
    assert (one["valid"], one["valid_count"]) == (0.5, 2)
    assert one["unique"] == 0.5
    assert one["distinct_valid"] == 0.25
    assert one["distinct_valid_half"] == pytest.approx(12.706 * 0.25, rel=1e-3)
    text = markdown(
        EvalConfig(seeds=(0,)),
        {"exact": {"by_seed": {}, "mean": over_seeds([summary(samples)])}},
    )
    assert "| responses that are both | 0.250 ± 3.177 |" in text
    assert "valid" not in summary(samples[1:3])["all"]  # one response to each


def test_a_task_is_repeated_under_other_names() -> None:
    again = repeated([TASK], 3)
    assert [one.task_id.partition(AGAIN)[0] for one in again] == [TASK.task_id] * 3
    assert len({one.task_id for one in again}) == 3


def test_no_evidence_is_no_number() -> None:
    one = summary([sample()])
    assert one["all"]["adherence_after_edit"] is None
    assert "adherence_after_edit" not in over_seeds([one])["all"]
