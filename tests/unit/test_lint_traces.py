"""``tracekit lint``: rules that only a trace can tell of, on traces that have it and on such that have not."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.factories import make_cache, make_engine, make_tables, make_weights, write_spool, write_trace
from helpers.lint_traces import config, control, engine, hit_after_update, recorded, set_to, weights
from tracekit.cli.lint import command
from tracekit.tables import ACCEPTED, DISCARDED, PREEMPTED, PREFILL, RESUMED

ASKED = {"temperature": 1.0, "logprobs": 0}
UPDATE = {"mode": "keep", "clear_cache": False}


def test_a_stale_hit_is_named_with_its_request_and_versions(tmp_path):
    found = recorded(tmp_path, hit_after_update())
    says = "request 1 in engine step 4: 2 of 2 blocks hold keys and values of weight version 0, sampled under 1"
    assert found["stale-prefix-hits"] == f"1 hit: {says}"
    assert found["prefix-hits"] == "1 request, 4 tokens"
    says = "no reset of the cache with 1 of 1 weight changes: before engine step 4"
    assert found["prefix-caching-with-weight-updates"] == says
    assert "2 rollouts" in found["in-flight-update"]


def no_change(tables):
    del tables["weights"]
    for name in ("tokens", "steps"):
        tables[name]["weight_version"][:] = 0
    tables["cache"] = make_cache((4, 1, 4, [(0, 0), (0, 0)]))


HARMLESS = {
    "no-change": no_change,
    "computed-anew": set_to("cache", min_weight_version=np.array([1, 1], "u4")),
    "not-known": set_to("cache", min_weight_version=np.ma.masked_all(2, "u4")),
    "same-fingerprints": set_to("weights", num_changed=np.array([0], "u4")),
    "another-adapter": set_to("weights", lora=["french"]),
}


RESET = ("reset_prefix_cache", {"args": [], "kwargs": {}})
PAUSE = ("pause_scheduler", {"args": ["abort"], "kwargs": {}})
EMPTIED = {
    "reset": (4, *RESET, True),
    "reset-under-running": (4, "reset_prefix_cache", {"args": [True, False], "kwargs": {}}, True),
    "pause": (4, *PAUSE, None),
}
NOT_EMPTIED = {
    "refused": (4, *RESET, False),
    "too-early": (3, *RESET, True),
    "too-late": (5, *RESET, True),
    "pause-that-keeps-it": (4, "pause_scheduler", {"args": ["abort"], "kwargs": {"clear_cache": False}}, None),
    "pause-that-is-pending": (4, *PAUSE, "pending"),
}


@pytest.mark.parametrize("row", EMPTIED.values(), ids=EMPTIED)
def test_an_update_with_an_emptied_cache_is_no_risk(tmp_path, row):
    tables = hit_after_update()
    control(tables, row)
    assert "prefix-caching-with-weight-updates" not in recorded(tmp_path, tables)


@pytest.mark.parametrize("row", NOT_EMPTIED.values(), ids=NOT_EMPTIED)
def test_an_update_without_one_is(tmp_path, row):
    tables = hit_after_update()
    control(tables, row)
    assert "prefix-caching-with-weight-updates" in recorded(tmp_path, tables)


def test_the_updates_that_were_not_followed_by_a_reset_are_counted(tmp_path):
    tables = engine(make_tables(2, 8))
    weights(tables, 2, 4, 6)
    control(tables, (2, *RESET, True), (6, *PAUSE, None))
    says = "no reset of the cache with 1 of 3 weight changes: before engine step 4"
    assert recorded(tmp_path, tables)["prefix-caching-with-weight-updates"] == says


@pytest.mark.parametrize("first_step", [0, 8])
def test_weights_that_come_before_the_first_step_or_after_the_last_find_no_block(tmp_path, first_step):
    tables = engine(make_tables(2, 8))
    weights(tables, first_step)
    assert "prefix-caching-with-weight-updates" not in recorded(tmp_path, tables)


def test_weights_that_come_between_the_last_two_steps_find_blocks(tmp_path):
    tables = engine(make_tables(2, 8))
    weights(tables, 7)
    says = "no reset of the cache with 1 of 1 weight changes: before engine step 7"
    assert recorded(tmp_path, tables)["prefix-caching-with-weight-updates"] == says


def test_salts_that_no_two_versions_share_keep_blocks_apart(tmp_path):
    tables = engine(make_tables(2, 8))
    weights(tables, 4)
    tables["tokens"]["weight_version"] = tables["tokens"]["request"].copy()  # a rollout a version
    tables["requests"]["cache_salt"] = ["wv0", "wv1"]
    assert "prefix-caching-with-weight-updates" not in recorded(tmp_path, tables)
    for salts in (["one", "one"], ["wv0", None]):
        tables["requests"]["cache_salt"] = salts
        (tmp_path / str(salts[1])).mkdir()
        assert "prefix-caching-with-weight-updates" in recorded(tmp_path / str(salts[1]), tables)


def test_a_connector_is_no_risk_where_each_reset_emptied_it_too(tmp_path):
    tables = engine(make_tables(2, 8), kv_transfer_config={"kv_connector": "x"})
    weights(tables, 4)
    control(tables, (4, *RESET, True))
    says = "no reset of the connector with 1 of 1 weight changes: before engine step 4"
    assert recorded(tmp_path, tables)["kv-connector-with-weight-updates"] == says
    control(tables, (4, "reset_prefix_cache", {"args": [], "kwargs": {"reset_connector": True}}, True))
    (tmp_path / "emptied").mkdir()
    assert "kv-connector-with-weight-updates" not in recorded(tmp_path / "emptied", tables)


def test_a_rollout_over_weights_that_did_not_change_is_under_one_version(tmp_path):
    tables = engine(make_tables(2, 8))
    weights(tables, 4)
    assert recorded(tmp_path, tables)["in-flight-update"].startswith("2 rollouts")
    for name, change in {"same": {"num_changed": np.array([0], "u4")}, "another": {"lora": ["french"]}}.items():
        tables["weights"] = make_weights(4, **change)
        (tmp_path / name).mkdir()
        assert "in-flight-update" not in recorded(tmp_path / name, tables)


@pytest.mark.parametrize("harmless", HARMLESS.values(), ids=HARMLESS)
def test_a_hit_that_cannot_be_stale_is_not_named(tmp_path, harmless):
    tables = hit_after_update()
    harmless(tables)
    assert "stale-prefix-hits" not in recorded(tmp_path, tables)


def test_a_hit_is_stale_where_its_own_adapter_changed(tmp_path):
    tables = hit_after_update()
    set_to("weights", lora=["french"])(tables)
    tables["requests"]["lora"][1] = "french"
    assert "request 1 in engine step 4" in recorded(tmp_path, tables)["stale-prefix-hits"]


def test_a_label_on_old_weights_makes_nothing_stale(tmp_path):
    tables = hit_after_update()
    tables["weights"]["label"][0] = "step-100"  # a row that names a version begins none
    assert "stale-prefix-hits" not in recorded(tmp_path, tables)


def resumed_on_unknown_blocks(kind="v0"):
    tables = make_tables(2, 8)
    tables["engines"] = make_engine(kind=kind, engine_version="0.8.5", config=config())
    row = np.flatnonzero((tables["scheduled"]["request"] == 1) & (tables["scheduled"]["engine_step"] == 5))
    tables["scheduled"]["flags"][row] = RESUMED | PREFILL
    tables["cache"] = make_cache((5, 1, 9, [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]))
    for name in ("min_weight_version", "max_weight_version"):
        tables["cache"][name][3:] = np.ma.masked
    return tables


def test_a_resumption_on_blocks_that_others_wrote_is_named(tmp_path):
    says = recorded(tmp_path, resumed_on_unknown_blocks())["resumed-on-foreign-blocks"]
    assert says == "1 resumption: request 1 in engine step 5: 2 blocks"


def test_unknown_blocks_of_a_v1_engine_or_of_one_with_missing_steps_prove_nothing(tmp_path):
    assert "resumed-on-foreign-blocks" not in recorded(tmp_path, resumed_on_unknown_blocks("v1"))
    tables = resumed_on_unknown_blocks()
    tables["steps"] = {name: np.delete(values, 2) for name, values in tables["steps"].items()}
    (tmp_path / "hole").mkdir()
    assert "resumed-on-foreign-blocks" not in recorded(tmp_path / "hole", tables)


def test_only_the_blocks_that_are_older_than_a_real_change_are_counted(tmp_path):
    tables = hit_after_update()
    weights(tables, 4, 6)
    tables["weights"]["num_changed"] = np.array([3, 0], "u4")
    tables["steps"]["weight_version"][6:] = 2
    row = np.flatnonzero((tables["scheduled"]["request"] == 1) & (tables["scheduled"]["engine_step"] == 7))
    tables["scheduled"]["flags"][row] = RESUMED | PREFILL
    tables["cache"] = make_cache((7, 1, 7, [(1, 1), (0, 1), (2, 2), (1, 2)]))
    found = recorded(tmp_path, tables)["stale-prefix-hits"]
    assert "1 of 4 blocks hold keys and values of weight version 0, sampled under 2" in found


@pytest.mark.parametrize(
    ("arguments", "is_async", "rule"),
    [
        ({"args": ["keep", True], "kwargs": {}}, True, "pause-keep-deletes-a-token"),
        ({"args": [], "kwargs": {"mode": "keep"}}, True, "pause-keep-deletes-a-token"),
        ({"args": ["keep", True], "kwargs": {}}, False, "pause-keep-recomputes"),
        ({"args": ["keep", False], "kwargs": {}}, True, None),
        ({"args": ["abort", True], "kwargs": {}}, True, None),
    ],
)
def test_a_pause_that_keeps_the_rollouts_and_clears_their_cache(tmp_path, arguments, is_async, rule):
    tables = engine(make_tables(2, 8), scheduler_config={"async_scheduling": is_async})
    control(tables, (3, "pause_scheduler", arguments, None))
    found = recorded(tmp_path, tables)
    assert {r for r in found if r.startswith("pause-keep")} == ({rule} if rule else set())
    if rule:
        assert found[rule] == "running rollouts: 2, before engine step 3"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_pause_with_nothing_under_way_recomputes_and_deletes_nothing(tmp_path, is_async):
    tables = engine(make_tables(2, 8), scheduler_config={"async_scheduling": is_async})
    keep = {"args": ["keep", True], "kwargs": {}}
    control(tables, (0, "pause_scheduler", keep, None), (8, "pause_scheduler", keep, None))
    assert not [rule for rule in recorded(tmp_path, tables) if rule.startswith("pause-keep")]


def test_only_rollouts_that_go_on_after_a_pause_are_counted(tmp_path):
    tables = engine(make_tables(3, 8))
    scheduled = tables["scheduled"]
    late = (scheduled["request"] == 1) & (scheduled["engine_step"] < 5)  # begins after the pause
    over = (scheduled["request"] == 2) & (scheduled["engine_step"] >= 5)  # ends before it
    tables["scheduled"] = {name: values[~(late | over)] for name, values in scheduled.items()}
    control(tables, (5, "pause_scheduler", {"args": ["keep"], "kwargs": {}}, None))
    assert recorded(tmp_path, tables)["pause-keep-recomputes"] == "running rollouts: 1, before engine step 5"


def test_a_deleted_token_is_found_where_the_rollout_goes_on_without_it(tmp_path):
    tables = engine(make_tables(2, 8))
    tokens = {name: values.copy() for name, values in tables["tokens"].items()}
    mine = np.flatnonzero(tokens["request"] == 0)
    tokens["flags"][mine[3]] = DISCARDED
    tokens["position"][mine[4:]] -= 1  # what follows moves up by one, the engine's KV does not
    tables["tokens"] = tokens
    found = recorded(tmp_path, tables)
    assert found["deleted-token"] == "1 rollout: request 0 at position 8"


def test_a_token_that_was_discarded_and_sampled_anew_is_not_deleted(tmp_path):
    tables = engine(make_tables(2, 8))
    tables["tokens"] = {name: values.copy() for name, values in tables["tokens"].items()}
    last = np.flatnonzero(tables["tokens"]["request"] == 0)[-1]
    tables["tokens"]["flags"][last] = DISCARDED
    assert (tables["tokens"]["flags"] == ACCEPTED).sum() == 15
    assert "deleted-token" not in recorded(tmp_path, tables)


def adapters(tables, *places):
    """Request i names the adapter `policy`, from places[i] = (path, id), and runs alone: in steps 2i and 2i + 1."""
    scheduled = tables["scheduled"]
    own = scheduled["engine_step"] // 2 == scheduled["request"]
    tables["scheduled"] = {name: values[own] for name, values in scheduled.items()}
    tables["requests"] |= {"lora": ["policy"] * len(places), "lora_path": [path for path, _ in places]}
    tables["requests"]["lora_id"] = np.array([number for _, number in places], "u4")
    return tables


REUSED = {
    "0.8.5": [("/a", 1), ("/b", 1)],
    "0.18.1": [("/a", 1), ("/b", 2)],
    "0.32.0": [("/a", 1), ("/a", 2)],
}
NOT_REUSED = {
    "0.8.5": [("/a", 1), ("/b", 2)],
    "0.18.1": [("/a", 1), ("/a", 1)],
    "0.32.0": [("/a", 1), ("/b", 2)],
}


def of_version(tables, version):
    tables["engines"] = make_engine(kind="v0" if version == "0.8.5" else "v1", engine_version=version, config=config())
    return tables


@pytest.mark.parametrize("version", REUSED)
def test_an_adapter_that_requests_find_in_the_place_of_another(tmp_path, version):
    tables = of_version(adapters(make_tables(2, 8), *REUSED[version]), version)
    (path, first), (other, second) = REUSED[version]
    says = f"'policy' was {path} ({first}), then {other} ({second})"
    assert recorded(tmp_path, tables)["lora-name-reused"] == says
    control(tables, (2, *RESET, True))
    (tmp_path / "reset").mkdir()
    assert "lora-name-reused" not in recorded(tmp_path / "reset", tables)


@pytest.mark.parametrize("version", NOT_REUSED)
def test_an_adapter_whose_blocks_no_other_can_find(tmp_path, version):
    tables = of_version(adapters(make_tables(2, 8), *NOT_REUSED[version]), version)
    assert "lora-name-reused" not in recorded(tmp_path, tables)


def test_an_adapter_that_is_loaded_anew_under_its_name(tmp_path):
    tables = engine(adapters(make_tables(2, 8), ("/a", 1), ("/a", 1)))
    load = {"args": [{"lora_name": "policy", "lora_int_id": 1, "lora_path": "/b"}], "kwargs": {}}
    control(tables, (2, "add_lora", load, True))
    assert recorded(tmp_path, tables)["lora-name-reused"] == "'policy' was /a (1), then /b (1)"
    control(tables, (4, "add_lora", load, True))  # nothing ran with it any more
    (tmp_path / "late").mkdir()
    assert "lora-name-reused" not in recorded(tmp_path / "late", tables)


def test_seeds_beside_requests_without_one_on_the_cpu(tmp_path):
    tables = engine(make_tables(2, 8))
    tables["requests"]["sampling_params"][1] = json.dumps({"temperature": 1.0, "seed": 7})
    assert recorded(tmp_path, tables)["seeds-ignored"].startswith("8 engine steps")
    engine(tables, device_config={"device_type": "cuda"})
    (tmp_path / "gpu").mkdir()
    assert "seeds-ignored" not in recorded(tmp_path / "gpu", tables)


def test_preemptions_are_counted(tmp_path):
    tables = engine(make_tables(2, 8))
    tables["scheduled"]["flags"] = np.where(tables["scheduled"]["engine_step"] == 5, PREEMPTED, 0).astype("u1")
    assert recorded(tmp_path, tables)["preemptions"] == "2 preemptions of 2 requests"


def test_a_configuration_that_was_not_recorded_fires_nothing(tmp_path):
    assert recorded(tmp_path, make_tables(2, 8, sampling_params=ASKED)) == {}


def test_exit_codes_and_text(tmp_path):
    write_trace(tmp_path / "bad.arrow", [hit_after_update()])
    done = CliRunner().invoke(command, [str(tmp_path / "bad.arrow")], standalone_mode=False)
    assert done.return_value == 4 and "BREAKS PARITY  stale-prefix-hits" in done.output
    assert (
        "reset_prefix_cache() after each update" in done.output and "github.com/NVIDIA-NeMo/RL/pull/4018" in done.output
    )
    write_trace(tmp_path / "good.arrow", [make_tables(2, 8, sampling_params=ASKED)])
    assert CliRunner().invoke(command, [str(tmp_path / "good.arrow")], standalone_mode=False).return_value == 0
    batches = [make_tables(3, 8, first_request=3 * n, first_step=8 * n, engine=n == 0) for n in range(3)]
    spool = write_spool(tmp_path / "spool", batches, skip={2})
    done = CliRunner().invoke(command, [str(spool)], standalone_mode=False)
    assert done.return_value == 3 and "data was lost" in done.output
