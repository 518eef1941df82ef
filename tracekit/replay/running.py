"""Run units, here or elsewhere, and join their scores by key."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from collections.abc import Sequence as Seq
from contextlib import closing
from pathlib import Path

import numpy as np

from tracekit.replay.keeping import Kept
from tracekit.replay.progress import Progress
from tracekit.replay.rollouts import Rollout
from tracekit.replay.scorers import Load, Model, ScorerLike
from tracekit.replay.units import Unit, UnitScores, score_unit
from tracekit.scores import Scores, Values, put, unscored

OnTokens = Callable[[Unit, int], None]
Scored = Generator[tuple[int, UnitScores], None, None]
Mapper = Callable[[Seq[Unit], OnTokens], Scored]
"""Scores units, in any order: yields the index and the scores of each as it is done."""


def locally(load: Load, folders: Mapping[int, Path], on_loaded: Callable[[], None] = lambda: None) -> Mapper:
    """Return what scores units in this process, in their order."""

    def timed(folder: Path, model: Model) -> ScorerLike:
        scorer = load(folder, model)
        on_loaded()
        return scorer

    def score(units: Seq[Unit], on_tokens: OnTokens) -> Scored:
        for number, unit in enumerate(units):

            def advance(num_tokens: int, unit: Unit = unit) -> None:
                on_tokens(unit, num_tokens)

            yield number, score_unit(timed, folders, unit, advance)

    return score


def kind_of(unit: Unit) -> tuple[Model, bool]:
    """What units whose tokens cost as much have in common."""
    return unit.model, unit.share


def totals(units: Iterable[Unit]) -> dict[tuple[Model, bool], int]:
    """Return the tokens of each kind of unit."""
    found: dict[tuple[Model, bool], int] = {}
    for unit in units:
        found[kind_of(unit)] = found.get(kind_of(unit), 0) + unit.num_run_tokens
    return found


def run_units(units: Seq[Unit], score: Mapper, kept: Kept, progress: Progress) -> list[UnitScores]:
    """Score the units that no earlier run left scored; returns the scores of each, in the order of the units.

    Raises:
        KeyboardInterrupt: what was scored until then is kept.
    """
    found = kept.find(units)
    for number in found:
        progress.skip(kind_of(units[number]), units[number].num_run_tokens)
    todo = [number for number in range(len(units)) if number not in found]
    progress.begin()
    scoring = score([units[i] for i in todo], lambda unit, count: progress.advance(kind_of(unit), count))
    with closing(scoring) as done:  # workers end here, whatever else does
        for at, scores in done:
            found[todo[at]] = scores
            kept.keep(units[todo[at]], scores)
    return [found[number] for number in range(len(units))]


def join(rollouts: Seq[Rollout], scores: Iterable[UnitScores]) -> dict[str, Scores[Values]]:
    """Return the scores of each pass over the tokens of all rollouts, NaN where it did not score one."""
    bounds = np.cumsum([0, *(r.num_tokens for r in rollouts)])
    place = {
        (r.sequence.engine, r.sequence.request): slice(int(first), int(end))
        for r, first, end in zip(rollouts, bounds[:-1], bounds[1:], strict=True)
    }
    joined: dict[str, Scores[Values]] = {}
    for of_unit in scores:
        for key, by_pass in of_unit.items():
            for name, its_scores in by_pass.items():
                if its_scores.profile.shape[1]:
                    continue  # of a few tokens: see `tracekit.replay.profiles`
                if name not in joined:
                    joined[name] = unscored(int(bounds[-1]))
                put(joined[name], place[key], its_scores)
    return joined
