"""Who gives a place up to whom, where all are taken."""

import pytest

from tracekitd.catalog import Engine
from tracekitd.shares import make_room


@pytest.mark.parametrize(
    ("there", "asks", "has_place", "given_up"),
    [
        ("aaa", "a", True, []),
        ("aaaa", "a", False, []),
        ("aaaa", "b", True, [3]),  # the newest
        ("AAaA", "b", True, [2]),  # who has sent nothing rather
        ("abbb", "a", True, [3]),
        ("aabb", "a", False, []),  # both have as many
        ("abbc", "a", False, []),  # one would have more than the other, either way
        ("aabc", "d", True, [1]),
        ("abcd", "e", False, []),
    ],
)
def test_the_largest_party_gives_up_a_place_to_one_that_has_fewer(there, asks, has_place, given_up):
    engines = [Engine(n, str(n), received_seq=int(c.isupper()), open=True, party=c.lower())
               for n, c in enumerate(there)]  # fmt: skip
    assert make_room(engines, 4, asks) is has_place
    assert [engine.number for engine in engines if not engine.open] == given_up
