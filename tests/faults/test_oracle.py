"""The oracle's short form: what was confirmed is there once, and the counts add up. `make faults` runs the long one."""

import json
import random
import uuid
from collections import Counter

import pytest

from helpers.oracle import ROWS, Judged, judge, trial
from helpers.wire import numbered_tokens
from tracekit.rpc.columns import count_rows
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.spool import SpoolWriter


def test_nothing_that_was_confirmed_is_lost_or_doubled_however_the_daemon_dies(short_path):
    found, kills = trial(short_path / "t", random.Random(7), kills=8)
    print(f"{kills} kills, {found}")
    assert kills >= 8 and found["acked"] > 0 and found.good, str(found)


@pytest.mark.parametrize("fault", ["none", "lost", "doubled", "unbalanced"])
def test_the_judge_sees_what_is_wrong(tmp_path, fault):
    name, produced = uuid.uuid4().hex, Counter()
    with SpoolWriter(tmp_path / "spool") as writer:
        for seq in range(1, 6):
            tables = numbered_tokens((seq - 1) * ROWS, ROWS)
            if fault == "doubled" and seq == 3:
                tables = numbered_tokens((seq - 2) * ROWS, ROWS)
            produced.update(count_rows(tables))
            if fault != "lost" or seq != 5:
                writer.append(to_record_batch(tables, 0), BatchMeta(0, name, seq, dict(produced), {}, seq == 5))
    (tmp_path / f"{name}.acked").write_text(str(5 * ROWS))
    more = fault == "unbalanced"
    (tmp_path / f"{name}.ended").write_text(json.dumps({"produced": {"tokens": 5 * ROWS + more}}))
    found = judge(tmp_path / "spool", tmp_path)
    wrong = {
        "none": {},
        "lost": {"lost": ROWS, "unbalanced": 1},
        "doubled": {"doubled": ROWS, "lost": ROWS},
        "unbalanced": {"unbalanced": 1},
    }[fault]
    assert found == Judged({"trials": 1, "acked": 5 * ROWS} | wrong) and found.good == (fault == "none")
