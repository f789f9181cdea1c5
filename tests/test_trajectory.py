"""The record of one response: token accounting, checks, rows."""

import json

import msgspec
import numpy as np
import pytest

from dynatok_online.trajectory import (
    RESPONSE,
    Earlier,
    Edit,
    Pass,
    Reuse,
    Trajectory,
    VersionRun,
    from_row,
    to_row,
)
from tests.simulate import simulate


def ids(text: str) -> np.ndarray:
    return np.array([ord(c) for c in text], np.int32)


def worked_example(**changes) -> Trajectory:
    """The example of the module's docstring."""
    fields = {
        "trajectory_id": "t",
        "pieces": (ids("Write. "), ids("UPPER"), ids(": "), ids("lower")),
        "response": ids("ABcde"),
        "logprobs": np.zeros(5, np.float32),
        "passes": (
            Pass(
                layout=(0, 1, 2, RESPONSE),
                states={"case": "UPPER"},
                start=0,
                stop=2,
                num_cached_tokens=0,
                weight_versions=(VersionRun(3, 2),),
                finish_reason="edit",
                scores={"case": 1.0},
            ),
            Pass(
                layout=(0, 3, 2, RESPONSE),
                states={"case": "lower"},
                start=2,
                stop=5,
                num_cached_tokens=7,
                reuse=(Reuse(0, 0, 7),),
                weight_versions=(VersionRun(3, 1), VersionRun(4, 2)),
            ),
        ),
        "edits": (Edit("case", "lower", 2, 2, "schedule"),),
    }
    return Trajectory(**(fields | changes))


def test_worked_example():
    trajectory = worked_example()
    texts = ["".join(map(chr, trajectory.tokens(k))) for k in range(2)]
    assert texts == ["Write. UPPER: AB", "Write. lower: ABcde"]
    assert [trajectory.fed_length(k) for k in range(2)] == [14, 16]
    assert [trajectory.kv_length(k) for k in range(2)] == [15, 18]
    assert trajectory.oldest_version == 3
    assert trajectory.versions().tolist() == [3, 3, 3, 4, 4]


def test_tokens_sampled_from_kv_of_two_versions_cannot_be_rebuilt():
    trajectory = worked_example()
    assert trajectory.versions().tolist() == [3, 3, 3, 4, 4]
    assert trajectory.rebuildable().tolist() == [True, True, True, False, False]
    # Given its blocks by version 3, and its first token by version 4.
    late = msgspec.structs.replace(
        trajectory.passes[1], weight_versions=(VersionRun(3, 0), VersionRun(4, 3))
    )
    trajectory = worked_example(passes=(trajectory.passes[0], late))
    assert trajectory.rebuildable().tolist() == [True, True, False, False, False]


def test_a_pass_that_sampled_nothing_keeps_the_kv_of_what_it_fed():
    empty = Pass(layout=(0, RESPONSE), states={}, start=0, stop=0, num_cached_tokens=0)
    trajectory = Trajectory(
        trajectory_id="t",
        pieces=(ids("abc"),),
        response=ids(""),
        logprobs=np.zeros(0, np.float32),
        passes=(empty,),
    )
    assert trajectory.kv_length(0) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": np.zeros(4, np.float32)}, "5 response tokens but 4 logprobs"),
        ({"response": ids("ABcde").astype(np.int64)}, "response must be one-dimensional int32"),
        ({"pieces": (ids("a"),)}, r"uses pieces \[1, 2\], but there are 1"),
        ({"passes": ()}, "cover 0 of 5"),
        ({"passes": worked_example().passes[1:]}, "starts at response index 2"),
    ],
)
def test_inconsistent_trajectories_say_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        worked_example(**changes)


def test_a_layout_places_the_response_once():
    with pytest.raises(ValueError, match="exactly once"):
        Pass(layout=(0, 1), states={}, start=0, stop=0, num_cached_tokens=0)


def test_rows_survive_json_and_are_readable_back():
    trajectory = worked_example(info={"task": "7"})
    row = json.loads(json.dumps(to_row(trajectory)))
    again = from_row(row)
    assert to_row(again) == to_row(trajectory)
    assert again.passes == trajectory.passes


def test_rows_have_the_same_columns_whatever_the_slots_are_called():
    from datasets import Dataset

    other = worked_example(
        passes=tuple(
            msgspec.structs.replace(one, states={"tone": "x"}, scores={})
            for one in worked_example().passes
        )
    )
    dataset = Dataset.from_list([to_row(worked_example()), to_row(other)])
    assert from_row(dataset[1]).passes == other.passes


def test_a_handwritten_row_needs_four_fields():
    row = {
        "trajectory_id": "h",
        "pieces": [[1, 2]],
        "response": [3, 4],
        "passes": [{"layout": [0, -1], "states": {}, "start": 0, "stop": 2}],
    }
    trajectory = from_row(row)
    assert np.isnan(trajectory.logprobs).all()
    with pytest.raises(ValueError, match=r"trajectory h: .*stop"):
        from_row({**row, "passes": [{"layout": [0, -1], "states": {}, "start": 0}]})


@pytest.mark.parametrize("bad", [[1.5], [-1], [2**31], ["7"], [True], [[1], [2, 3]], 2**64])
@pytest.mark.parametrize("field", ["pieces", "response"])
def test_what_is_no_token_id_is_refused_not_changed(field, bad):
    row = {
        "trajectory_id": "t",
        "pieces": [[1, 2]],
        "response": [3],
        "passes": [{"layout": [0, -1], "states": {}, "start": 0, "stop": 1}],
    }
    assert from_row(row).response.tolist() == [3]
    with pytest.raises(ValueError, match="trajectory t: "):
        from_row({**row, field: [bad] if field == "pieces" else bad})


def test_a_logprob_beyond_float32_is_refused():
    row = {
        "trajectory_id": "t",
        "pieces": [[1, 2]],
        "response": [3],
        "logprobs": [-1e300],
        "passes": [{"layout": [0, -1], "states": {}, "start": 0, "stop": 1}],
    }
    with pytest.raises(ValueError, match="trajectory t: overflow"):
        from_row(row)


def test_verdicts_on_earlier_text_survive_a_row_and_an_old_row_has_none() -> None:
    one = simulate(np.random.default_rng(3))
    last = one.passes[-1]
    assert last.start > 2
    judged = msgspec.structs.replace(last, earlier=(Earlier(0, 2, 0.5),))
    one = msgspec.structs.replace(one, passes=(*one.passes[:-1], judged))
    row = to_row(one)
    assert row["passes"][0]["earlier"] is None
    back = from_row(row)
    assert back.passes[-1].earlier == (Earlier(0, 2, 0.5),)
    assert back.passes[0].earlier is msgspec.UNSET
    del row["passes"][-1]["earlier"]
    assert from_row(row).passes[-1].earlier is msgspec.UNSET
    with pytest.raises(ValueError, match="judges earlier text, in ascending pieces"):
        msgspec.structs.replace(last, earlier=(Earlier(0, last.start + 1, 0.5),))
