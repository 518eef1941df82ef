"""What trainers said of rollouts: contradictions are violations where they are proved, and notes where they are not."""

from pathlib import Path
from typing import Any

import pytest

from helpers.doctored import asking, steer
from helpers.factories import ENGINE_ID, make_tables, write_trace
from tracekit.audit.doctor.examine import Report, examine
from tracekit.client.annotations import Annotations, annotation
from tracekit.trace.reader import open_traces
from tracekit.trace.tally import FIRST_TRAINER

NOTHING = dict.fromkeys(("run", "train_step", "group", "reward", "advantage", "old_logprob", "token_ids"), None)


def report_of(folder: Path, *said: list[dict[str, Any]], tables: Any = None) -> Report:
    """What doctor says of two requests of eight tokens, and of what each of some trainers said."""
    paths = [folder / "t.arrow"]
    write_trace(paths[0], [asking() if tables is None else tables])
    for number, own in enumerate(said):
        encoder = Annotations()
        for one in own:
            encoder.add(annotation(**{**NOTHING, "engine_id": None, "index": 0, **one}))
        paths.append(folder / f"said-{number}.arrow")
        write_trace(paths[-1], [encoder.take()], engine=FIRST_TRAINER + number, engine_id=f"{number}" * 32)
    return examine(open_traces(paths))


def about(number: int, **said: Any) -> dict[str, Any]:
    return {"request_id": f"request-{number}", **said}


def broken(report: Report) -> set[tuple[str, int | None]]:
    return {(one.check.id, example.request) for one in report.violations for example in one.examples}


def test_what_fits_is_sound_and_may_be_said_in_parts_again_and_by_several(tmp_path: Path) -> None:
    first = [about(0, reward=1.0, advantage=0.5), about(0, old_logprob=[-1.0] * 8), about(1, old_logprob=[-1.0] * 5)]
    report = report_of(tmp_path, [*first, about(1, reward=2.0)], [about(0, reward=1.0), about(1, reward=2.0)])
    assert broken(report) == set() and report.notes == [] and report.exit_code == 0


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (about(1, reward=float("nan")), "annotation-finite"),
        (about(1, old_logprob=[-1.0, float("-inf")]), "annotation-finite"),
        (about(1, old_logprob=[-1.0] * 9), "annotation-length"),
        (about(1, advantage=[0.0] * 9), "annotation-length"),
    ],
)
def test_numbers_that_cannot_be_of_the_rollout_are_named(tmp_path: Path, said: dict[str, Any], code: str) -> None:
    report = report_of(tmp_path, [about(0, reward=1.0), said])
    assert broken(report) == {(code, 1)} and report.exit_code == 1


def test_a_rollout_that_is_not_there_is_a_violation_only_where_its_engine_is_whole(tmp_path: Path) -> None:
    report = report_of(tmp_path, [about(7), about(8, engine_id="e" * 32)])
    assert broken(report) == set() and report.notes == ["2 annotated rollouts not in this trace"]
    folder = tmp_path / "named"
    folder.mkdir()
    report = report_of(folder, [about(7, engine_id=ENGINE_ID)])
    assert broken(report) == {("annotation-rollout", None)}
    assert "request-7" in report.violations[0].examples[0].text
    folder = tmp_path / "attached"
    folder.mkdir()
    tables = asking()
    steer(tables, "detach")
    assert broken(report_of(folder, [about(7, engine_id=ENGINE_ID)], tables=tables)) == set()


def test_trainers_that_differ_and_ids_of_several_requests_are_notes(tmp_path: Path) -> None:
    report = report_of(tmp_path, [about(0, reward=1.0, group="a")], [about(0, reward=2.0, group="b")])
    assert report.notes == ["of 1 rollout several trainers say different things: what was said last is taken"]
    tables = make_tables(2, 8)
    tables["requests"]["external_id"] = ["request-0"] * 2
    tables["requests"]["request_id"] = ["x", "y"]
    folder = tmp_path / "several"
    folder.mkdir()
    report = report_of(folder, [about(0)], tables=tables)
    assert report.notes == ["1 annotated rollout may be several requests of this trace, and is none"]
