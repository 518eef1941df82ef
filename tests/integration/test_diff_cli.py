"""``tracekit diff`` on traces of the real writer; the values of one are those of the other, moved in a known way."""

import json

import numpy as np
import pytest

from helpers.factories import make_engine, make_tables, write_trace
from helpers.tiny_models import VOCAB, write_model
from tracekit.cli.main import main
from tracekit.report.columns import side_by_side

TOKENS, REQUESTS, PROMPT = 8, 4, 5


def tables(*, mode="raw_logprobs", order=range(REQUESTS), d=None, ids=None, **changes):
    """Tables of the same four requests in any order of admission.

    Args:
        d: [request, token] nats added to what is recorded.
        ids: {(request, token): id} that was sampled instead.
    """
    order = list(order)
    made = make_tables(REQUESTS, TOKENS, prompt_tokens=PROMPT, engine=make_engine(logprobs_mode=mode), **changes)
    tokens = made["tokens"]
    token_id = tokens["token_id"].reshape(TOKENS, REQUESTS) % VOCAB
    values = np.ma.getdata(tokens["rollout_logprob"]).reshape(TOKENS, REQUESTS).copy()
    for (request, token), sampled in (ids or {}).items():
        token_id[token, request] = sampled
    if d is not None:
        values += np.asarray(d, "f4").T
    tokens["token_id"] = token_id[:, order].ravel()
    tokens["rollout_logprob"] = np.ma.masked_array(values[:, order].ravel(), mask=False)
    prompts = [ids % VOCAB for ids in made["requests"]["prompt_token_ids"]]
    made["requests"]["prompt_token_ids"] = [prompts[i] for i in order]
    return made


@pytest.fixture
def diff(capsys, tmp_path):
    """Writes two traces and compares them; returns exit code, stdout or its JSON, stderr."""

    def run(one, other, *args):
        for name, made in (("a", one), ("b", other)):
            (tmp_path / f"{name}.arrow").unlink(missing_ok=True)
            write_trace(tmp_path / f"{name}.arrow", [made])
        with pytest.raises(SystemExit) as done:
            main(["diff", str(tmp_path / "a.arrow"), str(tmp_path / "b.arrow"), *map(str, args)])
        out, err = capsys.readouterr()
        return done.value.code, json.loads(out) if "--json" in args else out, err

    return run


def test_the_same_run_in_another_order_is_equal(diff):
    code, facts, _ = diff(tables(), tables(order=[2, 0, 3, 1]), "--json")
    found = facts["difference"]
    assert (code, found["outcome"]) == (0, "equal")
    assert found["num_pairs"] == found["num_same_ids"] == REQUESTS
    assert found["num_tokens"] == REQUESTS * TOKENS and found["metrics"]["bit_equal"] == 1
    code, out, _ = diff(tables(), tables())
    assert code == 0 and out.startswith("EQUAL") and "no setting that is compared differs" in out


def test_the_first_value_that_moved_is_named_and_the_metrics_are_of_second_against_first(diff):
    d = np.zeros((REQUESTS, TOKENS))
    d[2, 3:], d[1, 5] = 0.1, -0.2
    code, facts, _ = diff(tables(), tables(order=[3, 2, 1, 0], d=d), "--json")
    found = facts["difference"]
    assert (code, found["outcome"]) == (4, "differs")
    first = found["first_not_equal"]
    assert (first["request"], first["other_request"], first["output_index"]) == (2, 1, 3)
    assert first["position"] == PROMPT + 3 and first["d"] == pytest.approx(0.1, abs=1e-6)
    assert found["num_pairs_not_equal"] == 2
    assert found["metrics"]["d_abs_mean"] == pytest.approx((5 * 0.1 + 0.2) / (REQUESTS * TOKENS), rel=1e-5)
    assert found["metrics"]["d_abs_max"] == pytest.approx(0.2, abs=1e-6)


def test_nothing_is_compared_behind_another_id(diff):
    d = np.zeros((REQUESTS, TOKENS))
    d[0, 4:] = 1.0
    code, facts, _ = diff(tables(), tables(ids={(0, 4): 7, (1, 0): 8}, d=d), "--json")
    found = facts["difference"]
    assert (code, found["outcome"]) == (0, "equal")
    assert found["num_same_ids"] == 2
    assert found["num_tokens"] == 2 * TOKENS + 4 and found["num_tokens_after"] == TOKENS + TOKENS - 4


def test_of_several_with_one_prompt_the_completions_that_agree_go_together(diff):
    def group(order):
        made = tables(order=order)
        made["requests"]["prompt_token_ids"] = [made["requests"]["prompt_token_ids"][0]] * REQUESTS
        return made

    one, other = group([0, 1, 2, 3]), group([3, 1, 0, 2])
    one["requests"]["prompt_token_ids"] = other["requests"]["prompt_token_ids"]
    code, facts, _ = diff(one, other, "--json")
    assert code == 0 and facts["difference"]["num_same_ids"] == REQUESTS


@pytest.mark.parametrize("other", [tables(seed=1), tables(ids={(request, 0): 5 for request in range(REQUESTS)})])
def test_no_prompt_or_no_token_in_common_is_not_a_pass(diff, other):
    code, out, err = diff(tables(), other)
    assert code == 1
    assert err.startswith("tracekit: error: no prompt is in both") or out.startswith("NOTHING COMPARED")


def test_different_kinds_are_compared_only_where_both_traces_hold_one(diff):
    code, out, err = diff(tables(), tables(mode="processed_logprobs"))
    assert code == 1 and not out and "raw_logprobs and processed_logprobs, and do not both hold one kind" in err
    both = [tables(), tables(mode="processed_logprobs", d=np.ones((REQUESTS, TOKENS)))]
    for made in both:
        made["tokens"]["raw_logprob"] = np.ma.masked_array(np.ma.getdata(tables()["tokens"]["rollout_logprob"]), False)
    code, facts, _ = diff(*both, "--json")
    assert code == 0 and facts["difference"]["lens"] == "raw"
    assert facts["settings"]["logprobs_mode"] == ["raw_logprobs", "processed_logprobs"]


def test_a_replay_without_a_finite_token_has_no_numbers():
    metrics = {"ratio_mean": None, "mismatch_kl": None, "clip_rate": None, "bit_equal": None, "epsilon": 0.2}
    verdict = {"before": metrics, "semantic": {"kind": "neither"}, "layer": "none", "since": None}
    lines = list(side_by_side({"first": {"verdict": verdict}, "second": {"verdict": verdict}}))
    assert lines[4].split() == ["mean", "ratio", "-", "-"] and len(lines) == 8


def test_rules_replace_what_fails(diff):
    other = tables(d=np.full((REQUESTS, TOKENS), 0.01))
    assert diff(tables(), other, "--fail-on", "mismatch_kl>1e-3")[0] == 0
    code, out, _ = diff(tables(), other, "--fail-on", "mismatch_kl>1e-5", "--fail-on", "num_pairs<4")
    assert code == 4 and "FAIL mismatch_kl>1e-5" in out and "ok   num_pairs<4" in out
    assert diff(tables(), other, "--fail-on", "num_pairs_beyond>0")[0] == 1  # nobody measured noise
    assert diff(tables(), other, "--fail-on", "nothing>0")[0] == 2
    assert diff(tables(), other, "--fail-on", "outcome==differ")[0] == 2


def test_lost_rows_are_told(diff, tmp_path):
    second = make_tables(1, 2, first_request=9, first_step=20, engine=False)
    write_trace(tmp_path / "lossy.arrow", [tables(), second, second], skip=(2,))
    with pytest.raises(SystemExit) as done:
        main(["diff", str(tmp_path / "lossy.arrow"), str(tmp_path / "lossy.arrow")])
    assert done.value.code == 3


def test_with_a_model_noise_is_told_from_change(diff, tmp_path):
    model = write_model(tmp_path / "tiny", "llama")
    rng = np.random.default_rng(3)
    small = rng.normal(0, 1e-6, (REQUESTS, TOKENS))
    made = [tables(d=d) for d in (None, small, small + 3.0 * (np.arange(TOKENS) >= 2))]
    code, facts, _ = diff(made[0], made[1], "--model", model, "--dtype", "float32", "--json")
    found = facts["difference"]
    assert (code, found["outcome"], found["num_pairs_beyond"]) == (0, "within noise", 0)
    assert len(facts["replays"]) == 2
    code, facts, _ = diff(made[0], made[2], "--model", model, "--dtype", "float32", "--json")
    found = facts["difference"]
    assert (code, found["outcome"], found["num_pairs_beyond"]) == (4, "beyond noise", REQUESTS)
    assert found["first_beyond"]["output_index"] == 2 and found["chance"] < 1e-4


def test_the_page_says_what_the_screen_says(diff, tmp_path):
    code, out, _ = diff(tables(), tables(d=np.full((REQUESTS, TOKENS), 0.01)), "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert code == 4 and out.strip().splitlines()[0] in page and 'class="run"' not in page
