"""``tracekit doctor`` on prompt logprobs: sound ones, and each rule broken once, against the trace and the client."""

import numpy as np
import pytest

from helpers.doctored import put
from helpers.factories import make_engine, make_prompt_logprobs, make_prompt_topk, make_tables, write_trace
from tracekit.audit.doctor.client import client_view
from tracekit.audit.doctor.examine import examine
from tracekit.audit.rows import read_engines
from tracekit.trace.reader import open_trace


def scored(k=2, n=2, **engine):
    """Prompts of five tokens whose logprobs, and k alternatives of each, were asked for."""
    asked = {"temperature": 0.7, "prompt_logprobs": k}
    tables = make_tables(n, 3, sampling_params=asked, logprobs=False, engine=make_engine(**engine))
    tables["prompt_logprobs"] = make_prompt_logprobs(tables)
    if k:
        tables["prompt_topk"] = make_prompt_topk(tables["prompt_logprobs"], k)
    return tables


def broken(path, tables):
    write_trace(path / "t.arrow", [tables])
    report = examine(open_trace(path / "t.arrow"))
    return {(f.check.id, e.request) for f in report.violations for e in f.examples}


def drop(tables, name, index):
    tables[name] = {column: np.delete(values, index) for column, values in tables[name].items()}


def again(tables, name, index):
    tables[name] = {column: np.append(values, values[index]) for column, values in tables[name].items()}


@pytest.mark.parametrize("engine", [{}, {"kind": "v0", "logprobs_mode": "processed_logprobs"}])
@pytest.mark.parametrize("k", [0, 2])
def test_sound_ones_are_sound(tmp_path, k, engine):
    assert broken(tmp_path, scored(k, **engine)) == set()


HARMS = [
    ("prompt-logprob-id", lambda t: put(t, "prompt_logprobs", 1, token_id=1001)),
    ("prompt-logprob-id", lambda t: put(t, "prompt_logprobs", 3, position=5)),
    ("prompt-logprob-missing", lambda t: drop(t, "prompt_logprobs", 0)),
    ("prompt-logprob-missing", lambda t: again(t, "prompt_logprobs", 2)),
    ("prompt-logprob-value", lambda t: put(t, "prompt_logprobs", 0, logprob=np.nan)),
    ("prompt-logprob-value", lambda t: put(t, "prompt_logprobs", 0, logprob=0.5)),
    ("prompt-logprob-value", lambda t: put(t, "prompt_logprobs", 0, logprob=-np.inf)),
    ("prompt-logprob-value", lambda t: put(t, "prompt_logprobs", 0, rank=0)),
    ("prompt-logprob-value", lambda t: put(t, "prompt_topk", 0, logprob=np.nan)),
    ("prompt-alternatives", lambda t: put(t, "prompt_topk", 0, rank=3)),
    ("prompt-alternatives", lambda t: put(t, "prompt_topk", 0, rank=2)),
    ("prompt-alternatives", lambda t: drop(t, "prompt_topk", 0)),
    ("prompt-alternatives", lambda t: put(t, "prompt_topk", 1, logprob=-0.5)),
    ("unknown-request", lambda t: again(t, "prompt_topk", 0) or put(t, "prompt_topk", -1, request=9)),
    ("unknown-request", lambda t: again(t, "prompt_logprobs", 0) or put(t, "prompt_logprobs", -1, request=9)),
]


@pytest.mark.parametrize(("check", "harm"), HARMS, ids=[f"{n}-{harm[0]}" for n, harm in enumerate(HARMS)])
def test_each_rule_is_broken_by_its_harm(tmp_path, check, harm):
    tables = scored()
    harm(tables)
    found = broken(tmp_path, tables)
    assert (check, 9 if check == "unknown-request" else 0) in found
    assert not {request for _, request in found} - {0, 9}


def test_v0_gives_a_token_that_it_cuts_off_no_mass(tmp_path):
    tables = scored(0, kind="v0", logprobs_mode="processed_logprobs")
    put(tables, "prompt_logprobs", 0, logprob=-np.inf)
    assert broken(tmp_path, tables) == set()


def test_logits_may_be_any_number(tmp_path):
    tables = scored(0, logprobs_mode="raw_logits")
    put(tables, "prompt_logprobs", 0, logprob=3.5)
    assert broken(tmp_path, tables) == set()


def test_a_prompt_that_was_aborted_and_a_recorder_that_took_none_are_not_missing(tmp_path):
    tables = scored(0)
    drop(tables, "prompt_logprobs", np.arange(4))
    tables["finishes"]["reason"][0] = "abort"
    assert broken(tmp_path, tables) == set()
    tables = scored(0)
    del tables["prompt_logprobs"]
    (tmp_path / "none").mkdir()
    assert broken(tmp_path / "none", tables) == set()


def views(tables):
    for number, name in enumerate(tables["requests"]["external_id"]):
        own = tables["prompt_logprobs"]["request"] == number
        yield {
            "request_id": name,
            "index": int(tables["requests"]["index"][number]),
            "prompt_token_ids": tables["requests"]["prompt_token_ids"][number].tolist(),
            "token_ids": tables["tokens"]["token_id"][tables["tokens"]["request"] == number].tolist(),
            "logprobs": None,
            "prompt_logprobs": [None, *tables["prompt_logprobs"]["logprob"][own].tolist()],
            "finish_reason": "length",
        }


def told(path, tables, view):
    write_trace(path / "t.arrow", [tables])
    findings = client_view(list(read_engines(open_trace(path / "t.arrow"))), view).findings
    return {(found.check.id, one.request, one.text.partition(": ")[2]) for found in findings for one in found.examples}


def test_the_clients_list_is_compared_bit_for_bit(tmp_path):
    tables = scored(0)
    view = list(views(tables))
    assert told(tmp_path, tables, view) == set()
    values = view[0]["prompt_logprobs"]
    cases = {
        "the logprob of prompt token 3 is not the client's, bit for bit": [*values[:3], values[3] - 1e-6, values[4]],
        "the client received 3 prompt logprobs, the trace has 4": values[:4],
    }
    for n, (text, changed) in enumerate(cases.items()):
        (tmp_path / str(n)).mkdir()
        view[0]["prompt_logprobs"] = changed
        assert told(tmp_path / str(n), tables, view) == {("client-prompt-logprobs", 0, text)}
    view[0]["prompt_logprobs"] = [None, "x", *values[2:]]
    (tmp_path / "kind").mkdir()
    assert {check for check, *_ in told(tmp_path / "kind", tables, view)} == {"client-value"}


def test_of_n_completions_the_list_is_that_of_any_one(tmp_path):
    tables = scored(0, n=3)
    requests = tables["requests"]
    requests["external_id"], requests["parent_id"] = ["a", "a", "b"], ["a", "a", None]
    requests["index"] = np.array([0, 1, 0], "u4")
    requests["prompt_token_ids"][1] = requests["prompt_token_ids"][0]
    tables["prompt_logprobs"]["token_id"][4:8] = tables["prompt_logprobs"]["token_id"][:4]
    view = list(views(tables))
    view[0]["prompt_logprobs"] = view[1]["prompt_logprobs"]
    assert told(tmp_path, tables, view) == set()
    view[0]["prompt_logprobs"] = view[2]["prompt_logprobs"]  # another prompt's
    (tmp_path / "other").mkdir()
    assert {check for check, *_ in told(tmp_path / "other", tables, view)} == {"client-prompt-logprobs"}
