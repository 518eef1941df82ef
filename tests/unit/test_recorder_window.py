"""The un-acked window: numbers, counters and bounds, without a connection."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.recorder.window import ITEM_BYTES, Window
from tracekit.rpc import messages
from tracekit.rpc.frames import unframe

ENGINE = "ab" * 16


class Drained:
    """A message as its batch, with its payload."""

    def __init__(self, message):
        self._batch, self.payload, _ = unframe(message)

    def __getattr__(self, name):
        return getattr(self._batch, name)


def drain(window):
    batches = []
    while (data := window.next_unsent()) is not None:
        batches.append(Drained(data))
    return batches


def test_batches_are_numbered_from_one_and_carry_counters():
    window = Window(ENGINE, 10_000)
    window.add(b"abc", {"tokens": 3})
    window.add(b"de", {"tokens": 2, "steps": 1})
    first, second = drain(window)
    assert (first.seq, second.seq) == (1, 2)
    assert dict(first.totals.produced) == {"tokens": 3}
    assert dict(second.totals.produced) == {"tokens": 5, "steps": 1}
    assert first.engine_id == ENGINE and first.payload == b"abc"


def test_losses_of_one_reason_become_one_range_on_the_next_batch():
    window = Window(ENGINE, 10_000)
    window.add(b"a", {"tokens": 1})
    window.lose({"tokens": 5}, "full")
    window.lose({"tokens": 6, "steps": 1}, "full")
    window.add(b"b", {"tokens": 2})
    batch = drain(window)[1]
    assert [(loss.from_seq, loss.to_seq, loss.reason, dict(loss.rows)) for loss in batch.losses] == [
        (2, 3, "full", {"tokens": 11, "steps": 1})
    ]
    assert batch.seq == 4
    assert dict(batch.totals.produced) == {"tokens": 14, "steps": 1}
    assert dict(batch.totals.lost) == {"tokens": 11, "steps": 1}


def test_a_new_connection_sends_what_is_not_acked_again():
    window = Window(ENGINE, 10_000)
    for _ in range(4):
        window.add(b"a", {"tokens": 1})
    assert [batch.seq for batch in drain(window)] == [1, 2, 3, 4]
    window.ack(2)
    assert drain(window) == []
    window.rewind()
    assert [batch.seq for batch in drain(window)] == [3, 4]
    assert window.undelivered() == {"tokens": 2}


def test_bytes_are_bounded_and_freed_by_acks():
    window = Window(ENGINE, 2 * (100 + ITEM_BYTES))
    window.add(bytes(100), {"tokens": 1})
    window.add(bytes(100), {"tokens": 1})
    assert not window.fits(1)
    window.ack(1)
    assert window.fits(100) and not window.fits(101)


def test_a_beat_tells_losses_only_when_there_is_nothing_else():
    window = Window(ENGINE, 10_000)
    assert not window.beat()
    window.lose({"tokens": 5}, "full")
    assert window.beat() and not window.beat()
    (batch,) = drain(window)
    assert batch.seq == 2 and batch.losses[0].rows["tokens"] == 5 and batch.payload == b""


def test_a_rejected_batch_becomes_a_loss_in_its_own_place():
    window = Window(ENGINE, 10_000)
    window.add(b"bad", {"tokens": 3})
    window.add(b"good", {"tokens": 1})
    assert window.reject_first("refused")
    assert not window.reject_first("refused")
    first, second = drain(window)
    assert first.payload == b"" and dict(first.losses[0].rows) == {"tokens": 3}
    assert dict(first.totals.lost) == dict(second.totals.lost) == {"tokens": 3}
    assert window.undelivered() == {"tokens": 1}


def test_a_batch_refused_twice_is_lost_and_a_refusal_of_nothing_is_the_end():
    window = Window(ENGINE, 10_000)
    assert not window.refused("no")
    window.add(b"bad", {"tokens": 3})
    window.add(b"good", {"tokens": 1})
    assert window.refused("no") and window.lost == {}
    assert window.refused("no") and window.lost == {"tokens": 3}
    assert drain(window)[0].losses[0].reason == "refused by the daemon: no"
    assert not window.refused("no")  # it holds no rows any more
    window.ack(1)
    assert window.refused("no") and window.lost == {"tokens": 3}


def test_abandoning_turns_everything_into_losses():
    window = Window(ENGINE, 10_000)
    window.add(b"a", {"tokens": 3})
    window.ack(1)
    window.add(b"a", {"tokens": 4})
    window.abandon("refused")
    assert len(window) == 0 and window.undelivered() == {}
    assert window.produced == {"tokens": 7} and window.lost == {"tokens": 4}
    assert window.unknown_to_daemon() == {"tokens": 4}


ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 9)),
    st.tuples(st.just("lose"), st.integers(1, 9)),
    st.tuples(st.just("beat"), st.just(0)),
    st.tuples(st.just("crash"), st.integers(0, 3)),
    st.tuples(st.just("reject"), st.just(0)),
)


@settings(deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_produced_is_stored_plus_lost_for_every_prefix(actions):
    """A daemon that loses its connection at any time stores each batch once, and the counters always add up."""
    window = Window(ENGINE, 3 * (1 + ITEM_BYTES))
    stored, lost, durable = Counter(), Counter(), 0

    def deliver(stop_after):
        nonlocal durable
        window.rewind()
        for batch in drain(window)[:stop_after]:
            if batch.seq <= durable:
                continue
            covered = {seq for loss in batch.losses for seq in range(loss.from_seq, loss.to_seq + 1)}
            assert set(range(durable + 1, batch.seq)) <= covered
            durable = batch.seq
            stored.update({"tokens": len(batch.payload)})
            for loss in batch.losses:
                lost.update(loss.rows)
            assert batch.totals.produced["tokens"] == stored["tokens"] + lost["tokens"]
            assert batch.totals.lost["tokens"] == lost["tokens"]

    for action, number in actions:
        if action == "add" and window.fits(number):
            window.add(bytes(number), {"tokens": number})
        elif action in ("add", "lose"):
            window.lose({"tokens": number}, "full" if action == "add" else "other")
        elif action == "beat":
            window.beat()
        elif action == "crash":
            deliver(number)
            if number == 2:  # else the ack is lost with the connection
                window.ack(durable)
        elif window.first_seq() > durable:
            window.reject_first("refused")
    window.finish()
    deliver(None)
    window.ack(durable)
    assert len(window) == 0 and window.unknown_to_daemon() == {}
    assert window.produced["tokens"] == stored["tokens"] + lost["tokens"]
    assert window.lost["tokens"] == lost["tokens"]


def test_a_long_payload_comes_in_pieces_and_again_from_the_first(monkeypatch):
    monkeypatch.setattr(messages, "MAX_PIECE_BYTES", 4)
    window = Window(ENGINE, 10_000)
    window.add(b"0123456789", {"tokens": 1})
    window.add(b"ab", {"tokens": 1})
    pieces = [(0, 3, b"0123"), (1, 3, b"4567"), (2, 3, b"89"), (0, 0, b"ab")]
    assert [(batch.piece, batch.pieces, batch.payload) for batch in drain(window)] == pieces
    window.rewind()
    window.next_unsent()
    window.rewind()
    window.next_unsent()
    window.ack(1)  # an ack that overtakes the rest of it
    assert [(batch.seq, batch.piece, batch.payload) for batch in drain(window)] == [(2, 0, b"ab")]


def test_reasons_of_losses_are_few_and_short():
    window = Window(ENGINE, 10_000)
    for number in range(1000):
        window.lose({"tokens": 1}, f"{number} " + "x" * 5000)
    window.beat()
    (batch,) = drain(window)
    assert len(batch.losses) == 65 and max(len(loss.reason) for loss in batch.losses) == 1000
    assert batch.losses[64].reason == "several reasons" and batch.losses[64].rows["tokens"] == 1000 - 64
