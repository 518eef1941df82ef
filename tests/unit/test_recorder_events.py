"""Every kind of event has its place in the dispatch table of every generation."""

import inspect
from typing import Any, get_args

import pytest

from tracekit.recorder.vllm import events
from tracekit.recorder.vllm.events import Dispatch, Event, Fingerprints, Moves, TableRow, make
from tracekit.recorder.vllm.rows import Rows
from tracekit.recorder.vllm.v0.rows import V0Rows
from tracekit.recorder.vllm.v1.rows import V1Rows
from tracekit.tables import TABLES

PARTS = {Dispatch, Moves}  # of an event, not events

GENERATIONS: list[Rows[Any]] = [V0Rows(num_blocks=2, block_size=16), V1Rows(num_blocks=2)]


def kinds() -> set[type]:
    found = (value for value in vars(events).values() if inspect.isclass(value) and issubclass(value, tuple))
    return {kind for kind in found if kind.__module__ == events.__name__} - PARTS


def test_every_kind_is_an_event() -> None:
    assert kinds() == set(get_args(Event))


def test_an_event_made_without_its_constructor_is_the_same() -> None:
    at = make(Dispatch, (1, 2, 3, 4, 5))
    assert type(at) is Dispatch and at == Dispatch(1, 2, 3, 4, 5) and at.num_free_blocks == 5


@pytest.mark.parametrize("rows", GENERATIONS, ids=lambda rows: type(rows).__name__)
def test_every_kind_has_a_handler_in_every_generation(rows: Rows[Any]) -> None:
    assert rows.handlers.keys() == kinds()
    for name in ("_add_request", "_add_step", "_count_step"):  # what a generation must say
        assert getattr(type(rows), name) is not getattr(Rows, name)


@pytest.mark.parametrize("rows", GENERATIONS, ids=lambda rows: type(rows).__name__)
def test_rows_that_are_complete_are_taken_as_they_are(rows: Rows[Any]) -> None:
    row = {name: 1 if kind.rstrip("?") in ("u4", "u8", "i8") else "x" for name, kind in TABLES["control"].items()}
    events: list[Event] = [TableRow("control", row), Fingerprints(3, {(0, "norm"): ("float32", (2, 2), 9)})]
    assert [rows.count(event) for event in events] == [{"control": 1}, {"fingerprints": 1}]
    for event in events:
        rows.add(event)
    tables = rows.take()
    assert tables["control"]["name"] == ["x"] and tables["fingerprints"]["weight_version"].tolist() == [3]
    assert rows.take() == {}
