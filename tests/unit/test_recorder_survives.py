"""The recorder's background thread outlives whatever goes wrong in it, and what it could not do is counted."""

import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from tracekit.recorder import session as module
from tracekit.recorder.session import Session


class Encoder:
    """Three rows of tokens an event; an event that is an exception is raised when the batch is taken."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def add(self, event: tuple[Any, ...]) -> None:
        self.rows += [event[0]] * 3

    def count(self, event: tuple[Any, ...]) -> dict[str, int]:
        return {"tokens": 3, f"table{event[0]}": 1}

    def num_tokens(self) -> int:
        return len(self.rows)

    def pending(self) -> dict[str, int]:
        return {"tokens": len(self.rows)}

    def take(self) -> dict[str, Any]:
        taken, self.rows = self.rows, []
        if bad := [row for row in taken if isinstance(row, Exception)]:
            raise bad[0]
        return {"tokens": taken} if taken else {}

    def num_live(self) -> int:
        return 0

    def take_orphans(self) -> dict[str, int]:
        return {}

    def take_shed(self) -> dict[str, int]:
        return {}


class Sink:
    def __init__(self) -> None:
        self.stored: list[Any] = []
        self.lost: Counter[str] = Counter()
        self.put_once = threading.Event()
        self.lose_once = threading.Event()

    def put(self, tables: dict[str, Any], kept: Any = None) -> None:
        self.stored += tables["tokens"]
        self.put_once.set()

    def last_seq(self) -> int:
        return 0

    def lose(self, rows: dict[str, int], reason: str) -> None:
        for table in rows:  # fails where somebody still adds to it
            self.lost[table] += rows[table]
        self.lose_once.set()

    def close(self, timeout_secs: float, whole: bool = True) -> None:
        pass


def test_a_value_that_no_column_holds_costs_its_batch_and_nothing_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_SECS", 0.0)
    sink = Sink()
    session = Session(Encoder(), sink)
    session.append((OverflowError("-1 in a column of u4"),))
    assert sink.lose_once.wait(10)
    session.append(("after",))
    assert sink.put_once.wait(10)
    session.close()
    assert sink.stored == ["after"] * 3 and sink.lost == {"tokens": 3}


def test_an_encoder_that_breaks_in_an_unforeseen_place_does_not_end_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, sink, said = Encoder(), Sink(), threading.Event()
    monkeypatch.setattr(encoder, "take_orphans", lambda: 1 / 0)
    monkeypatch.setattr(module, "say_once", lambda text: said.set() if "drained" in text else None)
    session = Session(encoder, sink)
    session.append(("before",))
    assert said.wait(10)
    monkeypatch.setattr(encoder, "take_orphans", dict)
    session.close()
    assert sink.stored == ["before"] * 3


def test_losses_counted_by_several_threads_while_they_are_reported_add_up(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 0)
    monkeypatch.setattr(module, "DRAIN_SECS", 0.0)
    interval = sys.getswitchinterval()
    request.addfinalizer(lambda: sys.setswitchinterval(interval))
    sys.setswitchinterval(1e-6)
    sink = Sink()
    session = Session(Encoder(), sink)

    def work(name: int) -> None:
        for i in range(3000):
            session.append((name * 10_000 + i,))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close()
    assert sink.lost["tokens"] == 27_000 and sum(sink.lost.values()) == 36_000


def test_where_stderr_is_closed_nothing_of_ours_is_among_what_the_job_prints() -> None:
    code = "from tracekit.recorder.guard import say; say('lost'); print('{}')"
    argv = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    assert subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout == "{}\n"
