"""States recorded at module boundaries inside a real engine, and the module that they name."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.engine import job, record, run_cli
from tracekit.errors import ReplayRefused
from tracekit.replay.runner import replay
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine

FAULTY = "model.layers.1.mlp"


def recorded(folder: Path, model: Path, module: str, *options: object, engine: str = "v1") -> Trace:
    return record(engine, folder / "trace.arrow", job("probed.py", model, "bfloat16", module, 1.1), *options)


@pytest.fixture(scope="module")
def clean(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Path]:
    folder = tmp_path_factory.mktemp("probed-clean")
    return recorded(folder, tiny_model, "none", "--probe", folder / "states"), folder / "states"


def test_a_clean_engine_has_no_suspect(clean: Any, tiny_model: Path) -> None:
    trace, states = clean
    modules = replay(trace, tiny_model, expect="raw", probes=states).result.verdict.modules
    assert modules is not None and modules.suspects == [] and modules.kinds == []
    assert modules.num_requests == 4 and modules.dtype == "bfloat16"
    # of the first four requests: prompts, in chunks where they are long, and all but the last token
    assert modules.num_positions == 7 + 45 + 12 + 9 + 4 * 11
    kinds = {module.kind for module in modules.modules}
    children = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp", "norm", "lm_head"}
    assert kinds == children | {"embed_tokens", "between", "rows"}


def test_probing_changes_nothing_that_is_sampled(clean: Any, tiny_model: Path, tmp_path: Path) -> None:
    plain = recorded(tmp_path, tiny_model, "none")
    columns = ["request", "position", "token_id", "rollout_logprob"]
    assert clean[0].table("tokens").select(columns).equals(plain.table("tokens").select(columns))


def test_the_module_that_is_off_is_named_with_its_proof(tiny_model: Path, tmp_path: Path) -> None:
    recorded(tmp_path, tiny_model, FAULTY, "--probe", tmp_path / "states")
    trace = tmp_path / "trace.arrow"
    options = ("--model", tiny_model, "--expect", "raw", "--probes", tmp_path / "states")
    done = run_cli("replay", trace, *options, "--json")
    verdict = json.loads(done.stdout)["verdict"]
    assert done.returncode == 4, done.stderr
    assert (verdict["layer"], verdict["cause"]) == ("inference path", "module")
    assert verdict["causes"][0]["names"] == ["layers.1.mlp"]
    before, behind = (one["d_abs_mean"] for one in verdict["modules"]["graft"])
    assert behind < before / 2
    (tmp_path / "states" / "strange").mkdir()
    (tmp_path / "states" / "strange" / "000000.safetensors").write_bytes(b"no states")
    with pytest.raises(ReplayRefused, match="not states that a recorder kept"):
        replay(trace, tiny_model, expect="raw", probes=tmp_path / "states")


@pytest.mark.parametrize(("engine", "faulty"), [("v0", FAULTY), ("latest", "model.embed_tokens")])
def test_other_engines_are_probed_alike(engine: str, faulty: str, tiny_model: Path, tmp_path: Path) -> None:
    trace = recorded(tmp_path, tiny_model, faulty, "--probe", tmp_path / "states", engine=engine)
    expect = "processed" if engine == "v0" else "raw"
    verdict = replay(trace, tiny_model, expect=expect, probes=tmp_path / "states").result.verdict
    assert (verdict.layer, verdict.cause) == ("inference path", "module")
    assert verdict.causes[0].names == [faulty.removeprefix("model.")] and verdict.since.output_index == 0
    assert verdict.modules.num_requests == 4 and "lm_head" in {module.name for module in verdict.modules.modules}
    if faulty == FAULTY:
        assert verdict.modules.graft[1].d_abs_mean < verdict.modules.graft[0].d_abs_mean / 2
