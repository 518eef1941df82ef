"""The note of undelivered rows: what is written is what is read, and nothing else passes for one."""

import json
import os

import pytest

from tracekit.errors import NoteError
from tracekit.rpc import note
from tracekit.rpc.note import Note

NOTE = Note("ab" * 16, 3, 5, "no daemon answered", {"tokens": 4}, {"tokens": 9, "steps": 1})


def test_what_is_written_is_read_and_found(tmp_path):
    note.write(tmp_path / "d.sock", NOTE._replace(reason="an earlier end"))
    note.write(tmp_path / "d.sock", NOTE)
    other = NOTE._replace(engine_id="0a" * 16)
    note.write(tmp_path / "d.sock", other)
    assert [note.read(path) for path in note.find(tmp_path / "d.sock")] == [other, NOTE]
    assert len(list(tmp_path.iterdir())) == 2  # no draft stays behind


def test_the_file_format_stays(tmp_path):
    note.write(tmp_path / "d.sock", NOTE)
    assert json.loads((tmp_path / f"d.sock.undelivered-{'ab' * 16}.json").read_text()) == {
        "engine_id": "ab" * 16,
        "from_seq": 3,
        "to_seq": 5,
        "reason": "no daemon answered",
        "rows": {"tokens": 4},
        "produced": {"tokens": 9, "steps": 1},
    }


@pytest.mark.parametrize("text", ["", "[half", "[]", "{}", '{"rows": 3}', json.dumps({**NOTE._asdict(), "rows": []})])
def test_anything_else_is_not_a_note(tmp_path, text):
    path = tmp_path / "d.sock.undelivered-x.json"
    path.write_text(text)
    with pytest.raises(NoteError, match=f"not a note of a recorder: {path}"):
        note.read(path)


def odd(**fields):
    return json.dumps(NOTE._asdict() | fields)


@pytest.mark.parametrize(
    "text",
    [
        odd(to_seq=2**70),
        odd(to_seq=2**48),
        odd(from_seq=0),
        odd(from_seq=6),
        odd(from_seq=True),
        odd(from_seq=3.0),
        odd(reason="a\ud800"),
        odd(reason="x" * 5000),
        odd(reason=7),
        odd(engine_id="../../etc/passwd"),
        odd(rows={"tokens": 10**30}),
        odd(rows={"tokens": -1}),
        odd(rows={"nonsense": 1}),
        odd(produced={"tokens": "4"}),
        "[" * 60_000,
        " " * (65 << 10) + odd(),
    ],
)
def test_numbers_and_texts_have_bounds(tmp_path, text):
    path = tmp_path / "d.sock.undelivered-x.json"
    path.write_text(text)
    with pytest.raises(NoteError, match="not a note of a recorder"):
        note.read(path)


def test_a_note_is_the_owners_alone_and_follows_no_link(tmp_path):
    before = os.umask(0)
    try:
        note.write(tmp_path / "d.sock", NOTE)
    finally:
        os.umask(before)
    (path,) = note.find(tmp_path / "d.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    link = tmp_path / "d.sock.undelivered-link.json"
    link.symlink_to(path)
    os.mkfifo(tmp_path / "d.sock.undelivered-pipe.json")
    for odd_one in (link, tmp_path / "d.sock.undelivered-pipe.json"):
        with pytest.raises(NoteError):
            note.read(odd_one)


def test_daemons_of_one_folder_have_notes_of_their_own(tmp_path):
    note.write(tmp_path / "a.sock", NOTE)
    note.write(tmp_path / "b.sock", NOTE)
    assert len(note.find(tmp_path / "a.sock")) == len(note.find(tmp_path / "b.sock")) == 1
    assert note.find(tmp_path / "[ab].sock") == note.find(tmp_path / "sock") == []
