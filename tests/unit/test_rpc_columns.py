"""The wire form of the tables: exact both ways, and nothing malformed gets in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.wire import all_tables, assert_same, unpack
from tracekit.errors import TracekitError
from tracekit.rpc import columns
from tracekit.rpc.columns import WIRE_TABLES, count_rows, pack, parse, slice_rows


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32))
def test_every_table_comes_back_bit_for_bit(rows, seed):
    tables = all_tables(rows, seed)
    assert_same(tables, unpack(pack(tables)))


def test_empty_tables_are_left_out():
    tables = all_tables(0)
    assert unpack(pack(tables)) == {}
    assert count_rows(tables) == {}


def test_python_lists_of_numbers_are_taken():
    tables = {"scheduled": {name: [1, 2] for name in WIRE_TABLES["scheduled"]}}
    assert unpack(pack(tables))["scheduled"]["flags"].tolist() == [1, 2]


def test_a_lone_surrogate_does_not_cost_the_batch():
    tables = all_tables(1)
    tables["requests"]["request_id"] = ["a\ud800"]
    assert unpack(pack(tables))["requests"]["request_id"] == ["a\\ud800"]


def test_slices_cover_every_row_once():
    tables = all_tables(7)
    halves = [slice_rows(tables, 0, 0.5), slice_rows(tables, 0.5, 1)]
    for name, rows in count_rows(tables).items():
        assert sum(count_rows(half)[name] for half in halves) == rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(nonsense={"a": [1]}), "no table 'nonsense'"),
        (lambda t: t.update(losses={}), "no table 'losses'"),
        (lambda t: t["tokens"].update(engine=np.zeros(3, "u4")), "wrong columns: engine"),
        (lambda t: t["tokens"].pop("rank"), "wrong columns: rank"),
        (lambda t: t["tokens"].update(token_id=np.zeros(2, "u4")), "different lengths"),
        (lambda t: t["tokens"].update(token_id=np.array([1, 2, -1])), "does not fit u4"),
        (lambda t: t["tokens"].update(flags=[1, 2, 256]), "does not fit u1"),
        (lambda t: t["tokens"].update(token_id=np.array([0.5, 1, 2])), "not integers"),
        (lambda t: t["tokens"].update(rollout_logprob=["a", "b", "c"]), "not numbers"),
        (lambda t: t["tokens"].update(token_id=np.zeros((3, 1), "u4")), "one-dimensional"),
        (lambda t: t["tokens"].update(token_id=np.ma.MaskedArray(np.zeros(3, "u4"), mask=[0, 1, 0])), "not nullable"),
        (lambda t: t["requests"].update(request_id=["a", None, "c"]), "not nullable"),
        (lambda t: t["requests"].update(prompt_token_ids=[[1], [2**32], []]), "does not fit u4"),
    ],
)
def test_pack_refuses(change, words):
    tables = all_tables(3)
    change(tables)
    with pytest.raises(TracekitError, match=words):
        pack(tables)


COLUMNS = list(WIRE_TABLES["tokens"])
# where the shape of the first table, of tokens, lies: its number, its rows, then 5 bytes for each column
NUMBER, ROWS = slice(0, 1), slice(1, 5)


def nulls_of(column):
    return slice(at := 5 + 5 * COLUMNS.index(column), at + 1)


def size_of(column):
    return slice(at := 6 + 5 * COLUMNS.index(column), at + 4)


def tokens():
    return pack({"tokens": all_tables(3, seed=5)["tokens"]})


@pytest.mark.parametrize(
    ("place", "put", "words"),
    [
        (NUMBER, b"\xff", "unknown, doubled"),
        (ROWS, b"\4\0\0\0", "bytes for 4 rows"),
        (ROWS, b"\0\0\0\0", "without rows"),
        (ROWS, b"\xff\xff\xff\xff", "bytes for 4294967295 rows"),
        (size_of("flags"), b"\1\0\0\0", "1 bytes for 3 rows"),
        (size_of("flags"), b"\xff\xff\xff\xff", "4294967295 bytes for 3 rows"),
        (nulls_of("flags"), b"\1", "nulls that it cannot have"),
        (nulls_of("flags"), b"\3", "nulls that it cannot have"),
        (nulls_of("rank"), b"\2", "12 bytes for 3 rows"),
        (slice(-1, None), b"", "is cut off"),
        (slice(20, None), b"", "is cut off"),
        (slice(len(tokens()), None), tokens(), "doubled"),
    ],
)
def test_parse_refuses(place, put, words):
    payload = bytearray(tokens())
    payload[place] = put
    with pytest.raises(TracekitError, match=words):
        parse(bytes(payload))


def lying(column, lengths, data):
    """A payload whose column has other buffers than it says."""
    honest = columns._encode

    def encode(name, kind, values):
        nulls, valid, *buffers = honest(name, kind, values)
        return nulls, valid, *((lengths, data) if name == column else buffers)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(columns, "_encode", encode)
        return pack({"finishes": all_tables(3, seed=1)["finishes"]})


@pytest.mark.parametrize(
    ("lengths", "data", "words"),
    [
        (b"\xff" * 12, b"abc", "add up to 12884901885 bytes of 3"),
        (b"\1\0\0\0" * 3, b"ab", "add up to 3 bytes of 2"),
        (b"\1\0\0\0" * 3, b"\xff\xff\xff", r"finishes\.reason is malformed"),
        (b"\1\0\0\0" * 3, "é".encode() + b"a", "begins inside a character"),
    ],
)
def test_parse_refuses_texts_that_are_none(lengths, data, words):
    with pytest.raises(TracekitError, match=words):
        parse(lying("reason", lengths, data))


def test_a_column_of_nulls_costs_nothing():
    table = all_tables(3)["tokens"]
    nothing = {name: np.ma.masked_all(3, "f4") for name in ("rollout_logprob", "raw_logprob", "processed_logprob")}
    full = {name: np.zeros(3, "f4") for name in nothing}
    assert len(pack({"tokens": table | full})) - len(pack({"tokens": table | nothing})) == 3 * 3 * 4
    assert unpack(pack({"tokens": table | nothing}))["tokens"]["raw_logprob"].mask.all()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_parse_of_any_bytes_gives_tables_or_a_sentence(payload):
    try:
        tables = parse(payload)
    except TracekitError:
        return
    assert set(tables) <= set(WIRE_TABLES)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_parse_of_a_damaged_payload_gives_tables_or_a_sentence(place, byte):
    payload = bytearray(pack(all_tables(3)))
    payload[place % len(payload)] = byte
    try:
        tables = parse(bytes(payload))
    except TracekitError:
        return
    assert set(tables) <= set(WIRE_TABLES)
