"""Times of several engines on one axis."""

from tracekit.trace.clock import wall_offsets

SEC = 10**9


def engine(number: int, host: str, wall_secs: float, mono_secs: float) -> dict[str, object]:
    return {"engine": number, "host": host, "wall_ns": int(wall_secs * SEC), "mono_ns": int(mono_secs * SEC)}


def test_ranks_of_one_machine_keep_their_order_though_its_wall_clock_was_set() -> None:
    found = wall_offsets([engine(0, "a", 1000, 50), engine(1, "a", 1009.5, 60)])  # half a second was taken back
    assert found == {0: 950 * SEC, 1: 950 * SEC}


def test_machines_and_boots_have_clocks_of_their_own_and_who_tells_none_has_none() -> None:
    rows = [engine(0, "a", 1000, 50), engine(1, "b", 1000, 900), engine(2, "a", 5000, 10), {"engine": 3}]
    assert wall_offsets(rows) == {0: 950 * SEC, 1: 100 * SEC, 2: 4990 * SEC}
