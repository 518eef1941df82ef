"""Three parties: an engine and a trainer that are transformers' own forward, faults in the trainer's dump, each named.

The engine's values are the tiny model's in float32; the trainer's are the same forward over what the trainer saw, so
that every fault is one that a trainer really makes: another temperature, other ids, sequences that see others.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.dumps import WRITERS, Trained, completions, prime_rl, rows_zst, trl
from helpers.third import Scored, score
from helpers.tiny_models import write_model
from helpers.trained import NUM_PROMPT, NUM_REQUESTS, NUM_TOKENS, TEMPERATURE, World
from tracekit.cli.main import main
from tracekit.errors import ReplayRefused
from tracekit.replay.runner import replay


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trace(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.trace(tmp_path_factory.mktemp("trace") / "t.arrow")


def judged(trace: Path, world: World, dump: Path, **how: Any) -> Any:
    return replay(trace, world.folder, dtype="float32", trainer=dump, **how).result


@pytest.fixture(scope="module")
def scored(world: World, trace: Path) -> Scored:
    return score(trace, world.folder)


@pytest.mark.parametrize("name", WRITERS)
def test_a_trainer_without_a_fault_is_clean_in_every_format(
    tmp_path: Path, world: World, scored: Scored, name: str
) -> None:
    verdict = scored.verdict(WRITERS[name](tmp_path, world.trained()))
    assert (verdict.layer, verdict.causes, verdict.withheld) == ("none", [], [])
    assert (verdict.party.format, verdict.party.fault) == (name, "none")
    assert verdict.party.num_rollouts == NUM_REQUESTS
    assert verdict.party.num_tokens == NUM_REQUESTS * NUM_TOKENS
    assert verdict.party.trainer_scorer.d_abs_max < 1e-4


def temperature_missing(world: World, s: Trained) -> Trained:
    return replace(s, old=world.forward(s.ids, 1.0)[NUM_PROMPT:])


def double_bos(world: World, s: Trained) -> Trained:
    ids = [s.prompt[0], *s.ids]
    return replace(s, prompt=ids[: NUM_PROMPT + 1], old=world.forward(ids)[NUM_PROMPT + 1 :])


def other_prompt(world: World, s: Trained) -> Trained:
    ids = [*s.prompt[:2], 7, *s.ids[3:]]
    return replace(s, prompt=ids[:NUM_PROMPT], old=world.forward(ids)[NUM_PROMPT:])


def truncated(world: World, s: Trained) -> Trained:
    return Trained(s.prompt, s.completion[:-5], s.old[:-5], s.rollout[:-5])


def retokenised(world: World, s: Trained) -> Trained:
    ids = [*s.ids[:12], 9, 10, *s.ids[13:]]
    values = world.forward(ids)[NUM_PROMPT:]
    return Trained(s.prompt, ids[NUM_PROMPT:], values, values)


def mask_late(world: World, s: Trained) -> Trained:
    return replace(s, mask=[0] + [1] * (NUM_TOKENS - 1))


def shifted_by_one(world: World, s: Trained) -> Trained:
    return replace(s, old=world.forward(s.ids)[NUM_PROMPT - 1 : -1])


def wrong_entry(world: World, s: Trained) -> Trained:
    number = world.ids[:, :NUM_PROMPT].tolist().index(s.prompt)
    return replace(s, rollout=[logprob for _, logprob in world.tops[number]])


def held_shifted(world: World, s: Trained) -> Trained:
    return replace(s, rollout=[s.rollout[0], *s.rollout[:-1]])


def sentinel(world: World, s: Trained) -> Trained:
    return replace(s, rollout=[*s.rollout[:3], -9999.0, *s.rollout[4:]])


def padded_vocabulary(world: World, s: Trained) -> Trained:
    """1,024 more rows whose logit is that of a vector of zeros."""
    with torch.inference_mode():
        logits = world.model(torch.tensor([s.ids])).logits[0, :-1] / TEMPERATURE
    logits = torch.cat([logits, torch.zeros(len(logits), 1024)], dim=1).log_softmax(-1)
    own = logits.gather(1, torch.tensor(s.ids[1:])[:, None])[:, 0]
    return replace(s, old=own.tolist()[NUM_PROMPT - 1 :])


FAULTS: dict[str, tuple[Callable[[World, Trained], Trained], str]] = {
    "the temperature is missing": (temperature_missing, "trainer reading"),
    "the template and the tokenizer both add the first token": (double_bos, "trainer double bos"),
    "another prompt": (other_prompt, "trainer prompt differs"),
    "a truncated completion": (truncated, "trainer completion truncated"),
    "a completion that was tokenized again": (retokenised, "trainer completion differs"),
    "old logprobs of the token before": (shifted_by_one, "trainer shifted"),
    "the first entry of the engine's dict": (wrong_entry, "trainer wrong entry"),
    "the engine's logprobs of the token before": (held_shifted, "trainer holds shifted"),
    "a floor where a logprob is missing": (sentinel, "trainer sentinel"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_trainers_fault_is_named(tmp_path: Path, world: World, scored: Scored, name: str) -> None:
    change, code = FAULTS[name]
    verdict = scored.verdict(rows_zst(tmp_path, [change(world, s) for s in world.trained()]))
    assert verdict.layer == "semantic"
    assert [cause.code for cause in verdict.causes] == [code]
    assert verdict.causes[0].names[0] == "trainer" and verdict.party.fault == "trainer"
    assert verdict.party.engine_scorer.d_abs_max < 1e-4
    assert not verdict.party.objective or not verdict.party.objective.below_is_clean


def test_ids_that_differ_are_told_with_position_and_ids(tmp_path: Path, world: World, scored: Scored) -> None:
    """TRL#3853: engine and trainer hold other prompts, and every numeric comparison of the two is noise."""
    (cause,) = scored.verdict(rows_zst(tmp_path, [double_bos(world, s) for s in world.trained()])).causes
    first, second = (str(world.ids[0][i]) for i in (0, 1))
    assert (cause.numbers["position"], cause.numbers["count"]) == (1, NUM_REQUESTS)
    assert cause.names[1].split()[0] == second and cause.names[2].split()[0] == first


def test_a_mask_that_is_late_is_named_in_a_dump_of_whole_sequences(
    tmp_path: Path, world: World, scored: Scored
) -> None:
    rows = [
        {
            "token_ids": [*s.ids, 0],
            "mask": [0] * (NUM_PROMPT + 1) + [1] * NUM_TOKENS,
            "old_logprob": [*world.forward(s.ids), 0],
        }
        for s in world.trained()
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (cause,) = scored.verdict(tmp_path / "d.json").causes
    assert (cause.code, cause.numbers["shift"]) == ("trainer mask shifted", 1)


def test_a_padded_vocabulary_is_an_offset_to_one_side(tmp_path: Path, world: World, scored: Scored) -> None:
    verdict = scored.verdict(rows_zst(tmp_path, [padded_vocabulary(world, s) for s in world.trained()]))
    assert verdict.party.fault == "trainer" and verdict.party.trainer_scorer.d_mean < -0.1
    assert verdict.causes[0].code in ("trainer offset", "trainer unexplained")


def test_packed_sequences_that_see_each_other_are_named(tmp_path: Path, world: World, trace: Path) -> None:
    found, before = [], []
    for s in world.trained():
        found.append(replace(s, old=world.forward([*before, *s.ids])[len(before) + NUM_PROMPT :]))
        before += s.ids
    (cause,) = judged(trace, world, prime_rl(tmp_path, found)).verdict.causes
    assert (cause.code, cause.layer) == ("trainer packed", "inference path")
    assert cause.share > 0.9 and cause.margin > 5


def test_left_padding_that_is_seen_is_named(tmp_path: Path, world: World, trace: Path) -> None:
    """A batch whose longest prompt has four tokens more, and a forward without an attention mask."""
    longer = Trained([9] * (NUM_PROMPT + 4), [10, 11], [-1.0, -1.0], [-1.0, -1.0])
    found = [replace(s, old=world.forward([0] * 4 + s.ids)[4 + NUM_PROMPT :]) for s in world.trained()]
    verdict = judged(trace, world, trl(tmp_path, [*found, longer])).verdict
    assert [cause.code for cause in verdict.causes] == ["trainer padded"]
    assert verdict.party.num_unknown == 1


def test_weights_that_nobody_named_are_not_explained_away(tmp_path: Path, world: World, scored: Scored) -> None:
    rng = np.random.default_rng(0)
    found = [replace(s, old=(np.array(s.old) + rng.normal(0, 0.4, NUM_TOKENS)).tolist()) for s in world.trained()]
    (cause,) = scored.verdict(rows_zst(tmp_path, found)).causes
    assert (cause.code, cause.layer) == ("trainer unexplained", "inference path")


def test_the_engines_fault_stays_the_engines(tmp_path: Path, world: World) -> None:
    raw = [world.forward(row.tolist(), 1.0)[NUM_PROMPT:] for row in world.ids]
    trace = world.trace(tmp_path / "raw.arrow", raw, mode="raw_logprobs")
    sequences = [replace(s, rollout=r) for s, r in zip(world.trained(), raw, strict=True)]
    scored = score(trace, world.folder)
    verdict = scored.verdict(rows_zst(tmp_path, sequences))
    assert [cause.code for cause in verdict.causes] == ["other reading"]
    assert verdict.party.fault == "engine" and verdict.party.trainer_scorer.d_abs_max < 1e-4
    trained, right = (verdict.party.objective.as_trained[0], verdict.party.objective.engine_corrected[0])
    assert trained.backend.clip_rate > 0.2 and right.backend.clip_rate == 0 and trained.policy.clip_rate == 0
    assert not verdict.party.objective.below_is_clean
    both = [
        replace(s, completion=s.completion[:-1], old=s.old[:-1], rollout=s.rollout[:-1], mask=s.mask[:-1])
        for s in sequences
    ]
    assert judged(trace, world, rows_zst(tmp_path / "both", both)).verdict.party.fault == "both"


def test_a_trainer_that_copied_the_engines_values_is_told(tmp_path: Path, world: World) -> None:
    """verl's bypass mode: the ratio is 1 whatever the engine does."""
    rng = np.random.default_rng(0)
    noisy = [np.float32(np.array(e) - rng.exponential(1e-6, NUM_TOKENS)).tolist() for e in world.engine]
    trace = world.trace(tmp_path / "t.arrow", noisy)
    sequences = [replace(s, old=r, rollout=r) for s, r in zip(world.trained(), noisy, strict=True)]
    verdict = score(trace, world.folder).verdict(rows_zst(tmp_path, sequences))
    assert verdict.party is not None and verdict.party.copied and verdict.party.fault == "none"
    assert (verdict.layer, verdict.withheld) == ("none", [])


def test_where_both_agree_with_each_other_the_scorer_is_the_odd_one(tmp_path: Path, world: World, trace: Path) -> None:
    other = write_model(tmp_path / "other", "llama", seed=9)
    own = [replace(s, old=(np.array(s.old) - 1e-5).tolist()) for s in world.trained()]
    found = replay(trace, other, dtype="float32", trainer=rows_zst(tmp_path, own)).result.verdict
    assert found.party.fault == "neither agrees with the scorer"
    assert "trainer agrees with engine" in [cause.code for cause in found.causes]


def test_the_clients_view_alone_withholds_the_trainers_side(tmp_path: Path, world: World, trace: Path) -> None:
    found = judged(trace, world, completions(tmp_path, world.trained()))
    assert (found.outcome, found.exit_code) == ("withheld", 1)
    assert found.verdict.party.fault == "not known" and found.verdict.party.objective is None
    assert [remark.code for remark in found.verdict.withheld] == ["not compared"]


def test_a_dump_of_another_run_is_refused(tmp_path: Path, world: World, trace: Path) -> None:
    with pytest.raises(ReplayRefused, match="of 1 sequence in the trainer's dump"):
        judged(trace, world, rows_zst(tmp_path, [Trained([50, 51], [52], [-1.0], [-1.0])]))


def test_the_updated_policy_and_the_clip_range_are_the_objectives(tmp_path: Path, world: World, trace: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"prompt_ids": s.prompt, "completion_ids": s.completion, "old_logprob": s.old, "version": 0, "train_version": 2,
         "current_logprob": (np.array(s.old) + rng.normal(0, 0.2, NUM_TOKENS)).tolist()}
        for s in world.trained()
    ]  # fmt: skip
    (tmp_path / "d.json").write_text(json.dumps(rows))
    found = judged(trace, world, tmp_path / "d.json", clip=(0.1, 0.3))
    objective = found.verdict.party.objective
    assert found.exit_code == 0 and objective.below_is_clean and objective.has_current
    assert (objective.clip_low, objective.clip_high, objective.clip_source, objective.lag.mean) == (
        0.1,
        0.3,
        "given",
        2,
    )
    token = objective.as_trained[0]
    assert token.backend.clip_rate == 0 and token.policy.clip_rate == token.total.clip_rate > 0.1


@pytest.fixture
def tracekit(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main(["replay", *map(str, args)])
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return run


def test_the_command_says_whose_fault_it_is_and_shows_the_frameworks_own_metrics(
    tmp_path: Path, world: World, trace: Path, tracekit: Callable[..., tuple[int, str, str]]
) -> None:
    dump = trl(tmp_path, [temperature_missing(world, s) for s in world.trained()])
    code, out, _ = tracekit(
        trace, "--model", world.folder, "--dtype", "float32", "--trainer", dump, "--clip", "0.2,0.28"
    )
    assert code == 4
    assert "VERDICT: semantic mismatch" in out
    assert "The trainer's old_logprobs are raw ones and not processed" in out
    assert "the engine agrees with the scorer: the trainer's side is off" in out
    assert "divide the trainer's logits by the temperature" in out
    assert "clip range 0.8 to 1.28 (given)" in out and "nothing is to be blamed on the objective" in out
    line = next(line for line in out.splitlines() if "sampling_logp_difference/mean" in line)
    d = np.abs(
        np.concatenate(
            [np.subtract(world.forward(r.tolist(), 1.0), world.forward(r.tolist()))[NUM_PROMPT:] for r in world.ids]
        )
    )
    assert float(line.split()[-1]) == pytest.approx(d.mean(), rel=1e-4)


def test_a_mapping_and_the_trainers_folder_come_from_the_command_line(
    tmp_path: Path, world: World, trace: Path, tracekit: Callable[..., tuple[int, str, str]]
) -> None:
    rows = [{"p": s.prompt, "c": s.completion, "logps": s.old} for s in world.trained()]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    names = [f"--trainer-map={pair}" for pair in ("prompt_ids=p", "completion_ids=c", "old_logprob=logps")]
    arguments = (trace, "--model", world.folder, "--dtype", "float32", "--trainer", tmp_path / "d.json", *names)
    code, out, _ = tracekit(*arguments, "--trainer-config", world.folder, "--json")
    assert code == 0 and json.loads(out)["verdict"]["party"]["format"] == "mapped rows"
    for wrong, says in (
        (("--clip", "2,x"), "expected EPS or LOW,HIGH"),
        (("--trainer-map", "x"), "expected NAME=THEIRS"),
    ):
        code, _, err = tracekit(*arguments, *wrong)
        assert code == 2 and says in err


def test_a_folder_that_is_not_what_the_engine_ran_is_the_trainers_fault_where_it_is_named_as_its(
    tmp_path: Path, world: World
) -> None:
    config = json.loads((world.folder / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    trace = world.trace(tmp_path / "t.arrow", hf=config)
    dump = rows_zst(tmp_path / "d", world.trained())
    (found,) = judged(trace, world, dump, trainer_config=other).verdict.causes
    assert (found.code, found.layer, found.names[0]) == ("trainer config differs", "inference path", "trainer")
    assert "rms_norm_eps" in found.names[1] and "0.001" in found.names[1]
    assert judged(trace, world, dump, trainer_config=other).verdict.party.fault == "trainer"
    assert judged(trace, world, dump, trainer_config=world.folder).verdict.causes == []
    # the folder that is scored is nobody's claim of what the trainer has: its difference stands beside the verdict
    recorded_otherwise = world.trace(tmp_path / "o.arrow", hf={**config, "rms_norm_eps": 1e-3})
    alone = judged(recorded_otherwise, world, dump).verdict
    assert alone.causes == [] and "trainer-config-differs" in [noted.id for noted in alone.noted]


def test_tokens_that_were_drawn_otherwise_put_nobodys_values_off(tmp_path: Path) -> None:
    colder = World(tmp_path, drawn_at=0.3)
    verdict = judged(colder.trace(tmp_path / "t.arrow"), colder, rows_zst(tmp_path / "d", colder.trained())).verdict
    assert [cause.code for cause in verdict.causes] == ["drawn otherwise"]
    assert verdict.party.fault == "none" and verdict.party.engine_scorer.d_abs_max < 1e-5
