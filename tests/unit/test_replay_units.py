"""Units of work: what the whole verdict runs, that nothing is lost on the way, and what an interrupted run leaves."""

import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from helpers.synthetic import Made, make_run
from tracekit.diagnose.data import ACCUSED
from tracekit.diagnose.verdict import judge
from tracekit.replay.history import Computed
from tracekit.replay.keeping import Kept
from tracekit.replay.ladder import Scene, parameters_in_use, plan_further, plan_passes
from tracekit.replay.planning import num_shared, plan_further_units, plan_units
from tracekit.replay.progress import Progress
from tracekit.replay.rollouts import Rollout
from tracekit.replay.running import join, locally, run_units, totals
from tracekit.replay.sampling import spread
from tracekit.replay.scorers import Model
from tracekit.scores import unscored
from tracekit.scoring.params import Params
from tracekit.scoring.spans import SpanScores
from tracekit.scoring.types import Sequence

NUCLEUS = Params(temperature=0.7, top_p=0.9)


def rollouts(num_groups=24, members=4, num_prompt=40, length=60):
    rng = np.random.default_rng(0)
    found = []
    for group in range(num_groups):
        prompt = rng.integers(3, 99, num_prompt).astype("u4")
        for _ in range(members):
            ids = rng.integers(3, 99, length).astype("u4")
            sequence = Sequence(0, len(found), prompt, ids, NUCLEUS)
            version = np.full(length, group % 2)
            found.append(Rollout(sequence, "r", np.zeros(length), version, np.arange(length), np.zeros(length, "i8")))
    return found


class Fake:
    """Scores a token by its id and its folder; counts the positions that run."""

    name, device, vocab_size, packing, arithmetic = "fake", "cpu", 99, "packed", "float32"

    def __init__(self, folder, model, counts):
        self.offset, self.model, self.counts = float(folder.name), model, counts

    def score(self, spans, *, max_batch_tokens, share=True, on_tokens=None):
        seen = set()
        for span in spans:
            prompt = span.sequence.prompt_token_ids.tobytes()
            shared = len(span.sequence.prompt_token_ids) - 1 if share and prompt in seen else 0
            seen.add(prompt)
            self.counts[self.model.dtype] = self.counts.get(self.model.dtype, 0) + span.stop - span.start - shared
        return [SpanScores(tuple(self._scores(span) for _ in span.readings)) for span in spans]

    def _scores(self, span):
        found = unscored(span.num_scored)
        found.raw_logprob[:] = span.sequence.token_ids[slice(*span.outputs)] + self.offset
        return found


def planned(everyone):
    scene = Scene(parameters_in_use(r.sequence.params for r in everyone))
    return plan_units(everyone, plan_passes(Model("bfloat16", "bfloat16"), 2048, scene), lambda version: version)


def scored(units, tmp_path, counts, kept=None, stop_after=None):
    loads = []
    folders = {0: tmp_path / "0", 1: tmp_path / "1000"}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)

    def load(folder, model):
        loads.append((folder, model))
        if stop_after is not None and len(loads) > stop_after:
            raise KeyboardInterrupt
        return Fake(folder, model, counts)

    with Progress("replay", totals(units), quiet=True) as progress:
        kept = kept or Kept(None, folders, "")
        return run_units(units, locally(load, folders), kept, progress), loads


def test_the_whole_verdict_runs_at_most_two_and_a_half_passes(tmp_path):
    everyone, counts = rollouts(), {}
    units = planned(everyone)
    found, _ = scored(units, tmp_path, counts)
    groups, members = 24, 4
    one_pass = groups * (39 + members * 60)
    assert one_pass < sum(counts.values()) <= 2.3 * one_pass  # and the scorer against itself, a fifth at most
    assert num_shared(units)[0] == sum(counts.values())
    joined = join(everyone, found)
    whole = np.concatenate([r.sequence.token_ids + 1000.0 * r.weight_version[0] for r in everyone])
    assert np.array_equal(joined["trainer"].raw_logprob, whole)
    for name in ("noise.shape", "noise.precision", "sampling.no_truncation"):
        own = joined[name].raw_logprob
        assert np.isfinite(own).sum() >= 512 and np.array_equal(own[np.isfinite(own)], whole[np.isfinite(own)])


@pytest.mark.parametrize(("num", "length", "passes"), [(200, 1000, 1.3), (48, 512, 2.7)])
def test_where_weights_change_within_rollouts_it_runs_what_the_docs_say(num, length, passes):
    at, prompt = length // 2, 40
    history = (Computed(0, 0, 0, prompt + at - 1), Computed(at, 1, prompt + at - 1, prompt + length - 1))
    version = (np.arange(length) >= at).astype(int)
    everyone = [
        replace(r, weight_version=version, history=history)
        for r in rollouts(num_groups=num, members=1, num_prompt=prompt, length=length)
    ]
    scene = Scene({"temperature", "truncation"}, mixed=True, before=((1, 0),), after=((0, 1),))
    plan = plan_passes(Model("bfloat16", "bfloat16"), 2048, scene)
    one_pass = num * (prompt + length - 1)
    assert sum(unit.cost for unit in plan_units(everyone, plan, int)) == pytest.approx(passes * one_pass, rel=0.03)
    hit = replace(judge(make_run(Made(num_rollouts=num, shift=0.8, shift_rollouts=3))).verdict, layer="inference path")
    asked = plan_further(plan[0], scene, hit)
    for how in asked:
        its = plan_further_units(everyone, plan[0], [replace(how, only=None)], int)
        least = 32 * 1.5 / num if how.at_least > 1 else 0
        assert 0 < sum(unit.cost for unit in its) <= max(0.45 if how.name == ACCUSED else 0.15, least) * one_pass
    assert len(asked) == 3


def test_equal_prompts_are_in_one_unit_and_units_of_a_model_come_together():
    units = [unit for unit in planned(rollouts()) if unit.share and unit.model.dtype == "bfloat16"]
    prompts = [{job.sequence.prompt_token_ids.tobytes() for job in unit.jobs} for unit in units]
    assert sum(len(own) for own in prompts) == len(set.union(*prompts)) == 24
    order = [(unit.model, unit.versions) for unit in planned(rollouts())]
    assert len(list(dict.fromkeys(order))) == 1 + sum(a != b for a, b in pairwise(order))
    assert pickle.loads(pickle.dumps(units[0])).digest() == units[0].digest() != units[1].digest()


def test_an_interrupted_run_goes_on_where_it_was_and_only_with_what_is_the_same(tmp_path):
    units = planned(rollouts())
    folders = {0: tmp_path / "0", 1: tmp_path / "1000"}
    for folder in folders.values():
        folder.mkdir()
        (folder / "weights").write_text("a")

    def kept(arithmetic="one"):
        return Kept(tmp_path / "kept", folders, arithmetic)

    with pytest.raises(KeyboardInterrupt):
        scored(units, tmp_path, {}, kept(), stop_after=5)
    assert len(kept().find(units)) == 5 and not kept("other").find(units)
    whole, _ = scored(units, tmp_path, {})
    resumed, loads = scored(units, tmp_path, {}, kept())
    assert len(loads) == len(units) - 5
    for one, other in zip(whole, resumed, strict=True):
        for key, by_pass in one.items():
            for name, scores in by_pass.items():
                assert other[key][name].raw_logprob.tobytes() == scores.raw_logprob.tobytes()
    (tmp_path / "0" / "weights").write_text("b")
    assert len(kept().find(units)) == sum(unit.versions == (1,) for unit in units)
    (tmp_path / "0" / "weights").unlink()
    for path in Path(tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert not kept().find(units)
    kept().drop(units)


def test_what_is_left_is_weighted_by_what_each_kind_has_cost():
    now = iter([0.0, 0.0, 10.0, 11.0])
    progress = Progress("replay", {"slow": 100, "fast": 100, "new": 50}, quiet=True, clock=lambda: next(now))
    progress.begin()
    progress.advance("slow", 10)
    progress.advance("fast", 50)
    assert progress.secs_left == pytest.approx(90 * 1.0 + 50 / 50 + 50 * 11 / 60)


def test_every_beginning_of_a_spread_is_even():
    for count in (1, 2, 5, 100):
        assert sorted(spread(count)) == list(range(count))
    assert sorted(spread(100)[:8].tolist())[::7] == [0, 96] or np.diff(sorted(spread(128)[:8])).tolist() == [16] * 7


def test_a_file_gets_each_line_of_progress_once(capsys):
    now = iter(float(second) for second in range(0, 360, 12))
    with Progress("replay", {"one": 30}, clock=lambda: next(now)) as progress:
        for _ in range(3):
            progress.advance("one", 10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) and "100% 30/30" in lines[-1], lines
