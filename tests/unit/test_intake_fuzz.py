"""Whatever comes off the wire, the daemon's intake gives a batch or one sentence, and never more memory than bytes.

The corpus is grown here, by cutting, joining and flipping honest frames; `scripts/fuzz_intake.py` runs the same under
atheris, which looks for branches instead of by chance.
"""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.intake import outcome
from helpers.wire import all_tables, batch, engine_id, hello
from tracekit.rpc import messages
from tracekit.rpc.columns import WIRE_TABLES

ENGINE = engine_id()
CORPUS = sorted((Path(__file__).parents[1] / "golden" / "frames").iterdir())


def honest() -> list[bytes]:
    whole = batch(ENGINE, 3, all_tables(3, seed=1), {"tokens": 10})
    whole.batch.losses.add(from_seq=1, to_seq=2, reason="full", rows={"tokens": 7})
    whole.batch.results.add(id="a", error="no")
    single = [batch(ENGINE, 1, all_tables(2, seed=2, names=[name])) for name in WIRE_TABLES]
    return [made.to_bytes() for made in (hello(ENGINE), whole, *single)]


FRAMES = honest()


def test_honest_frames_are_taken():
    assert [outcome(data) for data in FRAMES] == ["hello", *["batch"] * (len(FRAMES) - 1)]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(FRAMES), st.integers(0, 1 << 16), st.binary(max_size=8), st.integers(0, 8), st.booleans())
def test_a_damaged_frame_gives_a_batch_or_a_sentence(data, place, put, cut, mend):
    place %= len(data)
    outcome(data[:place] + put + data[place + cut :], mend)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_batch_or_a_sentence(data):
    outcome(data)
    outcome(messages.Frame(batch=data).SerializeToString(), mend=True)
    outcome(messages.Frame(batch=b"", payload=data).SerializeToString(), mend=True)


def test_what_was_found_once_stays_found():
    assert CORPUS
    for path in CORPUS:
        outcome(path.read_bytes())
        outcome(path.read_bytes(), mend=True)
