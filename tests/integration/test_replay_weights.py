"""``tracekit replay`` and its weights: which it takes for each version, from where, and which it does not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.factories import make_engine, make_weights, write_spool, write_trace
from helpers.replayed import NUM_REQUESTS, drawn, refused
from helpers.stores import ENVIRON, StoreServer
from helpers.tiny_models import write_model
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import whole


def test_a_missing_model_folder_is_one_sentence(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables()])
    assert "no model folder" in refused(tracekit, tmp_path / "t.arrow", "--model", tmp_path / "nothing")


def test_unknown_weight_versions_are_named_and_the_same_folder_settles_it(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    tables["tokens"]["weight_version"][-NUM_REQUESTS * 4 :] = 1  # the last four steps
    write_trace(tmp_path / "t.arrow", [tables])
    err = refused(tracekit, tmp_path / "t.arrow", "--model", recorded.model)
    assert "weight version 1" in err and "--weights 1=" in err
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--weights", f"1={recorded.model}")
    assert code == 0
    assert "KV" not in out  # the same weights computed all of it


def test_versions_whose_weights_did_not_move_need_no_weights(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    tables["tokens"]["weight_version"][-NUM_REQUESTS * 8 : -NUM_REQUESTS * 4] = 1
    tables["tokens"]["weight_version"][-NUM_REQUESTS * 4 :] = 2
    tables["weights"] = make_weights(8, 12, lora=[None, "a"])
    tables["weights"]["num_changed"][0] = 0
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert code == 0
    for version in (1, 2):
        assert f"weight version {version} was scored with the weights of 0" in out


def test_each_token_is_scored_under_the_weights_that_sampled_it(tmp_path, recorded, tracekit):
    other = write_model(tmp_path / "other", "llama", seed=9)
    before = np.concatenate([recorded.prompts, recorded.tokens[:, :-4]], axis=1)
    mixed = replace(recorded, tokens=np.concatenate([recorded.tokens[:, :-4], drawn(other, before, 4)], axis=1))
    scores = Scorer.load(other, dtype="float32").score([whole(s) for s in mixed.sequences()], max_batch_tokens=64)
    raw = recorded.raw.copy()
    raw[:, -4:] = np.stack([s.readings[0].raw_logprob for s in scores])[:, -4:]
    tables = mixed.tables(raw, mode="raw_logprobs")
    tables["tokens"]["weight_version"][-NUM_REQUESTS * 4 :] = 1
    del tables["scheduled"]  # what became of the KV is not told
    write_trace(tmp_path / "t.arrow", [tables])
    args = (tmp_path / "t.arrow", "--model", recorded.model, "--expect", "raw", "--json")
    code, out, _ = tracekit(*args, "--weights", f"1={other}")
    assert code == 0, json.loads(out)["verdict"]["cause"]
    limits = {limit["code"]: limit["numbers"] for limit in json.loads(out)["verdict"]["limits"]}
    assert limits["kv recomputed"] == {"count": NUM_REQUESTS}
    code, out, _ = tracekit(*args, "--weights", f"1={recorded.model}")
    assert code == 4
    starts = [r["first_beyond_noise"] for r in json.loads(out)["verdict"]["rollouts"]]
    assert {s["output_index"] for s in starts if s} <= {12, 13, 14, 15}


def test_a_checkpoint_that_a_label_names_is_used_and_said_so(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    tables["tokens"]["weight_version"][-NUM_REQUESTS * 4 :] = 1
    args = (tmp_path / "t.arrow", "--model", recorded.model)

    def labelled(*checkpoints):
        made = make_weights(12, *[13] * len(checkpoints))
        made["weight_version"][:] = 1
        made["checkpoint"], made["label"] = [None, *map(str, checkpoints)], [None, *["step-9"] * len(checkpoints)]
        (tmp_path / "t.arrow").unlink(missing_ok=True)
        write_trace(tmp_path / "t.arrow", [{**tables, "weights": made}])

    labelled(tmp_path / "elsewhere", recorded.model)  # the last label counts
    code, out, _ = tracekit(*args)
    assert code == 0
    assert f"weight version 1 is taken from {recorded.model}, as the label 'step-9' in the trace says" in out
    assert json.loads(tracekit(*args, "--json")[1])["scoring"]["weights"][1]["folder"] == str(recorded.model)
    code, out, _ = tracekit(*args, "--weights", f"1={recorded.model}")
    assert code == 0 and "taken from" not in out
    labelled(recorded.model, tmp_path / "elsewhere")
    assert "elsewhere is not here" in refused(tracekit, *args)


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_trace_and_weights_are_read_from_where_they_are(tmp_path, recorded, tracekit, monkeypatch, kind):
    for name, value in {**ENVIRON, "TRACEKIT_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    tables = recorded.tables()
    tables["tokens"]["weight_version"][-NUM_REQUESTS * 4 :] = 1
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(
        tmp_path / "t.arrow", "--model", recorded.model, "--weights", f"1={recorded.model}", "--json"
    )
    local = json.loads(out)
    with StoreServer(kind, tmp_path / "store") as store:
        trace, model = (
            store.put("t.arrow", (tmp_path / "t.arrow").read_bytes()),
            store.put_folder("tiny", recorded.model),
        )
        there, out, _ = tracekit(trace, "--model", model, "--weights", f"1={model}", "--json")
        assert there == code == 0
        remote = json.loads(out)
        assert [weights.pop("folder") for weights in remote["scoring"]["weights"]] == [model, model]
        assert len(list((tmp_path / "cache" / "objects").rglob("*.safetensors"))) == 1
        # a label may name a store, but not one of its own: a stranger's trace must not send us anywhere
        tables["weights"] = make_weights(12, label=["step-9"], checkpoint=[model])
        write_trace(tmp_path / "u.arrow", [tables])
        assert "is not here" in refused(tracekit, tmp_path / "u.arrow", "--model", model)
        tables["weights"]["checkpoint"] = [model.partition("?")[0]]
        write_trace(tmp_path / "v.arrow", [tables])
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        code, out, _ = tracekit(tmp_path / "v.arrow", "--model", model)
        assert code == 0 and "is taken from s3://runs/tiny, as the label" in out
        code, _, err = tracekit(trace, "--model", "s3://runs/none", "--weights", f"1={model}")
        assert code == 1 and "there is no such object: s3://runs/none" in err and err.count("\n") == 1
    for weights in local["scoring"]["weights"]:
        del weights["folder"]
    for facts in (local, remote):
        del facts["scoring"]["secs"], facts["scoring"]["peak_bytes"]
    assert remote == local


@pytest.mark.parametrize("value", ["1", "x=there", "1=", "x:1=there", ":1=there"])
def test_malformed_weights_are_a_usage_error(tmp_path, recorded, tracekit, value):
    code, _, err = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--weights", value)
    assert code == 2 and "V=PATH" in err


def test_weights_for_a_version_that_never_ran_are_a_usage_error(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables()])
    code, _, err = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--weights", f"4={recorded.model}")
    assert code == 2 and "version 4" in err


def named(recorded, *models):
    """Tables of one engine for each model, which name it."""
    made = [{**recorded.tables(), "engines": make_engine(logprobs_mode="processed_logprobs")} for _ in models]
    for tables, model in zip(made, models, strict=True):
        tables["engines"]["model"] = [str(model)]
    return made


def test_without_a_model_the_folder_that_the_trace_names_is_taken_and_said_so(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", named(recorded, recorded.model))
    code, out, _ = tracekit(tmp_path / "t.arrow")
    assert code == 0
    assert f"the weights are those in {recorded.model}, the model folder that the trace names" in out
    _, out, _ = tracekit(tmp_path / "t.arrow", "--json")
    weights = json.loads(out)["scoring"]["weights"]
    assert [(w["folder"], w["source"]) for w in weights] == [(str(recorded.model), "trace")]
    _, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert "that the trace names" not in out


def test_a_model_that_is_not_here_or_not_one_is_a_usage_error(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", named(recorded, tmp_path / "gone"))
    code, out, err = tracekit(tmp_path / "t.arrow")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"the engine ran the model {tmp_path / 'gone'}, which is not a folder on this machine" in err
    for number, tables in enumerate(named(recorded, recorded.model, tmp_path / "gone")):
        write_spool(tmp_path / "two", [tables], engine=number, engine_id=f"{number}" * 32)
    code, out, err = tracekit(tmp_path / "two")
    assert (code, out) == (2, "") and "ran different models" in err
    code, _, _ = tracekit(tmp_path / "two", "--model", recorded.model)
    assert code == 0


def fingerprints(**hashes):
    """The table of one tensor by weight version, `v1=5` and so on."""
    count = len(hashes)
    return {
        "weight_version": np.array([int(name[1:]) for name in hashes], "u4"),
        "rank": np.zeros(count, "u4"),
        "tensor": ["model.of.no.folder"] * count,
        "dtype": ["bfloat16"] * count,
        "shape": [np.array([32], "u4")] * count,
        "hash": np.ma.masked_array(np.array(list(hashes.values()), "u8"), mask=False),
    }


def test_an_engine_that_missed_an_update_is_named_by_fingerprints_and_given_weights_of_its_own(
    tmp_path, recorded, tracekit
):
    other = write_model(tmp_path / "other", "llama", seed=9)
    for engine, version, hashes in ((0, 2, {"v0": 5, "v1": 6, "v2": 7}), (1, 1, {"v0": 5, "v1": 7})):
        tables = recorded.tables()
        for name in ("tokens", "steps"):
            tables[name]["weight_version"][:] = version
        tables["fingerprints"] = fingerprints(**hashes)
        write_spool(tmp_path / "two", [tables], engine=engine, engine_id=f"{engine}" * 32)
    args = (tmp_path / "two", "--model", other, "--weights", f"1={other}", "--weights", f"2={recorded.model}")
    code, out, _ = tracekit(*args, "--json")
    (cause,) = json.loads(out)["verdict"]["causes"]
    assert (code, cause["code"], cause["names"]) == (4, "version numbers differ", ["1 is 2 of engine 0"])
    assert cause["numbers"] == {"engine": 1} and cause["rollouts"] == list(range(NUM_REQUESTS, 2 * NUM_REQUESTS))
    code, out, _ = tracekit(*args)
    assert "Engine 1 missed an update, or began with other weights: by the fingerprints of its tensors its" in out
    assert "weight version 1 is 2 of engine 0: give engine 1's own folders (--weights ENGINE:VERSION=PATH)" in out
    code, out, _ = tracekit(*args, "--weights", f"1:1={recorded.model}", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["verdict"]["causes"] == []
    folders = {(w["engine"], w["version"]): w["folder"] for w in facts["scoring"]["weights"]}
    assert folders == {(None, 2): str(recorded.model), (1, 1): str(recorded.model)}
    code, out, _ = tracekit(*args[:3], "--weights", f"2={recorded.model}", "--only", 0, "--json")
    assert code == 0 and json.loads(out)["data"]["num_rollouts"] == NUM_REQUESTS
    code, _, err = tracekit(*args, "--weights", f"1:2={other}")
    assert code == 2 and "under weight version 1:2; the trace has 2, 1:1" in err
    assert tracekit(*args[:3], "--only", 7)[0] == 2
