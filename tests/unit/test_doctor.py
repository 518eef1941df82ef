"""``tracekit doctor`` on sound traces, and on traces that break each rule once: the rule and the place are named."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.doctored import CLIENTS, append, asking, at, drop, found, make_shed, put, report_of, view_of
from helpers.factories import make_cache, make_tables, make_topk, write_spool, write_trace
from tracekit.audit.doctor.examine import ALL, CHECKS, examine
from tracekit.audit.findings import SEVERITIES
from tracekit.cli.doctor import command
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED, TABLES
from tracekit.trace.reader import open_trace

FORBIDDEN_CACHE = {"vllm": {"cache_config": {"enable_prefix_caching": False}}}


def test_a_sound_trace_is_sound(tmp_path):
    report = report_of(tmp_path, asking())
    assert report.violations == [] and report.excused == [] and report.exit_code == 0
    assert report.counts["tokens"] == 16


def test_a_continuous_batch_in_several_batches_is_sound(tmp_path):
    batches = [make_tables(3, 8, first_request=3 * n, first_step=8 * n, engine=n == 0, seed=n) for n in range(4)]
    write_trace(tmp_path / "t.arrow", batches)
    assert examine(open_trace(tmp_path / "t.arrow")).exit_code == 0
    assert examine(open_trace(write_spool(tmp_path / "spool", batches))).exit_code == 0


def token(place, /, *, of=0, **values):
    return lambda t: put(t, "tokens", at(t, "tokens", request=of, position=place), **values)


def scheduled(step, /, *, of=0, **values):
    return lambda t: put(t, "scheduled", at(t, "scheduled", request=of, engine_step=step), **values)


def step(number, **values):
    return lambda t: put(t, "steps", number, **values)


def both(*changes):
    return lambda t: [change(t) for change in changes]


NAN_ENGINE = json.dumps({"hf_config": {"vocab_size": 1000}})


# the rule, the place it must name, what is done to the trace
CORRUPTIONS = [
    ("logprob-positive", (0, 2), token(7, rollout_logprob=0.25)),
    ("logprob-nan", (1, 3), token(8, of=1, rollout_logprob=np.nan)),
    ("logprob-infinite", (0, 2), token(7, rollout_logprob=-np.inf)),
    ("logprob-missing", (0, 2), token(7, rollout_logprob=np.ma.masked, rank=np.ma.masked)),
    ("token-outside-vocabulary", (0, 2), token(7, token_id=1000)),
    ("position-twice", (0, 3), token(8, position=7)),
    ("position-hole", (0, 3), token(8, position=20)),
    ("position-computed", (0, 7), token(12, position=13)),
    ("token-order", (0, 1), token(7, engine_step=1)),
    ("token-unscheduled", (0, 7), both(token(12, engine_step=7), lambda t: drop(t, "scheduled", 14))),
    ("token-in-partial-chunk", (0, 3), scheduled(3, flags=PARTIAL)),
    ("row-without-token", (1, 7), lambda t: drop(t, "tokens", at(t, "tokens", request=1, position=12))),
    ("unknown-request", (9, 2), token(7, request=9)),
    ("request-twice", (0, None), lambda t: put(t, "requests", 1, request=0)),
    ("step-hole", (None, 4), lambda t: drop(t, "steps", 3)),
    ("step-twice", (None, 3), step(4, engine_step=3)),
    ("step-requests", (None, 3), step(3, num_requests=5)),
    ("step-tokens", (None, 3), step(3, num_scheduled_tokens=5)),
    ("step-unknown", (0, 7), lambda t: drop(t, "steps", 7)),
    ("scheduled-twice", (0, 3), scheduled(4, engine_step=3)),
    ("draft-of-other-length", (0, 3), scheduled(3, num_draft=2)),
    ("scheduled-nothing", (0, 3), scheduled(3, num_tokens=0)),
    ("chain-start", (0, 0), scheduled(0, flags=PREFILL)),
    ("new-again", (0, 3), scheduled(3, flags=NEW)),
    ("computed-jump", (0, 3), scheduled(3, num_computed=9)),
    ("preempted-and-running", (0, 4), scheduled(3, flags=PREEMPTED, num_tokens=0, num_computed=0)),
    ("chain-start", (1, 0), scheduled(0, of=1, flags=PREFILL | RESUMED)),
    ("resumed-unexplained", (0, 3), scheduled(3, flags=RESUMED)),
    ("prefill-unflagged", (0, 0), scheduled(0, flags=NEW)),
    (
        "preempted-twice",
        (0, 4),
        both(*(scheduled(n, flags=PREEMPTED, num_tokens=0, num_computed=0) for n in (3, 4))),
    ),
    ("hit-beyond-prompt", (0, 0), scheduled(0, num_computed=5, num_tokens=1)),
    ("hit-unexplained", (1, 0), scheduled(0, of=1, num_computed=3, num_tokens=2)),
    ("version-hole", (None, 4), lambda t: put(t, "weights", 0, weight_version=2)),
    ("version-time", (None, 4), lambda t: put(t, "weights", 0, end_ns=5)),
    ("version-backwards", (None, 6), step(6, weight_version=0)),
    ("version-of-step", (None, 3), step(3, weight_version=1)),
    ("version-of-token", (0, 3), token(8, weight_version=1)),
    ("finish-twice", (0, 7), lambda t: put(t, "finishes", 1, request=0)),
    ("finish-count", (1, 7), lambda t: put(t, "finishes", 1, num_output_tokens=7)),
    ("token-after-finish", (1, 6), lambda t: put(t, "finishes", 1, engine_step=6)),
    ("time-backwards", (None, 3), step(3, time_ns=1_000_000_001)),
    ("time-of-output", (None, 3), step(3, output_ns=1_050_000_000)),
    ("time-of-finish", (1, 7), lambda t: put(t, "finishes", 1, time_ns=5)),
    ("time-of-admission", (1, 0), lambda t: put(t, "requests", 1, time_ns=1_010_000_000)),
    ("shed-whole", (1, 7), lambda t: t.update(shed=make_shed(t, 1))),
    ("time-before-engine", (0, None), lambda t: put(t, "requests", 0, time_ns=5)),
]


@pytest.mark.parametrize(("check", "place", "harm"), CORRUPTIONS, ids=[c[0] for c in CORRUPTIONS])
def test_each_violation_is_named_with_its_place(tmp_path, check, place, harm):
    tables = asking(config=NAN_ENGINE)
    harm(tables)
    report = report_of(tmp_path, tables)
    assert (check, *place) in found(report)
    assert report.exit_code == 1


def test_every_check_is_tested_and_says_all_it_has_to():
    ids = [check.id for check in ALL]
    assert len(set(ids)) == len(ids)
    planted = {case[0] for case in (*CORRUPTIONS, *BLOCKS, *ALTERNATIVES, *CLIENTS)} | IN_TESTS_OF_THEIR_OWN
    assert planted == set(ids)
    for check in ALL:
        assert check.severity in SEVERITIES and check.needs <= set(TABLES), check.id
        for text in (check.why, check.what_to_do):
            assert text[0].isupper() and text.endswith(".") and len(text) > 40, check.id


def test_one_of_several_engines_is_chosen(tmp_path):
    bad = asking(engine_id="1" * 32)
    token(7, rollout_logprob=0.5)(bad)
    write_spool(tmp_path / "spool", [asking()])
    write_spool(tmp_path / "spool", [bad], engine=1, engine_id="1" * 32)
    codes = {}
    for only in ("0", "1", "7"):
        done = CliRunner().invoke(command, [str(tmp_path / "spool"), "--only", only, "--json"], standalone_mode=False)
        codes[only] = done.return_value, {f["engine"] for f in json.loads(done.output or "{}").get("violations", [])}
    assert codes == {"0": (0, set()), "1": (1, {1}), "7": (None, set())}
    assert str(done.exception) == "the trace has no engine 7, its engines are: 0, 1"
    (tmp_path / "view").write_text("")
    done = CliRunner().invoke(
        command, [str(tmp_path / "spool"), "--only", "1", "--completions", str(tmp_path / "view")]
    )
    assert type(done.exception).__name__ == "UsageError"


def test_a_model_of_several_inputs_has_its_vocabulary_in_its_text_part(tmp_path):
    tables = asking(config=json.dumps({"hf_config": {"text_config": {"vocab_size": 1000}}}))
    token(7, token_id=1000)(tables)
    assert ("token-outside-vocabulary", 0, 2) in found(report_of(tmp_path, tables))


# what nothing else in a trace tells: a changed value is not found
FREE = {
    *{("tokens", "token_id"), ("tokens", "processed_logprob"), ("tokens", "rank")},
    *{("steps", "num_waiting"), ("steps", "kv_usage"), ("steps", "time_ns"), ("steps", "output_ns")},
    *{("requests", "time_ns"), ("requests", "index"), ("requests", "num_mm_features"), ("finishes", "time_ns")},
    *{("weights", "begin_ns"), ("weights", "end_ns")},
    # nulls here
    *{("weights", "num_changed")},
}


def numbers():
    tables = asking()
    kinds = {name: columns for name, columns in tables.items() if name != "engines"}
    return [(t, c) for t, columns in kinds.items() for c, v in columns.items() if isinstance(v, np.ndarray)]


@pytest.mark.parametrize(("table", "column"), [n for n in numbers() if n not in FREE], ids=str)
def test_any_other_number_in_any_row_is_tied_to_the_rest(tmp_path, table, column):
    values = asking()[table][column]
    for row in range(len(values)):
        tables = asking()
        tables["scheduled"] = {name: v.copy() for name, v in tables["scheduled"].items()}
        changed = tables[table][column]
        bits = changed.view("u4") if changed.dtype == np.float32 else changed
        bits[row] ^= 1 if column != "flags" else 3
        (tmp_path / str(row)).mkdir()
        assert report_of(tmp_path / str(row), tables).violations, f"{table}.{column} of row {row}"


def test_the_engines_own_kind_of_logprob_is_what_it_reported(tmp_path):
    tables = asking(logprobs_mode="processed_logprobs")
    tokens = tables["tokens"]
    tokens["raw_logprob"], tokens["processed_logprob"] = tokens["processed_logprob"], tokens["raw_logprob"]
    tokens["processed_logprob"].view("u4")[3] ^= 1
    tokens["raw_logprob"][5] = 0.25
    report = report_of(tmp_path, tables)
    names = {(f.check.id, f.count) for f in report.violations}
    assert names == {("logprob-not-the-engines", 1), ("logprob-positive", 1)}


def test_a_hit_needs_a_prefix_cache(tmp_path):
    tables = asking(config=json.dumps(FORBIDDEN_CACHE))
    scheduled(0, of=1, num_computed=3, num_tokens=2)(tables)
    assert ("hit-without-cache", 1, 0) in found(report_of(tmp_path, tables))


def twice(columns):
    return {name: values * 2 if isinstance(values, list) else np.repeat(values, 2) for name, values in columns.items()}


def shared_prompt():
    """Request 1 has the prompt of request 0; its first step comes one step later and finds three tokens computed."""
    tables = make_tables(1, 8)
    tables["requests"] = {
        k: list(v) * 2 if isinstance(v, list) else np.repeat(v, 2) for k, v in tables["requests"].items()
    }
    put(tables, "requests", 1, request=1, request_id="internal-1", external_id="request-1")
    for name in ("tokens", "scheduled"):
        mine = {k: v[:7].copy() for k, v in tables[name].items()}
        mine["request"][:] = 1
        mine["engine_step"] = mine["engine_step"] + np.uint32(1)
        tables[name] = {k: np.ma.concatenate([v, mine[k]]) for k, v in tables[name].items()}
    scheduled(1, of=1, num_computed=3, num_tokens=2)(tables)
    for number in range(1, 8):
        put(tables, "steps", number, num_requests=2, num_scheduled_tokens=3 if number == 1 else 2)
    tables["finishes"] = {
        k: list(v) * 2 if isinstance(v, list) else np.repeat(v, 2) for k, v in tables["finishes"].items()
    }
    put(tables, "finishes", 1, request=1, num_output_tokens=7)
    tables["cache"] = make_cache((1, 1, 3, [(0, 0), (0, 0)]))
    return tables


def test_a_hit_that_an_earlier_request_explains_is_sound(tmp_path):
    assert report_of(tmp_path, shared_prompt()).violations == []


BLOCKS = [
    ("cache-coverage", lambda t: put(t, "cache", 1, num_tokens=2)),
    ("cache-coverage", lambda t: t.pop("cache")),
    ("cache-coverage", lambda t: put(t, "cache", 0, kv_group=1)),
    ("cache-block-hole", lambda t: put(t, "cache", 1, block=2)),
    ("cache-block-hole", lambda t: put(t, "cache", 0, block=1)),
    ("cache-without-hit", lambda t: append(t, "cache", engine_step=1, request=0, num_tokens=2)),
    ("cache-version", lambda t: put(t, "cache", 0, max_weight_version=1)),
    ("cache-version", lambda t: put(t, "cache", 0, min_weight_version=1)),
    ("cache-version", lambda t: put(t, "cache", 0, min_weight_version=np.ma.masked)),
    ("unknown-request", lambda t: put(t, "cache", 0, request=9)),
]


@pytest.mark.parametrize(("check", "harm"), BLOCKS, ids=[f"{n}-{check}" for n, (check, _) in enumerate(BLOCKS)])
def test_the_blocks_of_a_hit_cover_it_and_were_computed_before(tmp_path, check, harm):
    tables = shared_prompt()
    harm(tables)
    assert (check, 1) in {(name, step) for name, _, step in found(report_of(tmp_path, tables))}


def test_blocks_that_nobody_knows_of_are_sound(tmp_path):
    tables = shared_prompt()
    put(tables, "cache", 0, min_weight_version=np.ma.masked, max_weight_version=np.ma.masked)
    assert report_of(tmp_path, tables).violations == []


def with_alternatives(k=3):
    tables = make_tables(2, 8, sampling_params={"temperature": 1.0, "logprobs": k})
    tables["topk"] = make_topk(tables, k)
    return tables


ALTERNATIVES = [
    ("topk-missing", (0, 2), lambda t, i: drop(t, "topk", i)),
    ("topk-missing", (0, 2), lambda t, i: put(t, "topk", i, rank=1)),
    ("topk-missing", (1, 7), lambda t, i: put(t, "topk", at(t, "topk", request=1, position=12, rank=3), position=20)),
    ("topk-without-token", (0, None), lambda t, i: put(t, "topk", i, position=40)),
    ("topk-without-token", (9, None), lambda t, i: put(t, "topk", i, request=9)),
    ("topk-rank", (0, None), lambda t, i: put(t, "topk", i, rank=4)),
    ("topk-order", (0, None), lambda t, i: put(t, "topk", i, logprob=0)),
    ("topk-of-sampled", (0, None), lambda t, i: put(t, "topk", i - 1, logprob=-1e-7)),
    ("topk-of-sampled", (0, None), lambda t, i: token(7, rollout_logprob=-9)(t)),
]


@pytest.mark.parametrize(
    ("check", "place", "harm"), ALTERNATIVES, ids=[f"{n}-{a[0]}" for n, a in enumerate(ALTERNATIVES)]
)
def test_alternatives_are_complete_and_ranked(tmp_path, check, place, harm):
    tables = with_alternatives()
    tables["tokens"] = {name: values.copy() for name, values in tables["tokens"].items()}
    harm(tables, at(tables, "topk", request=0, position=7, rank=2))
    assert (check, *place) in found(report_of(tmp_path, tables))


def test_alternatives_of_a_token_that_was_sampled_again_are_sound(tmp_path):
    tables = with_alternatives()
    (tmp_path / "first").mkdir()
    assert report_of(tmp_path / "first", tables).violations == []
    # of one position a token was thrown away and another sampled
    where = [at(tables, "topk", request=0, position=12, rank=rank) for rank in (1, 2, 3)]
    more = {name: values[where] for name, values in tables["topk"].items()}
    tables["topk"] = {name: np.concatenate([values, more[name]]) for name, values in tables["topk"].items()}
    assert ("topk-missing", 0, 7) in found(report_of(tmp_path, tables))
    append(tables, "tokens", request=0, position=12, token_id=4, rollout_logprob=-3, rank=1, engine_step=7)
    put(tables, "tokens", -1, flags=DISCARDED)
    (tmp_path / "again").mkdir()
    report = report_of(tmp_path / "again", tables)
    assert not {check for check, *_ in found(report)} & {"topk-missing", "topk-rank", "topk-of-sampled"}


def test_alternatives_that_nobody_asked_for_are_named(tmp_path):
    tables = make_tables(2, 8, sampling_params={"logprobs": 3, "logprob_token_ids": [5, 6, 7]})
    assert report_of(tmp_path, tables).violations == []
    tables["topk"] = make_topk(tables, 1)
    (tmp_path / "more").mkdir()
    assert {f.check.id for f in report_of(tmp_path / "more", tables).violations} == {"topk-rank"}


def test_a_cache_salt_separates_the_same_prompt(tmp_path):
    tables = shared_prompt()
    put(tables, "requests", 1, cache_salt="v1")
    assert found(report_of(tmp_path, tables)) == {("hit-unexplained", 1, 1)}


def test_a_preemption_and_a_resumption_explain_a_jump(tmp_path):
    tables = asking()
    for name, index in (("scheduled", at(tables, "scheduled", request=0, engine_step=7)),):
        drop(tables, name, index)
    drop(tables, "tokens", at(tables, "tokens", request=0, position=12))
    append(tables, "scheduled", engine_step=7, request=0, num_tokens=0, num_computed=0, flags=PREEMPTED)
    put(tables, "steps", 7, num_requests=1, num_scheduled_tokens=1)
    start = {"time_ns": 1_160_000_000, "output_ns": 1_165_000_000, "weight_version": 1, "num_waiting": 0, "kv_usage": 0}
    append(tables, "steps", engine_step=8, num_requests=1, num_scheduled_tokens=12, **start)
    append(tables, "scheduled", engine_step=8, request=0, num_tokens=12, num_computed=0, flags=RESUMED | PREFILL)
    sampled = {"token_id": 5, "rollout_logprob": -1, "rank": 1, "weight_version": 1, "flags": ACCEPTED}
    append(tables, "tokens", request=0, position=12, engine_step=8, **sampled)
    put(tables, "finishes", 0, engine_step=8)
    assert report_of(tmp_path, tables).violations == []


def test_a_discarded_token_is_no_hole(tmp_path):
    tables = asking()
    token(12, flags=DISCARDED)(tables)
    put(tables, "finishes", 0, num_output_tokens=7, reason="abort")
    assert report_of(tmp_path, tables).violations == []


def test_lost_rows_of_unknown_tables_excuse_every_check_that_needs_a_table(tmp_path):
    needing = {check.id for check in CHECKS if check.needs}
    tables = asking(config=NAN_ENGINE)
    for check, _, harm in CORRUPTIONS:
        if check in needing | {"logprob-positive"}:
            tables = asking(config=NAN_ENGINE)
            harm(tables)
            (tmp_path / check).mkdir(exist_ok=True)
            folder = write_spool(tmp_path / check / str(len(list((tmp_path / check).iterdir()))), [tables], last=False)
            report = examine(open_trace(folder))
            assert [str(loss) for loss in report.losses] == [
                "engine 0, batches 2 and later: rows unknown (open end: the engine never said goodbye, "
                "rows after its last batch are unknown)"
            ]
            excused = {f.check.id for f in report.excused}
            assert (check in excused) == (check in needing), check
            assert not {f.check.id for f in report.violations} & needing


IN_TESTS_OF_THEIR_OWN = {
    *{"rows-conserved", "logprob-not-the-engines", "hit-without-cache", "version-order", "label-of-no-version"},
    *{"client-incomplete", "client-duplicate", "client-order"},
    *{"fingerprint-of-no-version", "fingerprint-twice", "fingerprint-baseline", "num-changed"},
    # in test_doctor_prompts
    *{"prompt-logprob-id", "prompt-logprob-missing", "prompt-logprob-value", "prompt-alternatives"},
    *{"client-prompt-logprobs"},
    # in test_doctor_annotations
    *{"annotation-finite", "annotation-length", "annotation-rollout"},
}


def test_the_command_prints_and_ends_with_the_right_code(tmp_path):
    tables = asking()
    path, view = tmp_path / "t.arrow", tmp_path / "view.jsonl"
    write_trace(path, [tables])
    view.write_text("".join(json.dumps(row) + "\n" for row in view_of(tables)))
    done = CliRunner().invoke(command, [str(path), "--completions", str(view)], standalone_mode=False)
    assert done.return_value == 0 and "2 completions" in done.output and "sound" in done.output
    token(7, rollout_logprob=0.5)(tables)
    write_trace(tmp_path / "bad.arrow", [tables])
    done = CliRunner().invoke(command, [str(tmp_path / "bad.arrow")], standalone_mode=False)
    assert done.return_value == 1
    assert "engine 0, request 0, engine step 2: position 7 has logprob 0.5" in done.output
    assert "VIOLATED: logprob-positive in engine 0, 1 time (breaks replay)" in done.output
    assert "  do   Look at what the engine's logits processors" in done.output
    done = CliRunner().invoke(command, [str(tmp_path / "bad.arrow"), "--json"], standalone_mode=False)
    facts = json.loads(done.output)
    told, _ = facts["violations"]
    assert facts["sound"] is False and told["id"] == "logprob-positive" and told["severity"] == "breaks replay"
    (check,) = (check for check in ALL if check.id == told["id"])
    assert (told["why"], told["what_to_do"]) == (check.why, check.what_to_do)


@pytest.mark.parametrize("text", ["not json\n", '{"index": 0}\n', None])
def test_completions_that_are_none_are_a_usage_error(tmp_path, text):
    write_trace(tmp_path / "t.arrow", [asking()])
    if text is not None:
        (tmp_path / "view").write_text(text)
    done = CliRunner().invoke(command, [str(tmp_path / "t.arrow"), "--completions", str(tmp_path / "view")])
    assert type(done.exception).__name__ == "UsageError"
