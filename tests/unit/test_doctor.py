"""``tracekit doctor`` on sound traces, and on traces that break each rule once: the rule and the place are named."""

import json
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from helpers.factories import (
    ENGINE_ID,
    count_rows,
    make_cache,
    make_engine,
    make_tables,
    make_topk,
    make_weights,
    write_spool,
    write_trace,
)
from tracekit.audit.doctor.client import client_view
from tracekit.audit.doctor.counters import conserved
from tracekit.audit.doctor.examine import ALL, CHECKS, examine
from tracekit.audit.findings import SEVERITIES
from tracekit.audit.rows import read_engines
from tracekit.cli.doctor import command
from tracekit.report.doctor import to_lines
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED, SHED, TABLES
from tracekit.trace.batch import BatchMeta, batch_of_structs, rows_of, to_record_batch
from tracekit.trace.ledger import Loss, loss_table
from tracekit.trace.reader import open_trace
from tracekit.trace.segments import segment_paths
from tracekit.trace.spool import SpoolWriter

FORBIDDEN_CACHE = {"vllm": {"cache_config": {"enable_prefix_caching": False}}}


def asking(**engine):
    """Two requests of eight tokens that asked for logprobs, on weights that change before step 4."""
    tables = make_tables(2, 8, sampling_params={"temperature": 1.0, "logprobs": 0}, engine=make_engine(**engine))
    tables["weights"] = make_weights(4)
    tables["tokens"] = {name: values.copy() for name, values in tables["tokens"].items()}  # from what scheduled shares
    for name in ("tokens", "steps"):
        tables[name]["weight_version"] = (tables[name]["engine_step"] >= 4).astype("u4")
    tables["tokens"]["raw_logprob"] = tables["tokens"]["rollout_logprob"].copy()
    tables["tokens"]["processed_logprob"] = tables["tokens"]["rollout_logprob"] / np.float32(0.7)
    return tables


def make_shed(tables, index):
    """The row of a request that was shed."""
    names = ("request", "time_ns", "request_id", "external_id", "index")
    return {**{name: tables["requests"][name][index : index + 1] for name in names}, "reason": ["full"]}


def shed(tables, number):
    """Leave a request out as a recorder does that sheds it; return its rows by table."""
    gone, tables["shed"] = {}, make_shed(tables, number)
    for name in ("requests", "tokens", "scheduled", "finishes"):
        keep = np.flatnonzero(tables[name]["request"] != number)
        gone[name] = len(tables[name]["request"]) - len(keep)
        tables[name] = {
            column: [values[i] for i in keep] if isinstance(values, list) else values[keep]
            for column, values in tables[name].items()
        }
    return gone


@pytest.mark.parametrize("harmed", [False, True])
def test_requests_that_were_shed_excuse_nothing_of_the_others(tmp_path, harmed):
    tables = asking()
    gone = shed(tables, 1)
    if harmed:
        put(tables, "finishes", 0, num_output_tokens=7)
    produced = Counter(count_rows(tables)) + Counter(gone)
    with SpoolWriter(tmp_path / "spool") as writer:
        first = to_record_batch(tables, 0)
        losses = loss_table([Loss(0, 1, 1, SHED, gone)]).to_struct_array().combine_chunks()
        batch = batch_of_structs({name: rows_of(first, name) for name in first.schema.names} | {"losses": losses})
        writer.append(batch, BatchMeta(0, ENGINE_ID, 2, dict(produced), gone, True))
        writer.sync()
    report = examine(open_trace(tmp_path / "spool"))
    assert ("finish-count" in {one.check.id for one in report.violations}) == bool(report.violations) == harmed
    assert report.exit_code == (1 if harmed else 3) and "shed" in str(report.losses[0])


def report_of(path, tables, view=None, **spool):
    write_trace(path / "t.arrow", [tables], **spool)
    return examine(open_trace(path / "t.arrow"), view)


def found(report):
    return {(f.check.id, e.request, e.engine_step) for f in report.violations for e in f.examples}


def at(tables, name, **where):
    """Index of the one row with these values."""
    columns = tables[name]
    (index,) = np.flatnonzero(np.logical_and.reduce([columns[key] == value for key, value in where.items()]))
    return index


def put(tables, name, index, **values):
    for column, value in values.items():
        tables[name][column][index] = value


def drop(tables, name, index):
    for column, values in tables[name].items():
        kept = [v for i, v in enumerate(values) if i != index]
        tables[name][column] = np.ma.masked_array(kept, dtype=values.dtype) if isinstance(values, np.ndarray) else kept


def append(tables, name, **values):
    """Append a row; what is not named is zero, or null where it may be."""
    for column, old in tables[name].items():
        missing = column not in values and TABLES[name][column].endswith("?")
        more = np.ma.masked_array([values.get(column, 0)], mask=missing, dtype=getattr(old, "dtype", object))
        tables[name][column] = np.ma.append(old, more) if hasattr(old, "dtype") else [*old, values.get(column)]


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


def test_versions_begin_in_their_order(tmp_path):
    tables = asking()
    tables["weights"] = make_weights(4, 2)
    assert ("version-order", None, 2) in found(report_of(tmp_path, tables))


def labelled(tables, version, label="step-120"):
    append(tables, "weights", weight_version=version, engine_step=5, method="mark", arguments="{}", label=label)


def test_a_label_is_no_change(tmp_path):
    tables = asking()
    for version in (0, 1, 1, 2):
        labelled(tables, version)
    assert report_of(tmp_path, tables).exit_code == 0
    labelled(tables, 3)
    (tmp_path / "other").mkdir()
    assert found(report_of(tmp_path / "other", tables)) == {("label-of-no-version", None, 5)}


def fingerprinted(**changes):
    """Three versions of two tensors of two workers: one moves, then none does, then one cannot be read."""
    tables = asking()
    tables["weights"] = make_weights(4, 8, 9, num_changed=np.ma.masked_array([1, 0, 0], mask=[0, 0, 1], dtype="u4"))
    hashes = np.ma.array([[1, 2, 3, 4], [1, 2, 9, 4], [1, 2, 9, 4], [1, 2, 9, 4]], dtype="u8").ravel()
    hashes[-1] = np.ma.masked
    tables["fingerprints"] = {
        "weight_version": np.arange(16, dtype="u4") // 4,
        "rank": np.arange(16, dtype="u4") // 2 % 2,
        "tensor": ["norm", "embed"] * 8,
        "dtype": ["bfloat16"] * 16,
        "shape": [[8], [4, 2]] * 8,
        "hash": hashes,
    }
    for column, (row, value) in changes.items():
        tables["fingerprints"][column][row] = value
    return tables


def test_num_changed_is_what_the_fingerprints_say(tmp_path):
    assert report_of(tmp_path, fingerprinted()).violations == []
    wrong = {
        "hash": ((4, 7), {4, 8}),  # another tensor moves in version 1, and back in version 2
        "tensor": ((8, "gone"), {8, 9}),
        "dtype": ((8, "float32"), {8, 9}),
        "shape": ((8, [9]), {8, 9}),
        "rank": ((4, 7), {4, 8}),
    }
    for column, (change, steps) in wrong.items():
        (tmp_path / column).mkdir()
        report = report_of(tmp_path / column, fingerprinted(**{column: change}))
        assert found(report) == {("num-changed", None, step) for step in steps}, column


def test_an_adapters_version_has_no_fingerprints_and_the_next_compares_to_the_one_before(tmp_path):
    tables = fingerprinted()
    tables["weights"]["lora"][1] = "adapter"
    assert {check for check, *_ in found(report_of(tmp_path, tables))} == {"num-changed", "fingerprint-of-no-version"}
    put(tables, "weights", 1, num_changed=np.ma.masked)
    kept = np.r_[0:8, 12:16]
    tables["fingerprints"] = {
        name: [values[i] for i in kept] if isinstance(values, list) else values[kept]
        for name, values in tables["fingerprints"].items()
    }
    (tmp_path / "without").mkdir()
    assert report_of(tmp_path / "without", tables).violations == []


def test_fingerprints_are_of_announced_versions_once_each_and_of_what_was_loaded(tmp_path):
    twice = fingerprinted()
    append(twice, "fingerprints", weight_version=1, tensor="norm", dtype="bfloat16", shape=[8], hash=1)
    assert ("fingerprint-twice", None, None) in found(report_of(tmp_path, twice))
    (tmp_path / "later").mkdir()
    later = fingerprinted()
    later["fingerprints"]["weight_version"] += 1
    kinds = {check for check, *_ in found(report_of(tmp_path / "later", later))}
    assert {"fingerprint-of-no-version", "fingerprint-baseline"} <= kinds


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


def test_lost_rows_excuse_what_they_explain_and_nothing_else(tmp_path):
    batches = [make_tables(3, 8, first_request=3 * n, first_step=8 * n, engine=n == 0) for n in range(3)]
    report = examine(open_trace(write_spool(tmp_path / "spool", batches, skip={2})))
    assert report.violations == [] and report.exit_code == 3
    assert {"step-hole"} <= {f.check.id for f in report.excused}
    batches[2]["tokens"]["rollout_logprob"][0] = 1.0
    report = examine(open_trace(write_spool(tmp_path / "other", batches, skip={2})))
    assert {f.check.id for f in report.violations} == {"logprob-positive"} and report.exit_code == 1


def test_lost_rows_of_one_table_excuse_the_checks_that_need_it_beside_others(tmp_path):
    tables = asking()
    drop(tables, "tokens", at(tables, "tokens", request=1, position=12))
    loss = {"engine_id": ENGINE_ID, "from_seq": 2, "to_seq": 2, "reason": "no daemon", "rows": {"tokens": 1}}
    report = report_of(tmp_path, tables, last=False, extra_losses=[loss])
    assert {f.check.id for f in report.excused} == {"finish-count", "row-without-token"}
    assert report.violations == [] and report.exit_code == 3


def test_damaged_bytes_of_an_unknown_engine_may_have_held_rows_of_any(tmp_path):
    tables = asking()
    drop(tables, "steps", 3)
    (segment,) = segment_paths(write_spool(tmp_path / "spool", [tables]))
    with open(segment, "ab") as file:
        file.write(b"what a crash left")
    report = examine(open_trace(tmp_path / "spool"))
    assert [(loss.engine, loss.rows) for loss in report.losses] == [(None, {})]
    assert report.violations == [] and "step-hole" in {f.check.id for f in report.excused}


def test_counters_are_conserved(tmp_path):
    write_trace(tmp_path / "t.arrow", [asking()])
    trace = open_trace(tmp_path / "t.arrow")
    (tally,) = trace.tallies.values()
    assert conserved(tally, trace.all_losses()) == []
    (wrong,) = conserved(tally, [Loss(0, 1, 1, "buffer full", {"tokens": 5})])
    assert wrong.examples[0].text == "tokens: produced 16, stored 16, lost 5"


def test_more_rows_than_were_produced_are_a_violation(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        produced = {**count_rows(asking()), "tokens": 15}
        writer.append(to_record_batch(asking(), 0), BatchMeta(0, ENGINE_ID, 1, produced, {}, last=True))
    assert found(examine(open_trace(tmp_path / "spool"))) == {("rows-conserved", None, None)}


def test_rows_that_a_running_engine_counts_and_did_not_send_are_lost_and_no_violation(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        produced = {**count_rows(asking()), "topk": 7}
        writer.append(to_record_batch(asking(), 0), BatchMeta(0, ENGINE_ID, 1, produced))
        writer.sync()
        report = examine(open_trace(tmp_path / "spool"))
    assert [str(loss) for loss in report.losses] == ["engine 0: topk 7 (counted as produced, in no batch)"]
    assert report.violations == [] and report.exit_code == 3


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


def view_of(tables):
    """What the clients of these tables received."""
    tokens = tables["tokens"]
    for number, name in enumerate(tables["requests"]["external_id"]):
        own = np.flatnonzero((tokens["request"] == number) & (tokens["flags"] == ACCEPTED))
        yield {
            "request_id": name,
            "index": 0,
            "prompt_token_ids": tables["requests"]["prompt_token_ids"][number].tolist(),
            "token_ids": tokens["token_id"][own].tolist(),
            "logprobs": [float(v) for v in tokens["rollout_logprob"][own]],
            "finish_reason": "length",
        }


def nearly(value):
    return float(np.nextafter(np.float32(value), np.float32(0)))


CLIENTS = [
    ("client-logprobs", lambda v: {"logprobs": [*v["logprobs"][:3], nearly(v["logprobs"][3]), *v["logprobs"][4:]]}),
    ("client-logprobs", lambda v: {"logprobs": v["logprobs"][:7]}),
    ("client-tokens", lambda v: {"token_ids": [1, *v["token_ids"][1:]]}),
    ("client-tokens", lambda v: {"token_ids": v["token_ids"][:7], "logprobs": None}),
    ("client-prompt", lambda v: {"prompt_token_ids": [1]}),
    ("client-finish", lambda v: {"finish_reason": "stop"}),
    ("client-unknown", lambda v: {"request_id": "nobody"}),
    ("client-value", lambda v: {"logprobs": None}),
    ("client-value", lambda v: {"logprobs": [*v["logprobs"][:7], None]}),
    ("client-value", lambda v: {"token_ids": None}),
    ("client-value", lambda v: {"token_ids": [*v["token_ids"][:7], None]}),
    ("client-value", lambda v: {"token_ids": [*v["token_ids"][:7], 3.0]}),
    ("client-value", lambda v: {"prompt_token_ids": "Hi"}),
    ("client-value", lambda v: {"index": None}),
    ("client-value", lambda v: {"request_id": None}),
    ("client-value", lambda v: {"finish_reason": 1}),
    ("client-index", lambda v: {"index": 1}),
]
IN_TESTS_OF_THEIR_OWN = {
    *{"rows-conserved", "logprob-not-the-engines", "hit-without-cache", "version-order", "label-of-no-version"},
    *{"client-incomplete", "client-duplicate", "client-order"},
    *{"fingerprint-of-no-version", "fingerprint-twice", "fingerprint-baseline", "num-changed"},
    # in test_doctor_prompts
    *{"prompt-logprob-id", "prompt-logprob-missing", "prompt-logprob-value", "prompt-alternatives"},
    *{"client-prompt-logprobs"},
}


def test_the_clients_view_is_compared_bit_for_bit(tmp_path):
    tables = asking()
    view = list(view_of(tables))
    report = report_of(tmp_path, tables, view)
    assert report.violations == [] and report.completions == 2
    engines = list(read_engines(open_trace(tmp_path / "t.arrow")))
    for check, change in CLIENTS:
        assert [f.check.id for f in client_view(engines, [view[0], {**view[1], **change(view[1])}]).findings] == [check]


@pytest.mark.parametrize("told", ["abort", None])
def test_the_client_may_have_fewer_tokens_of_a_request_that_it_aborted(tmp_path, told):
    tables = asking()
    view = list(view_of(tables))
    tables["finishes"]["reason"][0] = "abort"
    view[0].update(token_ids=view[0]["token_ids"][:5], logprobs=view[0]["logprobs"][:5], finish_reason=told)
    assert report_of(tmp_path, tables, view).violations == []
    view[0].update(
        token_ids=[*tables["tokens"]["token_id"][tables["tokens"]["request"] == 0].tolist(), 9], logprobs=None
    )
    (tmp_path / "more").mkdir()
    assert found(report_of(tmp_path / "more", tables, view)) == {("client-tokens", 0, None)}


def client_findings(path, tables, view):
    (path / "t.arrow").unlink(missing_ok=True)
    return {(f.check.id, e.text) for f in report_of(path, tables, view).violations for e in f.examples}


def test_another_prompt_is_named_with_position_and_both_ids(tmp_path):
    tables = asking()
    view = list(view_of(tables))
    ids = view[0]["prompt_token_ids"]
    view[0]["prompt_token_ids"] = [*ids[:2], 7, *ids[3:]]
    view[1]["prompt_token_ids"] = view[1]["prompt_token_ids"][:4]
    last = tables["requests"]["prompt_token_ids"][1][4]
    assert client_findings(tmp_path, tables, view) == {
        (
            "client-prompt",
            f"completion 0 of request 'request-0': prompt token 2 is 7 for the client, {ids[2]} in the trace",
        ),
        (
            "client-prompt",
            f"completion 0 of request 'request-1': prompt token 4 is not there for the client, {last} in the trace; "
            "4 tokens against 5",
        ),
    }


def siblings():
    """Two requests that are the two completions of one."""
    tables = asking()
    tables["requests"]["external_id"] = ["many", "many"]
    tables["requests"]["index"] = np.arange(2, dtype="u4")
    tables["requests"]["prompt_token_ids"] = [tables["requests"]["prompt_token_ids"][0]] * 2
    return tables, [{**row, "index": index, "request": 0} for index, row in enumerate(view_of(tables))]


def test_each_completion_of_a_request_is_the_one_that_it_says(tmp_path):
    tables, view = siblings()
    assert client_findings(tmp_path, tables, view) == set()
    assert client_findings(tmp_path, tables, [{**view[0], "index": 1}, {**view[1], "index": 0}]) == {
        ("client-index", "completion 1 of request 'many': it is completion 0 in the trace"),
        ("client-index", "completion 0 of request 'many': it is completion 1 in the trace"),
        ("client-order", "line 2: completion 0 of prompt 0 stands after completion 1 of prompt 0"),
    }
    other = {**view[0], "index": 2, "token_ids": [1] * 8}
    assert client_findings(tmp_path, tables, [*view, other]) == {
        ("client-index", "completion 2 of request 'many': the trace has completions 0, 1 of this request")
    }


def test_a_completion_that_a_client_left_out_is_named(tmp_path):
    tables, view = siblings()
    left_out = "completion 0 of request 'many': the client has completion 1 only"
    assert client_findings(tmp_path, tables, view[1:]) == {("client-incomplete", left_out)}
    tables["finishes"]["reason"] = ["abort", "length"]
    assert client_findings(tmp_path, tables, view[1:]) == set()


def test_a_line_that_is_there_twice_is_named_and_a_name_may_be_used_twice(tmp_path):
    tables = asking()
    view = list(view_of(tables))
    again = "line 3: completion 0 of request 'request-0' is in line 1 already"
    assert client_findings(tmp_path, tables, [*view, view[0]]) == {("client-duplicate", again)}
    tables["requests"]["external_id"] = ["same", "same"]
    assert client_findings(tmp_path, tables, list(view_of(tables))[::-1]) == set()


def test_lines_that_stand_in_another_order_than_their_prompts_are_named(tmp_path):
    tables = asking()
    view = [{**row, "request": number} for number, row in enumerate(view_of(tables))]
    moved = "line 2: completion 0 of prompt 0 stands after completion 0 of prompt 1"
    assert client_findings(tmp_path, tables, view[::-1]) == {("client-order", moved)}


def test_logprobs_that_the_file_does_not_have_are_said_not_to_be_compared(tmp_path):
    tables = asking()
    view = [{name: value for name, value in row.items() if name != "logprobs"} for row in view_of(tables)]
    report = report_of(tmp_path, tables, view)
    assert report.violations == []
    assert report.not_compared == ["the logprobs of 2 completions, which the file does not have"]


@pytest.fixture
def stopping(tmp_path):
    """A request that reads "w10 w11 ... w17" and ends at w14; the engine was three tokens ahead when it heard of it."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    words.save(str(tmp_path / "tokenizer.json"))
    params = {"temperature": 1.0, "logprobs": 0, "stop": ["w12 w14", "3 w14"]}

    def stopped(kind="v1", folder=tmp_path, reason="abort", **more):
        config = json.dumps({"vllm": {"model_config": {"tokenizer": str(folder), "tokenizer_mode": "auto"}}})
        engine = make_engine(kind=kind, config=config)
        tables = make_tables(1, 8, sampling_params=params | more, engine=engine)
        tables["tokens"]["token_id"] = np.arange(10, 18, dtype="u4")
        tables["finishes"]["reason"][0] = reason
        (seen,) = view_of(tables)
        return tables, {**seen, "finish_reason": "stop", "text": "w10 w11 w12 w1"}

    return stopped


def cut(seen, count, **values):
    return [{**seen, "token_ids": seen["token_ids"][:count], "logprobs": seen["logprobs"][:count], **values}]


@pytest.mark.parametrize("reason", ["abort", "length", "stop"])
def test_of_a_stop_string_the_client_has_the_token_that_completes_it_and_no_other_count(tmp_path, stopping, reason):
    tables, seen = stopping(reason=reason)
    assert client_findings(tmp_path, tables, cut(seen, 5)) == set()
    for count in (0, 3, 4, 6, 7):
        (finding,) = client_findings(tmp_path, tables, cut(seen, count))
        assert finding == (
            "client-tokens",
            f"completion 0 of request 'request-0': the client received {count} tokens, the trace has 8, "
            "and a stop string ends it at 5",
        )


def test_a_stop_string_is_looked_for_as_the_engine_does(tmp_path, stopping):
    shown = {"stop": ["w17 w1", "w13 w14"], "include_stop_str_in_output": True}
    for more in ({"stop": "w14"}, {"min_tokens": 4}, shown):
        tables, seen = stopping(**more)
        assert client_findings(tmp_path, tables, cut(seen, 5)) == set()
    tables, seen = stopping(min_tokens=5)  # what is whole by then is let through
    ((check, text),) = client_findings(tmp_path, tables, cut(seen, 5))
    assert check == "client-tokens" and text.endswith("the trace has 8, and no stop string in them")
    tables, seen = stopping(stop=["w17"], reason="stop")  # a stop token, which is not decoded
    ((check, _),) = client_findings(tmp_path, tables, cut(seen, 7))
    assert check == "client-tokens" and client_findings(tmp_path, tables, cut(seen, 8)) == set()


def test_a_step_of_several_tokens_is_delivered_whole_or_up_to_the_stop_string(tmp_path, stopping):
    tables, seen = stopping()
    tables["tokens"]["engine_step"] = np.array([0, 1, 2, 3, 4, 4, 5, 6], "u4")
    for count in (5, 6):
        assert not [c for c, _ in client_findings(tmp_path, tables, cut(seen, count)) if c.startswith("client")]
    assert "client-tokens" in {check for check, _ in client_findings(tmp_path, tables, cut(seen, 7))}


def test_only_a_stop_string_shortens_what_a_stop_string_may(tmp_path, stopping):
    tables, seen = stopping(reason="length")
    assert {c for c, _ in client_findings(tmp_path, tables, cut(seen, 5, finish_reason="length"))} == {"client-tokens"}
    assert {c for c, _ in client_findings(tmp_path, tables, cut(seen, 8))} == {"client-finish"}
    tables, seen = stopping("v0", reason="stop")  # V0 stops in the engine
    assert client_findings(tmp_path, tables, cut(seen, 8)) == set()
    assert {c for c, _ in client_findings(tmp_path, tables, cut(seen, 5))} == {"client-tokens"}
    tables, seen = stopping(stop=[])
    assert {c for c, _ in client_findings(tmp_path, tables, cut(seen, 8))} == {"client-finish"}


def test_without_the_engines_tokenizer_the_end_is_said_not_to_be_compared(tmp_path, stopping):
    tables, seen = stopping(folder=tmp_path / "gone")
    report = report_of(tmp_path, tables, cut(seen, 3))
    assert report.violations == []
    told = f"where a stop string ended 1 completion, which takes the engine's tokenizer: {tmp_path}/gone/tokenizer.json"
    assert report.not_compared == [told]
    assert any(told in line for line in to_lines({**report.to_dict(), "live": None}, []))


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
