"""Requests of one prompt in two traces go together by their longest common beginnings."""

import numpy as np

from tracekit.replay.pairs import _match, _Request
from tracekit.scoring.forest import num_common

PROMPT = b"\0\0\0\7"


def requests_of(rng: np.random.Generator, engine: int) -> list[_Request]:
    """Few and short ids, so that many beginnings are alike and some requests are twins."""
    made = []
    for key in rng.permutation(rng.integers(0, 7)).tolist():
        ids = rng.integers(0, 3, rng.integers(0, 6))
        made.append(_Request((engine, key), ids, np.arange(len(ids), dtype=float), np.arange(len(ids))))
    return made


def test_the_longest_common_beginnings_go_together_as_if_all_pairs_had_been_ranked() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        one, other = requests_of(rng, 0), requests_of(rng, 1)
        expected, taken = {}, set()
        ranked = [(-num_common(a.token_ids, b.token_ids), a, b) for a in one for b in other]
        order = lambda r: (r.token_ids.tolist(), r.key)  # noqa: E731
        for num, a, b in sorted(ranked, key=lambda found: (found[0], order(found[1]), order(found[2]))):
            if not {a.key, b.key} & taken:
                taken |= {a.key, b.key}
                expected[a.key, b.key] = -num
        found = list(_match(PROMPT, one, other))
        assert {pair.keys: len(pair.token_ids) for pair in found} == expected
        assert all(len(values) == len(pair.token_ids) for pair in found for values in pair.values)


def test_a_thousand_samples_of_one_prompt_are_paired_without_ranking_a_million_pairs() -> None:
    rng = np.random.default_rng(1)
    sides = [[_Request((side, i), rng.integers(0, 50, 64), *np.zeros((2, 64))) for i in range(1000)] for side in (0, 1)]
    asked = 0

    class Counted(np.ndarray):
        def __ne__(self, other):
            nonlocal asked
            asked += 1
            return np.asarray(self) != np.asarray(other)

    counted = [[_Request(r.key, r.token_ids.view(Counted), r.logprob, r.engine_step) for r in side] for side in sides]
    assert len(list(_match(PROMPT, *counted))) == 1000
    assert asked < 2 * 2000
