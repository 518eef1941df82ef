"""What is recorded of an engine that runs already is what a replay, doctor and three daemons in turn need of it.

One engine of each generation, in an environment that holds nothing of ours, is attached to again and again.
"""

import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from helpers.driven import Driven
from helpers.engine import wait_for
from helpers.wire import DaemonProcess
from tracekit.audit.doctor.examine import examine
from tracekit.audit.live.compare import compare
from tracekit.audit.live.counters import CACHED, GENERATION, HITS, IN_FLIGHT, QUERIES, read_counters
from tracekit.errors import ReplayRefused, UsageError
from tracekit.jobs.recorder_wheel import recorder_wheel
from tracekit.recorder.redact import Redaction
from tracekit.replay.runner import replay
from tracekit.trace.reader import Trace, open_trace, open_traces
from tracekit.trace.seal import seal_trace

pytestmark = pytest.mark.engine

FACTOR = 1.25


def prompt(number: int, length: int = 20) -> list[int]:
    return [1000 + 100 * number + at for at in range(length)]


@pytest.fixture(scope="module", params=["v0", "v1", "latest"])
def engine(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Driven]:
    driven = Driven(request.param, tiny_model, tmp_path_factory.mktemp(f"driven-{request.param}"))
    yield driven
    driven.end()


@pytest.fixture
def daemon(short_path: Path) -> Iterator[DaemonProcess]:
    process = DaemonProcess(short_path).start()
    yield process
    process.end()


def sealed(daemon: DaemonProcess, status: int = 0) -> Trace:
    assert daemon.stop() == status, daemon.stderr()
    return open_trace(daemon.out)


def means(engine: Driven) -> str:
    """What the engine reports, as a replay is told what the trainer takes it for."""
    return "processed" if engine.name == "v0" else "raw"


def test_nothing_is_installed_and_nothing_of_ours_is_on_a_step(engine: Driven) -> None:
    wheel = str(recorder_wheel())
    place, plugins = engine.do("found")
    assert place.startswith(wheel) and [plugin.rstrip("/") for plugin in plugins] == [wheel]
    assert engine.do("ours") == [[], 0]


def test_what_is_attached_to_in_the_middle_replays_clean(
    engine: Driven, daemon: DaemonProcess, tiny_model: Path
) -> None:
    engine.do("add", name="under-way", prompt=prompt(0), max_tokens=24)
    engine.do("add", name="looks-back", prompt=prompt(1), max_tokens=24, presence_penalty=0.5)
    engine.do("steps", number=6)
    engine.start(daemon.address)
    engine.do("steps", number=4)
    engine.do("add", name="later", prompt=prompt(2), max_tokens=12)
    engine.do("steps")
    engine.stop()
    trace = sealed(daemon)
    assert examine(trace, engine.do("view")).violations == []
    with pytest.raises(ReplayRefused, match="attached"):
        replay(trace, tiny_model, expect=means(engine))
    found = replay(trace, tiny_model, expect=means(engine), weights={1: tiny_model}, dtype="float32").result
    assert found.verdict.layer == "none", found.verdict
    assert (found.data.num_rollouts, found.data.num_tokens) == (2, 18 + 12)
    assert [(skip.parameter, skip.count) for skip in found.data.skipped_requests] == [("presence_penalty", 1)]


def test_weights_that_changed_before_are_unknown_and_a_fault_behind_is_found_at_its_token(
    engine: Driven, daemon: DaemonProcess, tiny_model: Path, tmp_path: Path
) -> None:
    engine.do("scale", factor=FACTOR)  # before anybody was there
    trained = shutil.copytree(tiny_model, tmp_path / "trained")
    tensors = load_file(trained / "model.safetensors")
    norm = tensors["model.norm.weight"]
    norm[: len(norm) // 2] *= FACTOR
    save_file(tensors, trained / "model.safetensors")
    for number in range(3):
        engine.do("add", name=f"clean-{number}", prompt=prompt(3 + number), max_tokens=24)
    engine.do("steps", number=5)
    engine.start(daemon.address)
    engine.do("steps")
    engine.do("add", name="hurt", prompt=prompt(6), max_tokens=24)
    engine.do("steps", number=11)
    engine.do("scale", factor=1.5)
    engine.do("steps")
    engine.do("scale", factor=1 / 1.5 / FACTOR)
    engine.stop()
    trace = sealed(daemon)
    with pytest.raises(ReplayRefused, match=r"version 1.*add --weights 1=FOLDER.*attached, and nobody said"):
        replay(trace, tiny_model, expect=means(engine))
    stale = replay(trace, expect=means(engine), weights={1: tiny_model}, dtype="float32").result.verdict
    assert stale.layer != "none" and any("model.norm.weight" in cause.names for cause in stale.causes)
    found = replay(trace, expect=means(engine), weights={1: trained}, dtype="float32")
    verdict = found.result.verdict
    assert verdict.layer == "inference path" and verdict.since.output_index == 11
    assert verdict.rollouts[verdict.since_rollout].request_id.startswith("hurt")
    if means(engine) == "raw":
        wrong = replay(trace, expect="processed", weights={1: trained}, dtype="float32").result.verdict
        assert (wrong.layer, wrong.semantic.kind) == ("semantic", "raw")


def test_a_start_takes_all_that_record_takes_and_a_stop_leaves_nothing(
    engine: Driven, daemon: DaemonProcess, tiny_model: Path, tmp_path: Path
) -> None:
    states = tmp_path / "states"
    engine.do("add", name="before-states", prompt=prompt(10), max_tokens=40, logprobs=None)
    engine.do("steps", number=3)
    engine.start(daemon.address, sample=0.5, logprobs="both", probe=str(states))
    for number in range(15):
        engine.do("add", name=f"states-{number}", prompt=prompt(11 + number), max_tokens=4, logprobs=None)
    engine.do("steps", number=2)
    wraps, on_modules = engine.do("ours")
    assert wraps and on_modules
    engine.do("steps")
    engine.stop()
    assert engine.do("ours") == [[], 0]
    trace = sealed(daemon)
    own = [row for row in trace.table("requests").to_pylist() if row["external_id"].startswith("states-")]
    assert 0 < len(own) < 15
    tokens = trace.table("tokens").to_pylist()
    assert {row["request"] for row in tokens} >= {row["request"] for row in own}
    assert all(row["raw_logprob"] is not None and row["processed_logprob"] is not None for row in tokens)
    found = replay(trace, expect=means(engine), weights={1: tiny_model}, dtype="float32", probes=states).result
    assert found.verdict.layer == "none" and found.verdict.modules.suspects == []
    assert found.verdict.modules.num_requests == min(4, len(own))  # all that are probed are of the half


def test_prompts_and_tokens_are_redacted_where_the_start_asks_for_it(
    engine: Driven, daemon: DaemonProcess, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    engine.start(daemon.address, redact=str(key))
    engine.do("add", name="hidden", prompt=prompt(40), max_tokens=6)
    engine.do("steps")
    engine.stop()
    trace = sealed(daemon)
    hashed = Redaction(key.read_bytes())
    (row,) = [row for row in trace.table("requests").to_pylist() if row["external_id"].startswith("hidden")]
    assert row["prompt_token_ids"] == hashed.ids(prompt(40), range(20)).tolist()
    assert max(trace.table("tokens")["token_id"].to_pylist()) > 1 << 24  # no vocabulary has it
    with pytest.raises(UsageError, match="redacted"):
        replay(trace, expect=means(engine))


def test_lossless_waits_no_longer_than_it_was_told(engine: Driven, daemon: DaemonProcess) -> None:
    engine.do("told", window=65536, ahead=16)
    engine.start(daemon.address, lossless=True, max_stall_ms=300)
    for number in range(6):
        engine.do("add", name=f"stalled-{number}", prompt=prompt(20 + number), max_tokens=400, logprobs=20)
    engine.do("steps", number=2)
    daemon.signal(signal.SIGSTOP)
    engine.do("steps")  # comes back: it does not wait for ever
    daemon.signal(signal.SIGCONT)
    engine.stop()
    engine.do("told")
    trace = sealed(daemon, 3)
    assert "the engine has waited 0.3 seconds for the daemon: now rows are dropped" in engine.log.read_text()
    lost: Counter[str] = Counter()
    for loss in trace.all_losses():
        lost.update(loss.rows)
    assert trace.rows("stalls") + lost["stalls"] and lost["tokens"]
    assert trace.rows("tokens") + lost["tokens"] == 6 * 400


def test_what_the_engine_counts_is_no_less_than_what_was_recorded_of_it(engine: Driven, daemon: DaemonProcess) -> None:
    engine.do("add", name="uncounted", prompt=prompt(30), max_tokens=9)
    engine.do("steps", number=4)
    engine.start(daemon.address)
    engine.do("add", name="counted", prompt=prompt(31), max_tokens=9)
    engine.do("steps")
    text = read_counters(engine.do("metrics"))
    wait_for(lambda: open_trace(daemon.spool).rows("finishes") == 2, "what is told")
    (report,) = compare(open_trace(daemon.spool), text, text)
    assert report.violations == [] and report.not_compared.keys() <= {CACHED, QUERIES, HITS}
    at = {one.name: one for one in report.compared}
    assert at[GENERATION].high is None and at[GENERATION].low == 5 + 9 < at[GENERATION].after
    assert (at[IN_FLIGHT].low, at[IN_FLIGHT].high, at[IN_FLIGHT].after) == (0, 0, 0)
    engine.stop()
    sealed(daemon)


def at_address_of(daemon: DaemonProcess, folder: Path) -> DaemonProcess:
    """Another daemon at the same address, whose disk is another."""
    other = DaemonProcess(daemon.socket.parents[1], grace_secs=0.1)
    other.argv = [word.replace(str(daemon.socket.parents[1]), str(folder)) for word in other.argv]
    other.argv[other.argv.index("--listen") + 1] = daemon.address
    other.spool, other.out = folder / "spool", folder / "out.arrow"
    return other


def test_a_job_outlives_three_daemons_and_what_no_file_has_is_lost_to_the_row(
    engine: Driven, short_path: Path, tmp_path: Path
) -> None:
    first = DaemonProcess(short_path, grace_secs=0.1)
    second = at_address_of(first, tmp_path)
    third = DaemonProcess(short_path / "else")
    (short_path / "else").mkdir()
    daemons = (first, second, third)
    try:
        engine.do("told", close_secs=1)
        engine.do("add", name="long", prompt=prompt(40), max_tokens=96)
        engine.do("steps", number=5)
        engine.start(first.start().address)
        engine.do("steps", number=20)
        wait_for(lambda: open_trace(first.spool).rows("tokens") > 10, "rows")
        engine.do("steps", number=3)
        first.kill()
        engine.do("steps", number=6)  # nobody is there
        second.start()
        engine.do("steps", number=8)
        wait_for(lambda: second.spool.exists() and open_trace(second.spool).rows("tokens") > 8, "rows")
        second.kill()
        engine.do("steps", number=7)  # nobody comes
        engine.tell("stop")
        engine.do("steps", number=2)
        wait_for(lambda: engine.tell("look")["state"] == "dormant", "the end of the recording")
        engine.start(third.start().address)
        engine.do("steps")
        engine.stop()
        engine.do("told")
        assert third.stop() == 0
        # both come back to seal what they have; the note of what was not delivered lies beside their socket
        assert first.start().stop() == 3 and second.start().stop() == 3
    finally:
        for daemon in daemons:
            daemon.end()
    whole = open_traces([daemon.out for daemon in daemons])
    for alone in (first, second):
        assert not open_trace(alone.out).complete
    sampled = next(seen for seen in engine.do("view") if seen["request_id"] == "long")["token_ids"]
    stored = sorted(
        (row["position"] - 20, row["token_id"]) for row in whole.table("tokens").to_pylist() if row["position"] >= 20
    )
    lost: Counter[str] = Counter()
    for loss in whole.all_losses():
        lost.update(loss.rows)
    missing = [at for at in range(5, 96) if (at, sampled[at]) not in stored]
    assert lost["tokens"] and missing == list(range(missing[0], missing[-1] + 1))
    # two ran between the stop and the next start, which nobody was to record
    assert len(missing) == lost["tokens"] + 2 and len({at for at, _ in stored}) == len(stored)
    assert examine(whole).violations == [] and examine(whole).exit_code == 3
    report = seal_trace(whole, tmp_path / "merged.arrow")
    assert open_trace(tmp_path / "merged.arrow").all_losses() == whole.all_losses() and report
