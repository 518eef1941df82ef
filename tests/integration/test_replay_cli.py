"""``tracekit replay`` on real traces and a tiny random model whose own numbers stand for the engine's."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.factories import make_tables, write_spool, write_trace
from helpers.replayed import NUM_PROMPT, NUM_REQUESTS, NUM_TOKENS, SAMPLING, refused
from helpers.tiny_models import VOCAB
from tracekit.errors import NotATraceError, ReplayRefused, SchemaTooNewError
from tracekit.replay.output import read_replay
from tracekit.replay.runner import replay
from tracekit.scoring.scorer import Scorer

SCHEMA = Path(__file__).parents[2] / "docs/result.schema.json"


def test_values_of_the_right_kind_are_clean(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables()])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert code == 0
    assert out.startswith("VERDICT: no divergence")
    assert "recorded values are: processed" in out


def test_raw_values_for_a_processing_trainer_are_a_semantic_mismatch(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables(recorded.raw, mode="raw_logprobs")])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--json")
    facts = json.loads(out)
    verdict = facts["verdict"]
    assert code == facts["exit_code"] == 4
    jsonschema.validate(facts, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert verdict["layer"] == "semantic"
    assert verdict["semantic"]["kind"] == "raw"
    assert verdict["since"]["output_index"] <= 2
    assert verdict["before"]["mismatch_kl"] > 10 * verdict["after"]["mismatch_kl"]
    assert verdict["after"]["ratio_mean"] == pytest.approx(1.0, abs=0.02)
    code, _, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--expect", "raw")
    assert code == 0


def test_other_weights_from_a_token_on_are_found_there(tmp_path, recorded, tracekit):
    values = recorded.processed.copy()
    free = values[:, 8:] < -0.05
    values[:, 8:] += free * np.where(np.arange(8) % 2, -1.0, 0.9 * np.minimum(1.0, -values[:, 8:]))
    write_trace(tmp_path / "t.arrow", [recorded.tables(values)])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--json")
    verdict = json.loads(out)["verdict"]
    assert code == 4
    assert verdict["layer"] == "inference path"
    starts = [r["first_beyond_noise"]["output_index"] for r in verdict["rollouts"] if r["first_beyond_noise"]]
    assert len(starts) >= 6
    assert min(starts) == 8


def test_replay_arrow_holds_every_token_and_the_verdict(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables(recorded.raw, mode="raw_logprobs")])
    out = tmp_path / "replay.arrow"
    code, _, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "-o", out)
    assert code == 4
    table = pa.ipc.open_file(out).read_all()
    assert table.num_rows == NUM_REQUESTS * NUM_TOKENS
    rows = table.to_pydict()
    assert rows["position"][:NUM_TOKENS] == list(range(NUM_PROMPT, NUM_PROMPT + NUM_TOKENS))
    assert np.array_equal(np.array(rows["token_id"]), recorded.tokens.ravel())
    assert np.array_equal(np.array(rows["rollout_logprob"], "f4"), recorded.raw.ravel().astype("f4"))
    np.testing.assert_allclose(
        rows["d"], np.array(rows["replay_raw_logprob"]) - np.array(rows["rollout_logprob"]), atol=1e-6
    )
    assert min(rows["sigma"]) > 0
    stored = read_replay(out)
    assert stored.tokens.to_pydict() == rows
    assert stored.result.verdict.layer == "semantic" and stored.result.scoring.dtype == "bfloat16"
    assert stored.result.exit_code == code
    _, printed, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--json")
    assert without_clock(stored.result.to_dict()) == without_clock(json.loads(printed))


def without_clock(facts):
    """A result without what two runs never have in common."""
    scoring = {name: value for name, value in facts["scoring"].items() if name not in ("secs", "peak_bytes")}
    return {**facts, "scoring": scoring}


def test_files_that_hold_no_replay_are_refused(tmp_path, recorded):
    write_trace(tmp_path / "t.arrow", [recorded.tables()])
    with pytest.raises(NotATraceError, match="holds no result of a replay"):
        read_replay(tmp_path / "t.arrow")
    (tmp_path / "text.arrow").write_text("no Arrow file, and longer than its magic")
    with pytest.raises(NotATraceError, match="not an Arrow file"):
        read_replay(tmp_path / "text.arrow")
    for version in (9, 2):
        table = pa.table({"a": [1]}).replace_schema_metadata({"tracekit.result": f'{{"schema_version": {version}}}'})
        with pa.OSFile(str(tmp_path / f"{version}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(SchemaTooNewError, match="version 9, and this tracekit reads 2"):
        read_replay(tmp_path / "9.arrow")
    with pytest.raises(NotATraceError, match="the result in this file lacks 'tracekit_version'"):
        read_replay(tmp_path / "2.arrow")


def test_an_existing_output_is_refused_before_anything_is_read(tmp_path, recorded, tracekit):
    out = tmp_path / "replay.arrow"
    out.write_text("mine")
    code, _, err = tracekit(tmp_path / "no-such-trace", "--model", recorded.model, "-o", out)
    assert code == 1
    assert "exists already" in err and err.count("\n") == 1
    assert out.read_text() == "mine"


def test_the_page_says_what_the_screen_says(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables(recorded.raw)])
    args = (tmp_path / "t.arrow", "--model", recorded.model, "--dtype", "float32", "--html", tmp_path / "page.html")
    code, out, err = tracekit(*args)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert code == 4 and f"<h1>{out.splitlines()[0]}</h1>" in page and "page.html" in err
    assert f"{NUM_TOKENS} steps of 1 engine" in page  # the timeline came with it
    code, _, err = tracekit(tmp_path / "no-such-trace", *args[1:])
    assert code == 1 and "exists already" in err  # before anything is read


def test_missing_logprobs_say_how_to_get_them(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables(logprobs=False)])
    err = refused(tracekit, tmp_path / "t.arrow", "--model", recorded.model)
    assert "did not ask for them" in err and "logprobs=0" in err


def test_logprobs_that_the_engine_did_not_report_are_not_taken_for_unasked_ones(tmp_path, recorded, tracekit):
    tables = recorded.tables(logprobs=False)
    tables["tokens"]["raw_logprob"] = np.full(len(tables["tokens"]["token_id"]), -1, "f4")
    write_trace(tmp_path / "t.arrow", [tables])
    err = refused(tracekit, tmp_path / "t.arrow", "--model", recorded.model)
    assert "raw and processed logprobs were recorded, but none as the engine reports" in err


def test_no_tokens_are_refused(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    del tables["tokens"], tables["finishes"]
    write_trace(tmp_path / "t.arrow", [tables])
    assert "no accepted token" in refused(tracekit, tmp_path / "t.arrow", "--model", recorded.model)


def test_logits_are_refused(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables(mode="raw_logits")])
    assert "raw_logits" in refused(tracekit, tmp_path / "t.arrow", "--model", recorded.model)


def test_token_ids_of_another_vocabulary_are_refused(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    tables["tokens"]["token_id"][3] = VOCAB + 7
    write_trace(tmp_path / "t.arrow", [tables])
    assert "vocabulary" in refused(tracekit, tmp_path / "t.arrow", "--model", recorded.model)


def test_a_request_with_a_hole_is_skipped_and_shown(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    keep = np.ones(NUM_REQUESTS * NUM_TOKENS, dtype=bool)
    keep[5 * NUM_REQUESTS + 2] = False  # request 2, output token 5
    tables["tokens"] = {name: values[keep] for name, values in tables["tokens"].items()}
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert code == 3
    assert "SKIPPED: 1 request with missing token rows" in out
    assert f"{(NUM_REQUESTS - 1) * NUM_TOKENS} tokens of {NUM_REQUESTS - 1} rollouts" in out


def test_a_request_that_cannot_be_recomputed_is_skipped_and_shown(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    grammar = json.dumps({**SAMPLING, "structured_outputs": {"json": "{}"}})
    tables["requests"]["sampling_params"] = [grammar, *tables["requests"]["sampling_params"][1:]]
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert code == 1  # nothing is missing from the trace, but this is not a pass
    assert out.startswith("VERDICT: withheld")
    assert "WITHHELD: 1 request was not judged, because structured_outputs changed the logits" in out
    assert "SKIPPED: 1 request whose processed logprobs cannot be recomputed: structured_outputs" in out
    assert f"{(NUM_REQUESTS - 1) * NUM_TOKENS} tokens of {NUM_REQUESTS - 1} rollouts" in out


def test_a_lost_tail_is_seen_by_the_count_of_the_finish(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    tables["tokens"] = {name: values[:-1] for name, values in tables["tokens"].items()}
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--json")
    assert code == 3
    assert json.loads(out)["data"]["skipped_requests"] == [{"why": "missing tokens", "parameter": None, "count": 1}]


def test_rows_that_never_arrived_end_with_3(tmp_path, recorded, tracekit):
    half = NUM_REQUESTS // 2
    batches = [recorded.tables(count=half), recorded.tables(first=half, count=half, engine=False), make_tables(0, 0)]
    write_spool(tmp_path / "spool", batches, skip=(2,))
    code, out, _ = tracekit(tmp_path / "spool", "--model", recorded.model)
    assert code == 3
    assert "DATA LOST" in out


def test_discarded_tokens_are_not_scored_and_counted(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    tables["tokens"] = {
        name: np.ma.concatenate([values, values[:1]]) if name == "rollout_logprob" or name == "rank"
        else np.concatenate([values, values[:1]])
        for name, values in tables["tokens"].items()
    }  # fmt: skip
    tables["tokens"]["flags"][-1] = 2
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert code == 0
    assert "1 sampled token never became output" in out


def test_recorded_nan_is_counted_and_named(tmp_path, recorded, tracekit):
    values = recorded.processed.copy()
    values[3, 4] = np.nan
    write_trace(tmp_path / "t.arrow", [recorded.tables(values)])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert code == 1 and out.startswith("VERDICT: withheld\n")
    assert "WITHHELD: 1 token was not judged, because the recorded logprob is NaN or infinite: the first at" in out
    assert "position 9 of request 3" in out


def test_progress_is_silent_where_it_is_quick_and_stdout_is_json_alone(tmp_path, recorded, tracekit):
    write_trace(tmp_path / "t.arrow", [recorded.tables()])
    _, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--json")
    assert json.loads(out)["data"]["num_tokens"] == NUM_REQUESTS * NUM_TOKENS


def test_a_model_of_another_vocabulary_is_refused_by_what_the_engine_said(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    tables["engines"]["config"] = [json.dumps({"hf_config": {"vocab_size": VOCAB + 64}})]
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, err = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert code == 1 and out == ""
    assert f"vocabulary of {VOCAB + 64}" in err and str(VOCAB) in err


def padded(folder, recorded, rows):
    """The recorded model with so many more rows, as trainers pad heads for their kernels."""
    model = AutoModelForCausalLM.from_pretrained(recorded.model, dtype=torch.float32)
    torch.manual_seed(1)
    model.resize_token_embeddings(VOCAB + rows, mean_resizing=False)
    model.save_pretrained(folder)
    return folder, model.config


def test_a_padded_head_is_the_same_models_and_its_mass_is_missing_in_the_engine(tmp_path, recorded, tracekit):
    folder, config = padded(tmp_path / "padded", recorded, 200)
    tables = recorded.tables()
    tables["engines"]["config"] = [json.dumps({"hf_config": {**config.to_dict(), "vocab_size": VOCAB}})]
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", folder, "--dtype", "float32")
    assert code == 4 and f"The trainer's head has {VOCAB + 200} rows and the engine's {VOCAB}: the same model" in out
    _, out, _ = tracekit(tmp_path / "t.arrow", "--model", folder, "--dtype", "float32", "--json")
    cause = json.loads(out)["verdict"]["causes"][0]
    assert (cause["code"], cause["layer"]) == ("padded head", "semantic") and cause["share"] > 0.9


def test_requests_with_ids_of_an_engines_padding_are_left_out_and_withheld(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    same = AutoConfig.from_pretrained(recorded.model).to_dict()
    tables["engines"]["config"] = [json.dumps({"hf_config": {**same, "vocab_size": VOCAB + 24}})]
    tables["tokens"]["token_id"][5] = VOCAB + 3
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model)
    assert code == 1 and "they hold token ids beyond the trainer's head" in out


def test_requests_of_an_adapter_or_of_embeddings_are_left_out_which_is_no_pass(tmp_path, recorded, tracekit):
    tables = recorded.tables()
    tables["requests"]["lora"] = ["sql"] + [None] * (NUM_REQUESTS - 1)
    tables["requests"]["prompt_token_ids"][1] = np.zeros(0, "u4")
    tables["requests"]["num_mm_features"][2] = 1
    write_trace(tmp_path / "t.arrow", [tables])
    code, out, _ = tracekit(tmp_path / "t.arrow", "--model", recorded.model, "--json")
    facts = json.loads(out)
    assert code == 1 and facts["data"]["num_rollouts"] == NUM_REQUESTS - 3 and not facts["data"]["lost"]
    assert (facts["outcome"], facts["verdict"]["layer"]) == ("withheld", "none")
    assert [unknown["code"] for unknown in facts["verdict"]["withheld"]] == ["not judged"] * 3
    assert {s["why"] for s in facts["data"]["skipped_requests"]} == {"adapter", "no prompt ids", "not text"}
    tables["requests"]["lora"] = ["sql"] * NUM_REQUESTS
    write_trace(tmp_path / "u.arrow", [tables])
    code, out, err = tracekit(tmp_path / "u.arrow", "--model", recorded.model)
    assert code == 1 and out == "" and "LoRA" in err


def test_a_scorer_that_does_not_agree_with_itself_gives_no_verdict(tmp_path, recorded):
    class Whimsical:
        """A scorer whose second pass differs in the last bit of one value."""

        name, device, vocab_size, packing, arithmetic = "whimsical", "cpu", VOCAB, "by length", "float32"

        def __init__(self, scorer, field):
            self.scorer, self.field, self.calls = scorer, field, 0

        def score(self, spans, **how):
            scores = self.scorer.score(spans, **how)
            self.calls += 1
            if self.calls == 2:
                values = getattr(scores[0].readings[0], self.field)
                values[3] = np.nextafter(values[3], 0)
            return scores

    write_trace(tmp_path / "t.arrow", [recorded.tables()])
    for field in ("raw_logprob", "forced_logprob"):
        with pytest.raises(ReplayRefused) as refusal:
            replay(
                tmp_path / "t.arrow",
                recorded.model,
                load=lambda folder, model, field=field: Whimsical(Scorer.load(folder, dtype=model.dtype), field),
            )
        assert str(refusal.value) == (
            f"the scorer does not agree with itself on request 0 ({field} differs between two identical passes), "
            "so it gives no verdict"
        )
