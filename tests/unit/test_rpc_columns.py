"""The wire form of the tables: exact both ways, and nothing malformed gets in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.wire import all_tables, assert_same
from tracekit.errors import TracekitError
from tracekit.rpc import messages
from tracekit.rpc.columns import WIRE_TABLES, count_rows, pack, slice_rows, unpack


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


def column_of(packed, table, name):
    return next(c for t in packed.tables if t.name == table for c in t.columns if c.name == name)


def tokens_of(packed):
    return next(t for t in packed.tables if t.name == "tokens")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: setattr(tokens_of(p), "name", "nonsense"), "no table"),
        (lambda p: setattr(tokens_of(p), "rows", 4), "bytes for 4 rows"),
        (lambda p: setattr(tokens_of(p), "rows", 0), "bytes for 0 rows"),
        (lambda p: setattr(tokens_of(p), "rows", 2**32 - 1), "bytes for 4294967295 rows"),
        (lambda p: p.tables.append(tokens_of(p)), "twice"),
        (lambda p: tokens_of(p).columns.append(column_of(p, "tokens", "flags")), "twice"),
        (lambda p: setattr(column_of(p, "tokens", "flags"), "name", "engine"), "wrong columns: engine, flags"),
        (lambda p: setattr(column_of(p, "tokens", "flags"), "data", b"\1"), "1 bytes for 3 rows"),
        (lambda p: setattr(column_of(p, "tokens", "flags"), "lengths", b"\1"), "of one size"),
        (lambda p: setattr(column_of(p, "tokens", "flags"), "valid", b"\1\1\1"), "not nullable"),
        (lambda p: setattr(column_of(p, "tokens", "rank"), "valid", b"\1\1"), "validity"),
        (lambda p: setattr(column_of(p, "tokens", "rank"), "valid", b"\1\1\2"), "validity"),
        (lambda p: setattr(column_of(p, "finishes", "reason"), "lengths", b""), "0 bytes of lengths"),
        (lambda p: setattr(column_of(p, "finishes", "reason"), "lengths", b"\xff" * 12), "add up to 12884901885"),
        (lambda p: setattr(column_of(p, "requests", "prompt_token_ids"), "data", b"abc"), "add up"),
    ],
)
def test_unpack_refuses(damage, words):
    packed = messages.Tables.FromString(pack(all_tables(3)))
    damage(packed)
    with pytest.raises(TracekitError, match=words):
        unpack(packed.SerializeToString())


def test_unpack_refuses_text_that_is_not_utf8():
    packed = messages.Tables.FromString(pack(all_tables(3)))
    column = column_of(packed, "finishes", "reason")
    column.data, column.lengths = b"\xff\xff\xff", b"\1\0\0\0" * 3
    with pytest.raises(TracekitError, match=r"finishes\.reason is malformed"):
        unpack(packed.SerializeToString())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_unpack_of_any_bytes_gives_tables_or_a_sentence(payload):
    try:
        tables = unpack(payload)
    except TracekitError:
        return
    assert set(tables) <= set(WIRE_TABLES)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_unpack_of_a_damaged_payload_gives_tables_or_a_sentence(place, byte):
    payload = bytearray(pack(all_tables(3)))
    payload[place % len(payload)] = byte
    try:
        tables = unpack(bytes(payload))
    except TracekitError:
        return
    assert set(tables) <= set(WIRE_TABLES)
