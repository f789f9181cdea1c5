"""`dynatok inspect`: every kind of place, what is damaged, hostile text, page and figure."""

from __future__ import annotations

import json
import re

import msgspec
import numpy as np
import pytest

from dynatok_online.data.storage import write_trajectories
from dynatok_online.spans.build import build_spans
from launch import cli
from launch.inspect.spans_figure import visibility
from launch.inspect.stored import read
from protocol.delivery.journal import Journal
from protocol.wire.codec import encode
from protocol.wire.envelope import Sealer
from protocol.wire.messages import TrajectoryMessage
from tests.simulate import simulate
from tests.test_trajectory import ids, worked_example


@pytest.fixture
def trajectories():
    rng = np.random.default_rng(3)
    made = [simulate(rng, p, block_size=2, name=f"t{i}") for i, p in enumerate(["exact", "sticky"])]
    return [worked_example(), *made]


@pytest.fixture
def inspect(capsys):
    def run(*arguments):
        code = cli.main(["inspect", *map(str, arguments)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def journal(folder, trajectories):
    one = Journal(folder)
    sealer = Sealer("some-run", "actor")
    for number, trajectory in enumerate(trajectories, 1):
        one.append(sealer.seal(encode(TrajectoryMessage(trajectory)), 1, number))
    one.close()
    return folder


def numbers(text, name):
    """The row of the summary that begins with `name`."""
    (row,) = [line for line in text.splitlines() if line.startswith(name)]
    return row.removeprefix(name).split()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_shows_passes_blocks_and_text(tmp_path, inspect, trajectories, suffix):
    path = tmp_path / f"data{suffix}"
    write_trajectories(path, trajectories)
    code, out, _ = inspect(path)
    assert code == 0
    tokens = sum(len(one.response) for one in trajectories)
    passes = sum(len(one.passes) for one in trajectories)
    assert numbers(out, path.name)[:3] == ["3", str(tokens), str(passes)]
    assert re.search(r"■ 0 +2 +14 +0 +15 +0 +3 +edit +1.00", out)
    # One token a block: "Write. " was reused, "lower" is new, ": A" had been computed before;
    # the KV of "B" had not, and "cd" were sampled here.
    assert re.search(r"^ +1 +▓{7}█{5}▄{3}█{3} +case: lower", out, re.M)
    assert "2 more: --limit 3" in out
    assert "--model NAME" in out


def test_a_folder_of_shards_and_one_by_its_name(tmp_path, inspect, trajectories):
    write_trajectories(tmp_path / "part-0.parquet", trajectories[:1])
    write_trajectories(tmp_path / "deep" / "part-1.jsonl", trajectories[1:])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    code, out, _ = inspect(tmp_path, "--only", "t1")
    assert code == 0
    assert numbers(out, "part-0.parquet")[0] == "1"
    assert numbers(out, "deep/part-1.jsonl")[0] == "2"
    assert "metrics" not in out
    assert re.search(r"^t1 ", out, re.M)
    code, _, err = inspect(tmp_path, "--only", "t9")
    assert (code, "no trajectory is called 't9'" in err) == (2, True)


def test_damaged_rows_are_said_and_the_rest_is_shown(tmp_path, inspect, trajectories):
    path = tmp_path / "data.jsonl"
    write_trajectories(path, trajectories)
    lines = path.read_text().splitlines()
    broken = json.loads(lines[1]) | {"response": "x"}
    path.write_text("\n".join([lines[0], json.dumps(broken), "{", lines[2]]) + "\n")
    code, out, _ = inspect(path)
    assert code == 1
    assert numbers(out, path.name)[0] == "2"
    assert re.search(r"damaged: .*data.jsonl.*line 2.*t0", out)
    assert re.search(r"damaged: .*data.jsonl.*line 3", out)


def test_a_journal_is_read_while_its_owner_writes_and_left_as_it_is(
    tmp_path, inspect, trajectories
):
    folder = journal(tmp_path / "journal" / "actor", trajectories)
    (segment,) = folder.glob("*.journal")
    whole = segment.read_bytes()
    head = 24  # of the segment; then come records
    segment.write_bytes(whole + whole[head : head + 50])  # one that is just being written
    torn = segment.read_bytes()
    owner = (folder / "lock").open("a")
    code, out, _ = inspect(tmp_path)
    owner.close()
    assert code == 1
    assert numbers(out, "journal/actor")[0] == "3"
    assert "the last 50 bytes are the beginning of a record" in out
    assert segment.read_bytes() == torn


def test_a_flipped_byte_in_a_journal_loses_one_record(tmp_path, inspect, trajectories):
    folder = journal(tmp_path / "journal", trajectories)
    (segment,) = folder.glob("*.journal")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    code, out, _ = inspect(segment)
    assert code == 1
    assert numbers(out, "journal")[0] == "2"
    assert "damaged in 1 places, where 1 records are missing" in " ".join(out.split())


def test_what_holds_nothing_is_refused(tmp_path, inspect):
    assert "no such file" in inspect(tmp_path / "nothing")[2]
    code, _, err = inspect(tmp_path)
    assert code == 2
    assert "holds no trajectories" in err
    (tmp_path / "data.txt").write_text("")
    assert inspect(tmp_path / "data.txt")[0] == 1
    assert "write a .jsonl or .parquet file" in inspect(tmp_path / "data.txt")[1]


HOSTILE = "\x1b[31m<script>alert(1)</script>\u202e\x07"


def hostile():
    one = worked_example()
    passes = list(one.passes)
    states = {"case": f"UPPER{HOSTILE}"}
    passes[0] = msgspec.structs.replace(passes[0], states=states, finish_reason=HOSTILE)
    return msgspec.structs.replace(
        one, passes=tuple(passes), trajectory_id=f"t{HOSTILE}", info={"task": HOSTILE}
    )


def test_hostile_text_steers_no_terminal(tmp_path, inspect):
    path = tmp_path / "data.jsonl"
    write_trajectories(path, [hostile()])
    _, out, _ = inspect(path)
    assert "\\u001b[31m<script>" in out
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", out)


def test_the_page_holds_every_event_and_no_markup_of_its_data(tmp_path, inspect, trajectories):
    path, page = tmp_path / "data.jsonl", tmp_path / "out.html"
    write_trajectories(path, [hostile(), *trajectories[1:]])
    assert inspect(path, "--html", page)[0] == 0
    text = page.read_text()
    assert text.count("<script") == 3
    assert "alert(1)</script>" not in text
    found = re.search(r'id="recordings">\s*(.*?)\s*</script>', text, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert [one["title"] for one in data["recordings"]] == [f"t{HOSTILE}", "t0", "t1"]
    tokens = [e for e in data["recordings"][0]["events"] if e["type"] == "tokens"]
    assert [i for e in tokens for i in e["ids"]] == ids("ABcde").tolist()


def test_the_figure_shows_what_each_span_sees(tmp_path, inspect, trajectories):
    path, figure = tmp_path / "data.jsonl", tmp_path / "spans.png"
    write_trajectories(path, trajectories)
    assert inspect(path, "--png", figure)[0] == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    spans = build_spans([trajectories[0]])
    seen = visibility(spans)
    # By hand: "Write. " then "UPPER: A" is pass 0, and "lower: ABcd" branches after "Write. ".
    text = "".join(map(chr, spans.input_ids))
    assert text == "Write. UPPER: Alower: ABcd"
    expected = np.tri(len(text), dtype=bool)
    expected[15:, 7:15] = False
    assert (seen == expected).all()


def test_a_run_folder_names_its_model(tmp_path, trajectories):
    from launch.inspect.stored import model_of

    journal(tmp_path / "journal" / "actor", trajectories)
    (tmp_path / "actor.yaml").write_text("model: some/model\n")
    assert model_of(tmp_path, read(tmp_path)) == "some/model"
    inner = tmp_path / "journal" / "actor"
    assert model_of(inner, read(inner)) == "some/model"
