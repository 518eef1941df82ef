"""``tracekit doctor`` where rows were lost or shed: what that explains is excused, and nothing else."""

from collections import Counter

import numpy as np
import pytest

from helpers.doctored import asking, at, drop, found, make_shed, put, report_of
from helpers.factories import ENGINE_ID, count_rows, make_tables, write_spool, write_trace
from tracekit.audit.doctor.counters import conserved
from tracekit.audit.doctor.examine import examine
from tracekit.tables import SHED
from tracekit.trace.batch import BatchMeta, batch_of_structs, rows_of, to_record_batch
from tracekit.trace.ledger import Loss, loss_table
from tracekit.trace.reader import open_trace
from tracekit.trace.segments import segment_paths
from tracekit.trace.spool import SpoolWriter


def shed(tables, number):
    """Leave a request out as a recorder does that sheds it; return its rows by table."""
    gone, tables["shed"] = {}, make_shed(tables, number)
    for name in ("requests", "tokens", "scheduled", "finishes"):
        keep = np.flatnonzero(tables[name]["request"] != number)
        gone[name] = len(tables[name]["request"]) - len(keep)
        tables[name] = {
            column: [values[i] for i in keep] if isinstance(values, list) else values[keep]
            for column, values in tables[name].items()
        }
    return gone


@pytest.mark.parametrize("harmed", [False, True])
def test_requests_that_were_shed_excuse_nothing_of_the_others(tmp_path, harmed):
    tables = asking()
    gone = shed(tables, 1)
    if harmed:
        put(tables, "finishes", 0, num_output_tokens=7)
    produced = Counter(count_rows(tables)) + Counter(gone)
    with SpoolWriter(tmp_path / "spool") as writer:
        first = to_record_batch(tables, 0)
        losses = loss_table([Loss(0, 1, 1, SHED, gone)]).to_struct_array().combine_chunks()
        batch = batch_of_structs({name: rows_of(first, name) for name in first.schema.names} | {"losses": losses})
        writer.append(batch, BatchMeta(0, ENGINE_ID, 2, dict(produced), gone, True))
        writer.sync()
    report = examine(open_trace(tmp_path / "spool"))
    assert ("finish-count" in {one.check.id for one in report.violations}) == bool(report.violations) == harmed
    assert report.exit_code == (1 if harmed else 3) and "shed" in str(report.losses[0])


def test_lost_rows_excuse_what_they_explain_and_nothing_else(tmp_path):
    batches = [make_tables(3, 8, first_request=3 * n, first_step=8 * n, engine=n == 0) for n in range(3)]
    report = examine(open_trace(write_spool(tmp_path / "spool", batches, skip={2})))
    assert report.violations == [] and report.exit_code == 3
    assert {"step-hole"} <= {f.check.id for f in report.excused}
    batches[2]["tokens"]["rollout_logprob"][0] = 1.0
    report = examine(open_trace(write_spool(tmp_path / "other", batches, skip={2})))
    assert {f.check.id for f in report.violations} == {"logprob-positive"} and report.exit_code == 1


def test_lost_rows_of_one_table_excuse_the_checks_that_need_it_beside_others(tmp_path):
    tables = asking()
    drop(tables, "tokens", at(tables, "tokens", request=1, position=12))
    loss = {"engine_id": ENGINE_ID, "from_seq": 2, "to_seq": 2, "reason": "no daemon", "rows": {"tokens": 1}}
    report = report_of(tmp_path, tables, last=False, extra_losses=[loss])
    assert {f.check.id for f in report.excused} == {"finish-count", "row-without-token"}
    assert report.violations == [] and report.exit_code == 3


def test_damaged_bytes_of_an_unknown_engine_may_have_held_rows_of_any(tmp_path):
    tables = asking()
    drop(tables, "steps", 3)
    (segment,) = segment_paths(write_spool(tmp_path / "spool", [tables]))
    with open(segment, "ab") as file:
        file.write(b"what a crash left")
    report = examine(open_trace(tmp_path / "spool"))
    assert [(loss.engine, loss.rows) for loss in report.losses] == [(None, {})]
    assert report.violations == [] and "step-hole" in {f.check.id for f in report.excused}


def test_counters_are_conserved(tmp_path):
    write_trace(tmp_path / "t.arrow", [asking()])
    trace = open_trace(tmp_path / "t.arrow")
    (tally,) = trace.tallies.values()
    assert conserved(tally, trace.all_losses()) == []
    (wrong,) = conserved(tally, [Loss(0, 1, 1, "buffer full", {"tokens": 5})])
    assert wrong.examples[0].text == "tokens: produced 16, stored 16, lost 5"


def test_more_rows_than_were_produced_are_a_violation(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        produced = {**count_rows(asking()), "tokens": 15}
        writer.append(to_record_batch(asking(), 0), BatchMeta(0, ENGINE_ID, 1, produced, {}, last=True))
    assert found(examine(open_trace(tmp_path / "spool"))) == {("rows-conserved", None, None)}


def test_rows_that_a_running_engine_counts_and_did_not_send_are_lost_and_no_violation(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        produced = {**count_rows(asking()), "topk": 7}
        writer.append(to_record_batch(asking(), 0), BatchMeta(0, ENGINE_ID, 1, produced))
        writer.sync()
        report = examine(open_trace(tmp_path / "spool"))
    assert [str(loss) for loss in report.losses] == ["engine 0: topk 7 (counted as produced, in no batch)"]
    assert report.violations == [] and report.exit_code == 3
