"""Checkpoints that labels name: the last one of a version, where all engines that sampled under it agree."""

from helpers.factories import make_tables, make_weights, write_spool
from tracekit.replay.claims import Claim, find_claims
from tracekit.trace.reader import open_trace


def labelled(rows):
    """The weights table with a label for each (version, label, checkpoint, adapter)."""
    made = make_weights(*range(len(rows)))
    made["weight_version"][:] = [version for version, *_ in rows]
    made["label"], made["checkpoint"], made["lora"] = ([row[i] for row in rows] for i in (1, 2, 3))
    return made


def test_the_last_label_counts_and_engines_must_agree(tmp_path):
    first = [(1, None, None, None), (1, "a", "/a", None), (1, "b", "/b", None), (1, "c", None, None)]
    first += [(2, "x", "/x", None), (3, "l", "/l", "adapter"), (4, "d", "/d", None)]
    second = [(1, "b2", "/b", None), (2, "y", "/y", None), (5, "e", "/e", None)]
    for number, rows in enumerate((first, second)):
        tables = {**make_tables(engine=False), "weights": labelled(rows)}
        write_spool(tmp_path / "spool", [tables], engine=number, engine_id=f"{number}" * 32)
    rows = open_trace(tmp_path / "spool").table("weights").to_pylist()
    both = [(engine, version) for engine in (0, 1) for version in range(6)]
    assert find_claims(rows, both) == {1: Claim("b2", "/b")}
    assert set(find_claims(rows, [(0, v) for v in range(6)])) == {1, 2, 4}
    assert find_claims(rows, [(0, 4), (1, 5)]) == {4: Claim("d", "/d"), 5: Claim("e", "/e")}
    assert not Claim("d", str(tmp_path / "none")).is_here and Claim("d", str(tmp_path)).is_here
