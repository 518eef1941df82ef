"""``tracekit info``, ``cat`` and ``export`` as processes: what they print, and the codes they end with."""

import csv
import io
import json
import os
import subprocess
import sys

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.factories import ENGINE_ID, make_engine, make_tables, write_spool, write_trace
from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.reader import open_trace
from tracekit.trace.spool import SpoolWriter


def tracekit(*arguments):
    code = "import sys; from tracekit.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def sealed(tmp_path):
    write_trace(tmp_path / "t.arrow", [make_tables(weight_version=3)])
    return tmp_path / "t.arrow"


def test_info_says_what_a_trace_holds(sealed):
    done = tracekit("info", sealed)
    assert done.returncode == 0
    for text in ("24 in 3 requests", "5 to 12", "raw_logprobs", "0.18.1", "nothing was lost", "weight versions  3"):
        assert text in done.stdout


def test_info_as_json(sealed):
    facts = json.loads(tracekit("info", sealed, "--json").stdout)
    assert facts["rows"]["tokens"] == 24 and facts["positions"] == [5, 12] and facts["weight_versions"] == [3]
    assert facts["complete"] is True and facts["losses"] == []
    assert facts["bytes"] == os.path.getsize(sealed)
    (engine,) = facts["engines"]
    assert (engine["engine_id"], engine["tokens"], engine["requests"], engine["ended"]) == (ENGINE_ID, 24, 3, True)


def test_info_of_a_trace_that_lost_data_ends_with_3(tmp_path):
    batches = [make_tables(first_request=3 * n, first_step=8 * n, engine=n == 0) for n in range(3)]
    folder = write_spool(tmp_path / "spool", batches, skip={2})
    done = tracekit("info", folder)
    assert done.returncode == 3
    assert "engine 0, batch 2: " in done.stdout and "tokens 24" in done.stdout
    done = tracekit("info", folder, "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["losses"][0]["rows"]["tokens"] == 24


def test_info_of_a_trace_that_is_being_written_is_clean(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        writer.append(to_record_batch(make_tables(), 0), BatchMeta(0, ENGINE_ID, 1, {"tokens": 24}))
        done = tracekit("info", tmp_path / "spool")
    assert done.returncode == 0 and "being written" in done.stdout


def without(*tables):
    return {name: columns for name, columns in make_tables().items() if name not in tables}


NOTHING = {
    "no engine was recorded": [],
    "no token was recorded": [{"engines": make_engine()}],
    "no request finished": [without("finishes")],
}


@pytest.mark.parametrize("command", ["info", "doctor", "lint"])
@pytest.mark.parametrize("lacks", NOTHING)
def test_of_a_trace_that_holds_nothing_to_judge_nothing_good_is_said(tmp_path, command, lacks):
    write_trace(tmp_path / "t.arrow", NOTHING[lacks])
    done = tracekit(command, tmp_path / "t.arrow")
    assert done.returncode == 1 and f"NOTHING TO JUDGE: {lacks}\n" in done.stdout
    assert "nothing was lost" not in done.stdout and "sound: the trace" not in done.stdout
    done = tracekit(command, tmp_path / "t.arrow", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 1 and facts["lacks"] == lacks and facts.get("sound", False) is False


@pytest.mark.parametrize("command", ["info", "doctor", "lint"])
def test_a_trace_that_is_being_written_may_hold_nothing_yet(tmp_path, command):
    with SpoolWriter(tmp_path / "spool") as writer:
        assert tracekit(command, tmp_path / "spool").returncode == 0
        tables = {"engines": make_engine()}
        writer.append(to_record_batch(tables, 0), BatchMeta(0, ENGINE_ID, 1, {"engines": 1}))
        done = tracekit(command, tmp_path / "spool")
    assert done.returncode == 0 and "sound: the trace" not in done.stdout
    assert command != "doctor" or "no token was recorded yet: there is nothing to judge" in done.stdout


def test_unfinished_requests_of_an_engine_that_was_killed_are_a_loss(tmp_path):
    write_trace(tmp_path / "t.arrow", NOTHING["no request finished"], last=False)
    for command in ("info", "doctor", "lint"):
        done = tracekit(command, tmp_path / "t.arrow")
        assert done.returncode == 3 and "NOTHING TO JUDGE" not in done.stdout


def test_counters_of_zero_prove_nothing_of_a_trace_that_holds_nothing(tmp_path):
    write_trace(tmp_path / "t.arrow", NOTHING["no token was recorded"])
    (tmp_path / "metrics").write_text('vllm:generation_tokens_total{engine="0",model_name="m"} 0.0\n')
    done = tracekit("doctor", tmp_path / "t.arrow", "--live", tmp_path / "metrics")
    assert done.returncode == 1 and "NOTHING TO JUDGE: no token was recorded" in done.stdout
    with SpoolWriter(tmp_path / "spool") as writer:
        tables = {"engines": make_engine()}
        writer.append(to_record_batch(tables, 0), BatchMeta(0, ENGINE_ID, 1, {"engines": 1}))
        done = tracekit("doctor", tmp_path / "spool", "--live", tmp_path / "metrics")
    assert done.returncode == 0 and "nothing to judge" in done.stdout


def test_completions_that_hold_no_line_are_refused(sealed, tmp_path):
    (tmp_path / "client.jsonl").touch()
    done = tracekit("doctor", sealed, "--completions", tmp_path / "client.jsonl")
    assert done.returncode == 2 and done.stdout == "" and "client.jsonl is empty" in done.stderr


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_cat_says_of_a_table_without_rows_that_it_has_none(sealed, form):
    done = tracekit("cat", sealed, "topk", form)
    assert done.returncode == 0 and done.stdout.count("\n") == (form == "--csv")
    assert done.stderr == "tracekit: the trace has no rows in topk\n"
    assert tracekit("cat", sealed, "tokens", "--head", 0).stderr == ""


def test_export_says_of_a_trace_that_holds_nothing_what_it_lacks(tmp_path):
    write_trace(tmp_path / "t.arrow", [])
    done = tracekit("export", tmp_path / "t.arrow", "--parquet", tmp_path / "out")
    assert done.returncode == 0 and done.stderr.strip() == "NOTHING TO JUDGE: no engine was recorded"


@pytest.mark.parametrize("command", ["info", "cat", "export"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "there is no such trace"),
        (b"", "not an Arrow file"),
        (b"hello", "not an Arrow file"),
        (b"ARROW1\0\0", "ends before its own end"),
    ],
)
def test_what_is_no_trace_gets_one_sentence(tmp_path, command, content, text):
    path = tmp_path / "t.arrow"
    if content is not None:
        path.write_bytes(content)
    more = {"info": [], "cat": ["tokens"], "export": ["--parquet", tmp_path / "out"]}[command]
    done = tracekit(command, path, *more)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("tracekit: error: ") and done.stderr.count("\n") == 1
    assert text in done.stderr and str(path) in done.stderr
    assert not (tmp_path / "out").exists()


def test_cat_prints_rows_bit_for_bit(sealed):
    rows = [json.loads(line) for line in tracekit("cat", sealed, "tokens").stdout.splitlines()]
    truth = open_trace(sealed).table("tokens")
    assert [row["token_id"] for row in rows] == truth["token_id"].to_pylist()
    printed = np.array([row["rollout_logprob"] for row in rows], "f4")
    assert np.array_equal(printed.view("u4"), truth["rollout_logprob"].to_numpy().view("u4"))


def test_cat_head_and_numbers_that_are_none(tmp_path):
    tables = make_tables(num_requests=1, tokens=3)
    tables["tokens"]["rollout_logprob"] = np.ma.masked_array(
        np.array([np.nan, -np.inf, 0], "f4"), mask=[False, False, True]
    )
    write_trace(tmp_path / "t.arrow", [tables])
    lines = tracekit("cat", tmp_path / "t.arrow", "tokens", "--head", 3).stdout.splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["rollout_logprob"] for line in lines] == ["nan", "-inf", None]
    assert len(tracekit("cat", tmp_path / "t.arrow", "tokens", "--head", 2).stdout.splitlines()) == 2


def test_cat_as_csv(sealed):
    rows = list(csv.DictReader(io.StringIO(tracekit("cat", sealed, "requests", "--csv").stdout)))
    assert [row["external_id"] for row in rows] == ["request-0", "request-1", "request-2"]
    assert len(json.loads(rows[0]["prompt_token_ids"])) == 5
    assert list(rows[0]) == list(TABLES["requests"])


def test_cat_of_an_unknown_table_is_a_usage_error(sealed):
    done = tracekit("cat", sealed, "nonsense")
    assert done.returncode == 2 and "nonsense" in done.stderr


def test_export_writes_parquet_that_others_read(sealed, tmp_path):
    done = tracekit("export", sealed, "--parquet", tmp_path / "out")
    assert done.returncode == 0
    trace = open_trace(sealed)
    for name in TABLES:
        assert pq.read_table(tmp_path / "out" / f"{name}.parquet").equals(trace.table(name))
    assert duckdb.sql(f"select count(*) from '{tmp_path}/out/tokens.parquet'").fetchall() == [(24,)]


def test_export_overwrites_nothing(sealed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    done = tracekit("export", sealed, "--parquet", tmp_path / "out")
    assert done.returncode == 1 and "not empty" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    done = tracekit("export", sealed, "--parquet", sealed)
    assert done.returncode == 1 and "cannot write into" in done.stderr


def test_export_of_a_trace_that_lost_data_says_so(tmp_path):
    write_trace(tmp_path / "t.arrow", last=False)
    done = tracekit("export", tmp_path / "t.arrow", "--parquet", tmp_path / "out")
    assert done.returncode == 3 and "not complete" in done.stderr
    assert pq.read_table(tmp_path / "out" / "losses.parquet").num_rows == 1


def test_a_damaged_batch_is_one_sentence_that_names_it(sealed):
    data = bytearray(sealed.read_bytes())
    data[data.find(b"tracekit.batch") + 40] ^= 1
    sealed.write_bytes(data)
    done = tracekit("cat", sealed, "tokens")
    assert done.returncode == 1 and "batch 1 of" in done.stderr and done.stdout == ""


def test_info_does_not_call_a_damaged_trace_complete(sealed):
    whole = sealed.read_bytes()
    refused = 0
    for offset in range(2000, len(whole) - 2000, 1500):
        data = bytearray(whole)
        data[offset] ^= 1
        sealed.write_bytes(data)
        done = tracekit("info", sealed)
        assert done.returncode in (0, 1), done.stderr
        if done.returncode:
            refused += 1
            assert done.stderr.startswith("tracekit: error: ") and done.stdout == ""
        else:  # padding: every table still is what was written
            trace = open_trace(sealed)
            assert all(trace.table(name).num_rows == trace.rows(name) for name in TABLES if name != "losses")
    assert refused
