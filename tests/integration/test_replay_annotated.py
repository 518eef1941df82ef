"""Annotations in the trace are the third party of a replay: the same verdict as of a dump, joined by request ids."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.dumps import Trained
from helpers.factories import write_trace
from helpers.third import Scored, score
from helpers.trained import NUM_PROMPT, NUM_REQUESTS, NUM_TOKENS, World
from tracekit.cli.main import main
from tracekit.client.annotations import Annotations, annotation
from tracekit.diagnose.verdict import Verdict, judge
from tracekit.replay.annotated import annotated_view
from tracekit.trace.annotated import read_annotations
from tracekit.trace.reader import Trace, open_trace, open_traces
from tracekit.trace.seal import seal_trace
from tracekit.trace.tally import FIRST_TRAINER

NOTHING = dict.fromkeys(
    ("run", "engine_id", "train_step", "group", "reward", "advantage", "old_logprob", "token_ids"), None
)


@dataclass
class Job:
    """A run that is scored once, and a trainer that annotates."""

    world: World
    folder: Path
    scored: Scored
    number: int = 0

    def annotated(self, *said: dict[str, Any]) -> Trace:
        encoder = Annotations()
        for one in said:
            encoder.add(annotation(**{**NOTHING, "index": 0, **one}))
        self.number += 1
        path = self.folder / f"said-{self.number}.arrow"
        write_trace(path, [encoder.take()], engine=FIRST_TRAINER, engine_id="f" * 32)
        return open_traces([self.folder / "t.arrow", path])

    def verdict(self, *said: dict[str, Any]) -> Verdict:
        trace = self.annotated(*said)
        view = annotated_view(self.scored.rollouts, trace)
        assert view is not None
        return judge(replace(self.scored.run, view=view), **self.scored.how).verdict

    def olds(self, change: Any = lambda world, s: s.old) -> list[dict[str, Any]]:
        sequences = self.world.trained()
        return [{"request_id": f"request-{i}", "old_logprob": change(self.world, s)} for i, s in enumerate(sequences)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("annotated")
    world = World(folder)
    return Job(world, folder, score(world.trace(folder / "t.arrow"), world.folder))


def test_a_trainer_without_a_fault_is_clean_whatever_it_says_and_when(job: Job) -> None:
    olds = job.olds()
    rewards = [{"request_id": one["request_id"], "reward": 1.0, "advantage": 0.5} for one in olds]
    ids = [
        {"request_id": one["request_id"], "token_ids": s.ids} for one, s in zip(olds, job.world.trained(), strict=True)
    ]
    for said in (olds, [*rewards, *olds], [*olds, *rewards], [*ids, *rewards, *olds]):
        verdict = job.verdict(*said)
        assert (verdict.layer, verdict.causes, verdict.withheld) == ("none", [], [])
        assert verdict.party is not None and verdict.party.fault == "none"
        assert verdict.party.num_tokens == NUM_REQUESTS * NUM_TOKENS and verdict.party.num_unknown == 0
        assert verdict.party.trainer_scorer.d_abs_max < 1e-4


def shifted(world: World, s: Trained) -> list[float]:
    return world.forward(s.ids)[NUM_PROMPT - 1 : -1]


def without_temperature(world: World, s: Trained) -> list[float]:
    return world.forward(s.ids, 1.0)[NUM_PROMPT:]


def whole_sequence(world: World, s: Trained) -> list[float]:
    return world.forward(s.ids)


def cut(world: World, s: Trained) -> list[float]:
    return s.old[:-5]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (shifted, "trainer shifted"),
        (without_temperature, "trainer reading"),
        (whole_sequence, "trainer completion extended"),
        (cut, "trainer completion truncated"),
    ],
)
def test_the_trainers_fault_is_named(job: Job, change: Any, code: str) -> None:
    verdict = job.verdict(*job.olds(change))
    assert code in [cause.code for cause in verdict.causes] and verdict.party is not None
    assert verdict.party.fault == "trainer"


def test_ids_that_differ_are_named_with_their_position(job: Job) -> None:
    said = []
    for one, s in zip(job.olds(), job.world.trained(), strict=True):
        ids = [s.prompt[0], *s.ids]
        said.append({**one, "token_ids": ids, "old_logprob": job.world.forward(ids)[NUM_PROMPT + 1 :]})
    (cause,) = job.verdict(*said).causes
    assert (cause.code, cause.numbers["position"]) == ("trainer double bos", 1)


def test_what_fits_no_request_or_several_is_counted_and_is_no_pass(job: Job) -> None:
    olds = job.olds()
    verdict = job.verdict(*olds, {"request_id": "nobody", "old_logprob": [0.0]})
    assert verdict.party is not None and verdict.party.num_unknown == 1 and verdict.withheld == []
    verdict = job.verdict(*olds[1:], {**olds[0], "old_logprob": [0.0] * 99, "token_ids": [1, 2, 3]})
    assert [remark.code for remark in verdict.withheld] == ["not joined"]


def test_ids_are_looked_up_as_the_callers_then_as_the_engines_with_engine_and_run(job: Job) -> None:
    engine_id = job.scored.trace.engines()[0]["engine_id"]
    trace = job.annotated(
        {"request_id": "request-0", "reward": 1},
        {"request_id": "internal-1", "index": 4, "reward": 2},
        {"request_id": "request-2", "engine_id": engine_id, "run": "a", "reward": 3},
        {"request_id": "request-3", "engine_id": "e" * 32, "reward": 4},
        {"request_id": "request-4", "index": 1, "reward": 5},
        {"request_id": "request-0", "reward": 6, "train_step": 7},
    )
    found = read_annotations(trace)
    assert {key: said["reward"] for key, said in found.of_request.items()} == {(0, 0): 6, (0, 1): 2, (0, 2): 3}
    assert found.of_request[0, 0]["train_step"] == 7 and (len(found.unknown), found.num_ambiguous) == (2, 0)


def test_rewards_alone_are_no_party(job: Job) -> None:
    assert annotated_view(job.scored.rollouts, job.annotated({"request_id": "request-0", "reward": 1})) is None


def test_replay_takes_them_from_the_trace_and_a_dump_goes_before(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "annotated.arrow"
    seal_trace(job.annotated(*job.olds(without_temperature)), path)
    assert open_trace(path).complete and open_trace(path).table("annotations").num_rows == NUM_REQUESTS
    command = ["replay", str(path), "--model", str(job.world.folder), "--dtype", "float32"]
    with pytest.raises(SystemExit) as done:
        main(command)
    said = capsys.readouterr().out
    assert done.value.code == 4 and "trainer (annotations in the trace): the engine agrees with the scorer" in said
    names = ("prompt_ids", "completion_ids", "old_logprob")
    rows = [dict(zip(names, (s.prompt, s.completion, s.old), strict=True)) for s in job.world.trained()]
    (tmp_path / "dump.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit) as done:
        main([*command, "--trainer", str(tmp_path / "dump.json"), "--json"])
    party = json.loads(capsys.readouterr().out)["verdict"]["party"]
    assert done.value.code == 0 and (party["format"], party["fault"]) == ("rows", "none")
