"""The timeline for Perfetto, loaded by Perfetto's own trace processor."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.perfetto import TraceProcessor
from helpers.replays import replay_of, timeline_for, write
from helpers.synthetic import Made, make_run
from tracekit.cli.main import main
from tracekit.cli.pages import shown
from tracekit.replay.output import Replay, write_replay
from tracekit.report.perfetto import to_perfetto

HOSTILE = "</script><b>\u202e\x07\x1b[31m\ud800"


@pytest.fixture(scope="module")
def replay():
    made = replay_of(make_run(Made(shift=0.8, shift_from=20, shift_rollouts=5)))
    rollouts = [replace(made.result.verdict.rollouts[0], request_id=HOSTILE), *made.result.verdict.rollouts[1:]]
    result = replace(made.result, verdict=replace(made.result.verdict, rollouts=rollouts))
    timeline = timeline_for(made, updated_at=20)
    # the engine schedules ahead: each step is dispatched before the output of the last is there
    steps = timeline["steps"]
    late = steps.column("time_ns").to_numpy() + 15_000_000
    place = steps.schema.get_field_index("output_ns")
    return Replay(result, made.tokens, {**timeline, "steps": steps.set_column(place, "output_ns", [late])})


@pytest.fixture(scope="module")
def loaded(browser, replay):
    page = shown(replay, {})
    return TraceProcessor(browser, to_perfetto(page.result, page.tokens, page.timeline, packed=True))


def test_it_loads_without_an_error_and_holds_every_step(loaded, replay):
    assert loaded.query("select name, value from stats where severity = 'error' and value > 0") == []
    steps = replay.timeline["steps"]
    rows = loaded.query("select s.name as name, ts, dur from slice s where name glob 'step *' order by ts")
    assert [row.name for row in rows] == [f"step {i}" for i in steps.column("engine_step").to_pylist()]
    assert [row.ts for row in rows] == (
        steps.column("time_ns").to_numpy() - steps.column("time_ns")[0].as_py()
    ).tolist()
    assert all(row.dur == 10_000_000 for row in rows[:-1])  # cut where the next begins
    (depth,) = loaded.query("select max(depth) as deepest from slice")
    assert depth.deepest == 0


def test_counters_and_marks_are_those_of_the_replay(loaded, replay):
    track = "select value from counter c join counter_track t on c.track_id = t.id where t.name = 'mean |d| nats'"
    off = loaded.query(f"{track} order by ts")
    tokens = {name: replay.tokens.column(name).to_numpy() for name in ("engine_step", "d", "beyond_noise")}
    last = tokens["engine_step"] == tokens["engine_step"].max()
    assert off[-1].value == pytest.approx(float(np.abs(tokens["d"][last]).mean()))
    (hits,) = loaded.query("select count(*) as n from slice where name = 'beyond noise'")
    assert hits.n == int(tokens["beyond_noise"].sum())
    calls = loaded.query("select s.name as name from slice s join thread_track t on s.track_id = t.id "
                         "join thread using (utid) where thread.name = 'weights and calls' order by ts")  # fmt: skip
    assert [row.name for row in calls] == ["reload_weights", "step-1"]


def test_hostile_names_are_text_with_escapes(loaded, replay):
    page = shown(replay, {})
    written = json.loads(to_perfetto(page.result, page.tokens, page.timeline))
    names = "".join(event["args"]["name"] for event in written["traceEvents"] if event["ph"] == "M")
    assert not set(names) & set("\u202e\x07\x1b\ud800")
    (name,) = loaded.query("select name from thread where name glob 'request 0*'")
    # this version of Perfetto shows an escaped backslash as two
    assert name.name.replace("\\\\", "\\") == "request 0 </script><b>\\u202e\\u0007\\u001b[31m\\ud800"


def test_the_command_writes_it_packed_or_not_and_says_what_it_lacks(replay, tmp_path, capsys):
    def run(*args):
        with pytest.raises(SystemExit) as done:
            main(["report", *map(str, args)])
        return done.value.code, capsys.readouterr().err

    write_replay(replay, tmp_path / "r.arrow")
    assert run(tmp_path / "r.arrow", "--perfetto", tmp_path / "t.json")[0] == 0
    assert run(tmp_path / "r.arrow", "--perfetto", tmp_path / "t.json.gz", "-o", tmp_path / "p.html")[0] == 0
    plain = (tmp_path / "t.json").read_bytes()
    assert gzip.decompress((tmp_path / "t.json.gz").read_bytes()) == plain and (tmp_path / "p.html").exists()
    assert {event["ph"] for event in json.loads(plain)["traceEvents"]} == {"M", "X", "C", "i"}
    code, err = run(tmp_path / "r.arrow")
    assert code == 2 and "--perfetto FILE" in err
    write(tmp_path / "without.arrow")
    code, err = run(tmp_path / "without.arrow", "--perfetto", tmp_path / "none.json")
    assert code == 2 and "holds no timeline" in err
