"""``tracekit doctor --live``: what the three engines say of themselves, against traces that agree and that do not."""

import contextlib
import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.doctored import steer
from helpers.factories import make_engine, make_tables, make_weights, write_spool, write_trace
from tracekit.audit.live.compare import AGREES, EXCUSED, VIOLATED, compare
from tracekit.audit.live.counters import (
    CACHED,
    GENERATION,
    HITS,
    IN_FLIGHT,
    PREEMPTIONS,
    PROMPT,
    QUERIES,
    read_counters,
)
from tracekit.audit.live.exposition import Sample, parse
from tracekit.audit.live.watch import watch
from tracekit.cli.doctor import command
from tracekit.errors import MetricsError, UsageError
from tracekit.tables import DISCARDED, NEW, PREEMPTED, PREFILL, RESUMED
from tracekit.trace.reader import open_trace
from tracekit.trace.spool import SpoolWriter

METRICS = Path(__file__).parent / "metrics"  # of real engines that served 12 requests
V1_CONFIG = json.dumps({"vllm": {"cache_config": {"enable_prefix_caching": True}, "kv_transfer_config": None}})
SERVED = {GENERATION: 321, PROMPT: 1113, CACHED: 384, PREEMPTIONS: 1, QUERIES: 2313, HITS: 384, IN_FLIGHT: 0}
FINISHED = {"finished: stop": 1, "finished: length": 10}
NEVER = {"finished: abort": 0, "finished: error": 0, "finished: repetition": 0}
SERVED_BY = {
    "v0": ("", {GENERATION: 328, PROMPT: 1242, PREEMPTIONS: 1, IN_FLIGHT: 0, **FINISHED}),
    "v1": ("0", {**SERVED, **FINISHED, **NEVER}),
    "latest": ("0", {**SERVED, QUERIES: 1113, **FINISHED, **NEVER}),
}


def test_the_text_format_is_read():
    text = """# HELP a_total What for.
# TYPE a_total counter
a_total{name="x\\\\y \\"z\\"\\n", other="{,}"} 1.5e+06
b 3 1395066363000
c_bucket{le="+Inf"} +Inf 1395066363 # {trace_id="1"} 0.5

d{} NaN
# EOF
"""
    first, second, third, last = parse(text)
    assert first == Sample("a_total", {"name": 'x\\y "z"\n', "other": "{,}"}, 1.5e6)
    assert second == Sample("b", {}, 3.0)
    assert (third.name, third.labels, third.value) == ("c_bucket", {"le": "+Inf"}, float("inf"))
    assert last.name == "d" and np.isnan(last.value)


@pytest.mark.parametrize("line", ["<html>", "a b", "a{x=1} 2", 'a{x="1" 2', "a"])
def test_what_is_no_metric_is_refused(line):
    with pytest.raises(MetricsError, match="line 2 is not a metric in the text format of Prometheus"):
        list(parse(f"fine 1\n{line}\n"))


@pytest.mark.parametrize("engine", SERVED_BY)
def test_counters_of_each_engine_are_found_by_name(engine):
    label, served = SERVED_BY[engine]
    assert read_counters((METRICS / f"{engine}.txt").read_text()) == {label: served}


def test_metrics_of_something_else_are_refused():
    with pytest.raises(MetricsError, match="no counters of vLLM"):
        read_counters('python_info{version="3.11"} 1\n')
    with pytest.raises(MetricsError, match="which counts nothing"):
        read_counters("vllm:generation_tokens_total NaN\n")


def metrics_of(engine, counters, label="0"):
    """The recorded text of an engine, with other values."""
    text = (METRICS / f"{engine}.txt").read_text().replace('engine="0"', f'engine="{label}"')
    names = {
        "generation_tokens_total": GENERATION,
        "prompt_tokens_total": PROMPT,
        "prompt_tokens_cached_total": CACHED,
        "num_preemptions_total": PREEMPTIONS,
        "prefix_cache_queries_total": QUERIES,
        "prefix_cache_hits_total": HITS,
        "num_requests_running": IN_FLIGHT,
        **{f'request_success_total(?=.*"{why}")': f"finished: {why}" for why in ("stop", "length", "abort")},
    }
    for name, quantity in names.items():
        if quantity in counters:
            text, count = re.subn(rf"(?m)^(vllm:{name}\{{.*\}}) \S+$", rf"\g<1> {counters[quantity]}.0", text)
            assert count == 1 or engine == "v0", name
    return text


# three requests of 8 tokens after prompts of 5
PLAIN = {GENERATION: 24, PROMPT: 15, PREEMPTIONS: 0, IN_FLIGHT: 0, "finished: stop": 0, "finished: length": 3}
WITH_CACHE = {**PLAIN, CACHED: 0, QUERIES: 15, HITS: 0}


def tables_of(kind="v1", **engine):
    return make_tables(engine=make_engine(kind=kind, config=V1_CONFIG, **engine))


def report_of(folder, tables, counters, engine="v1", **spool):
    folder.mkdir(exist_ok=True)
    trace = open_trace(write_spool(folder / "spool", [tables], **spool))
    text = read_counters(metrics_of(engine, counters))
    (report,) = compare(trace, text, text)
    return report


def states(report):
    return {c.name: c.state for c in report.compared if c.state != AGREES}


@pytest.mark.parametrize(("engine", "kind", "counters"), [("v0", "v0", PLAIN), ("v1", "v1", WITH_CACHE)])
def test_a_trace_that_agrees_and_any_counter_that_does_not(tmp_path, engine, kind, counters):
    tables = tables_of(kind)
    report = report_of(tmp_path / "sound", tables, counters, engine)
    assert not states(report) and not report.moving
    assert {c.name for c in report.compared} >= {q for q in counters if counters[q] or not q.startswith("finished")}
    for name in counters:
        if counters[name] == 0 and engine == "v0" and name.startswith("finished"):
            continue
        for by in {-1, 1} if counters[name] else {1}:
            wrong = report_of(tmp_path / f"{name}{by}", tables, {**counters, name: counters[name] + by}, engine)
            assert states(wrong) == {name: VIOLATED}
            (violation,) = wrong.violations
            assert (violation.low, violation.before, violation.after) == (counters[name], *[counters[name] + by] * 2)


def test_what_an_engine_does_not_offer_is_listed(tmp_path):
    report = report_of(tmp_path, tables_of("v0"), PLAIN, "v0")
    assert set(report.not_compared) == {CACHED, QUERIES, HITS} and not report.label
    assert set(report.not_compared.values()) == {"these metrics do not offer it"}


def test_tokens_of_aborted_requests_and_no_others_may_be_missing(tmp_path):
    tables = tables_of()
    tables["finishes"]["reason"] = ["length", "abort", "length"]
    delivered = {**WITH_CACHE, "finished: length": 2}
    for count, prompt, expected in [(24, 15, set()), (16, 10, set()), (15, 10, {GENERATION}), (20, 9, {PROMPT})]:
        counters = {**delivered, GENERATION: count, PROMPT: prompt}
        assert set(states(report_of(tmp_path / f"{count}", tables, counters))) == expected
    # an abort by the engine is counted as one, a stop string that the client finds as a stop if it was asked for
    assert not states(report_of(tmp_path / "abort", tables, {**delivered, "finished: abort": 1}))
    stopped = {**delivered, "finished: stop": 1}
    assert set(states(report_of(tmp_path / "stop", tables, stopped))) == {"finished: stop"}
    tables["requests"]["sampling_params"] = ['{"stop": ["x"]}'] * 3
    assert not states(report_of(tmp_path / "asked", tables, stopped))
    # found in the last token that the request might have: the engine says length
    assert not states(report_of(tmp_path / "end", tables, {**delivered, "finished: length": 1, "finished: stop": 2}))
    tables["finishes"]["reason"] = ["length"] * 3
    assert set(states(report_of(tmp_path / "whole", tables, {**WITH_CACHE, GENERATION: 23}))) == {GENERATION}


def test_discarded_tokens_are_not_counted(tmp_path):
    tables = tables_of()
    tables["tokens"]["flags"][-1] = DISCARDED
    assert not states(report_of(tmp_path, tables, {**WITH_CACHE, GENERATION: 23}))


def preempted(kind):
    """Request 0 is thrown out in step 3 and comes back in step 4, its 8 tokens computed again."""
    tables = tables_of(kind)
    scheduled = tables["scheduled"]
    (out,) = np.flatnonzero((scheduled["engine_step"] == 3) & (scheduled["request"] == 0))
    (back,) = np.flatnonzero((scheduled["engine_step"] == 4) & (scheduled["request"] == 0))
    scheduled["flags"][out], scheduled["flags"][back] = PREEMPTED, RESUMED | PREFILL
    scheduled["num_computed"][back], scheduled["num_tokens"][back] = 0, 8
    return tables


def test_a_preemption_is_counted_by_v0_at_once_and_by_v1_with_the_next_token(tmp_path):
    assert not states(report_of(tmp_path / "v0", preempted("v0"), {**PLAIN, PREEMPTIONS: 1, PROMPT: 23}, "v0"))
    once = {**WITH_CACHE, PREEMPTIONS: 1}
    assert not states(report_of(tmp_path / "v1", preempted("v1"), once))
    again = preempted("v1")
    flags = again["scheduled"]["flags"]
    flags[flags == (RESUMED | PREFILL)] = NEW | PREFILL  # as 0.32's second runner says it
    assert not states(report_of(tmp_path / "new", again, once))
    silent = preempted("v1")
    silent["tokens"]["flags"][(silent["tokens"]["request"] == 0) & (silent["tokens"]["engine_step"] >= 4)] = DISCARDED
    assert not states(report_of(tmp_path / "silent", silent, {**WITH_CACHE, GENERATION: 20}))


def test_prefix_hits_are_compared_and_more_lookups_are_fine_where_requests_waited(tmp_path):
    tables = tables_of()
    first = (tables["scheduled"]["engine_step"] == 0) & (tables["scheduled"]["request"] == 1)
    tables["scheduled"]["num_computed"][first] = 4
    hit = {**WITH_CACHE, CACHED: 4, HITS: 4}
    assert not states(report_of(tmp_path / "hit", tables, hit))
    assert set(states(report_of(tmp_path / "none", tables, WITH_CACHE))) == {CACHED, HITS}
    more = {**hit, QUERIES: 25, HITS: 8}
    assert set(states(report_of(tmp_path / "more", tables, more))) == {QUERIES, HITS}
    tables["steps"]["num_waiting"][2] = 1
    assert not states(report_of(tmp_path / "waited", tables, more))
    assert set(states(report_of(tmp_path / "fewer", tables, {**more, QUERIES: 14}))) == {QUERIES}
    off = make_tables(engine=make_engine(config=V1_CONFIG.replace("true", "false")))
    assert report_of(tmp_path / "off", off, WITH_CACHE).not_compared[HITS] == "prefix caching is off"


@pytest.mark.parametrize(("table", "state"), [("tokens", EXCUSED), ("weights", VIOLATED)])
def test_rows_known_to_be_lost_explain_a_difference_in_what_they_are_counted_from(tmp_path, table, state):
    tables = tables_of()
    more = {table: {**tables, "weights": make_weights(4)}[table]}
    folder = tmp_path / "spool"
    write_spool(folder, [tables, more, make_tables(0, 0, engine=False)], skip={2})
    counters = read_counters(metrics_of("v1", {**WITH_CACHE, GENERATION: 48}))
    (report,) = compare(open_trace(folder), counters, counters)
    assert states(report) == {GENERATION: state}


def two_engines(folder, ranks):
    for number, rank in enumerate(ranks):
        tables = tables_of(rank=rank, engine_id=f"{number}" * 32)
        write_spool(folder, [tables], engine=number, engine_id=f"{number}" * 32)
    return open_trace(folder)


def test_engines_are_told_apart_by_their_rank_or_by_the_caller(tmp_path):
    same, ranks = two_engines(tmp_path / "same", (0, 0)), two_engines(tmp_path / "ranks", (0, 1))
    text = metrics_of("v1", WITH_CACHE, label="0")
    one, both = read_counters(text), read_counters(text + metrics_of("v1", WITH_CACHE, label="1"))
    with pytest.raises(UsageError, match="engine 0 and the trace has engines 0, 1: say which one"):
        compare(same, one, one)
    (report,) = compare(same, one, one, 1)
    assert (report.engine, report.label) == (1, "0") and not states(report)
    assert [(r.engine, r.label) for r in compare(ranks, both, both)] == [(0, "0"), (1, "1")]
    assert [(r.engine, r.label) for r in compare(ranks, both, both, 1)] == [(1, "1")]
    with pytest.raises(UsageError, match="the trace has no engine 7, its engines are: 0, 1"):
        compare(ranks, both, both, 7)
    with SpoolWriter(tmp_path / "empty"):
        pass
    with pytest.raises(UsageError, match="the trace has no engine yet"):
        compare(open_trace(tmp_path / "empty"), one, one)


def grown(folder, steps):
    """A spool that is being written, with the first steps of the three requests."""
    tables = make_tables(3, steps, finished=False, engine=make_engine(config=V1_CONFIG))
    return open_trace(write_spool(folder / f"spool-{steps}", [tables], last=False))


def test_a_trace_may_lag_behind_counters_that_move(tmp_path):
    def counters(tokens):
        return metrics_of("v1", {**WITH_CACHE, GENERATION: tokens, IN_FLIGHT: 3, "finished: length": 0})

    traces = [grown(tmp_path, steps) for steps in (2, 4, 5)]
    for trace in traces:
        trace.live = True
    texts, opened = iter([counters(n) for n in (12, 12, 12, 18)]), iter(traces)
    report = watch("x", lambda: next(texts), lambda: next(opened))
    # the first two attempts are too early: 6 tokens where 12 were counted, and then 12 and 12
    assert report.exit_code == 0 and report.being_written and next(opened) is traces[2]
    (engine,) = report.engines
    assert (engine.compared[0].low, engine.compared[0].before, engine.compared[0].after) == (12, 12, 12)
    texts, opened = iter([counters(n) for n in (12, 18)]), iter(traces[2:])
    (engine,) = watch("x", lambda: next(texts), lambda: next(opened)).engines
    assert engine.moving and (engine.compared[0].low, engine.compared[0].after) == (15, 18)
    assert engine.not_compared[IN_FLIGHT] == "requests come and go while the trace is read"
    # it never gets there
    report = watch("x", lambda: counters(16), lambda: traces[2], timeout_secs=0.5)
    assert report.exit_code == 1 and [v.name for v in report.engines[0].violations] == [GENERATION]
    texts = iter([counters(n) for n in (18, 12)])
    with pytest.raises(MetricsError, match="generation tokens went back: the server was started anew"):
        watch("x", lambda: next(texts), lambda: traces[2])


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.text.encode()
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def endpoint(text):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.text = text
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def doctor(*argv):
    return CliRunner().invoke(command, [str(a) for a in argv], standalone_mode=False)


def test_the_command_reads_a_url_or_a_file_and_says_what_was_compared(tmp_path):
    path = tmp_path / "t.arrow"
    write_trace(path, [tables_of()])
    with endpoint(metrics_of("v1", WITH_CACHE)) as url:
        done = doctor(path, "--live", f"{url}/metrics")
        assert done.return_value == 0, done.output
        assert "(the trace is not being written any more)" in done.output
        assert 'engine 0, engine="0" in the metrics' in done.output
        assert "generation tokens       trace 24              counter 24" in done.output
        with pytest.raises(MetricsError, match="answer with status 404"):
            raise doctor(path, "--live", f"{url}/nothing").exception
    file = tmp_path / "metrics.txt"
    file.write_text(metrics_of("v1", {**WITH_CACHE, GENERATION: 25}))
    done = doctor(path, "--live", file)
    assert done.return_value == 1 and "! generation tokens" in done.output and "VIOLATED" in done.output
    facts = json.loads(doctor(path, "--live", file, "--json").output)["live"]
    assert facts["engines"][0]["compared"][0] == {
        **{"name": GENERATION, "low": 24, "high": 24, "before": 25, "after": 25},
        **{"state": "violated", "why": ""},
    }
    assert json.loads(doctor(path, "--json").output)["live"] is None


def test_the_command_says_in_a_sentence_what_is_wrong(tmp_path):
    path = tmp_path / "t.arrow"
    write_trace(path, [tables_of()])
    (tmp_path / "page.html").write_text("<html>\n")
    for live, words in [
        ("http://127.0.0.1:1/metrics", "the metrics do not answer"),
        (tmp_path / "none.txt", "the metrics cannot be read"),
        (tmp_path / "page.html", "is not a metric"),
        (path, "not text"),
        ("ftp://somewhere", "an http:// URL or a file"),
    ]:
        with pytest.raises(MetricsError, match=words):
            raise doctor(path, "--live", live).exception
    with pytest.raises(UsageError, match="--daemon goes with --live"):
        raise doctor(path, "--daemon", "unix:/nowhere").exception


@pytest.mark.parametrize("how", ["attached", "detached", "sampled"])
def test_of_a_part_counters_are_at_least_what_the_trace_holds(tmp_path, how):
    config = {**json.loads(V1_CONFIG), "recorder": {"sample": 0.5 if how == "sampled" else 1}}
    tables = make_tables(engine=make_engine(kind="v1", config=json.dumps(config)))
    if names := {"attached": ["attach"], "detached": ["attach", "detach"]}.get(how):
        steer(tables, *names)
    before = {name: count + 100 for name, count in WITH_CACHE.items() if name != IN_FLIGHT}
    more = report_of(tmp_path / "more", tables, {**before, IN_FLIGHT: 0})
    assert not states(more) and all(c.high is None and c.why for c in more.compared if c.name != IN_FLIGHT)
    assert (IN_FLIGHT in more.not_compared) == (how != "attached")
    fewer = report_of(tmp_path / "fewer", tables, {**before, GENERATION: 23, IN_FLIGHT: 0})
    assert states(fewer) == {GENERATION: VIOLATED}
    stray = report_of(tmp_path / "stray", tables, {**before, IN_FLIGHT: 1})
    assert states(stray) == ({IN_FLIGHT: VIOLATED} if how == "attached" else {})
