"""The note of undelivered rows: what is written is what is read, and nothing else passes for one."""

import json

import pytest

from tracekit.errors import NoteError
from tracekit.rpc import note
from tracekit.rpc.note import Note

NOTE = Note("ab" * 16, 3, 5, "no daemon answered", {"tokens": 4}, {"tokens": 9, "steps": 1})


def test_what_is_written_is_read_and_found(tmp_path):
    note.write(tmp_path, NOTE._replace(reason="an earlier end"))
    note.write(tmp_path, NOTE)
    other = NOTE._replace(engine_id="0a" * 16)
    note.write(tmp_path, other)
    assert [note.read(path) for path in note.find(tmp_path)] == [other, NOTE]
    assert len(list(tmp_path.iterdir())) == 2  # no draft stays behind


def test_the_file_format_stays(tmp_path):
    note.write(tmp_path, NOTE)
    assert json.loads((tmp_path / f"undelivered-{'ab' * 16}.json").read_text()) == {
        "engine_id": "ab" * 16,
        "from_seq": 3,
        "to_seq": 5,
        "reason": "no daemon answered",
        "rows": {"tokens": 4},
        "produced": {"tokens": 9, "steps": 1},
    }


@pytest.mark.parametrize("text", ["", "[half", "[]", "{}", '{"rows": 3}', json.dumps({**NOTE._asdict(), "rows": []})])
def test_anything_else_is_not_a_note(tmp_path, text):
    path = tmp_path / "undelivered-x.json"
    path.write_text(text)
    with pytest.raises(NoteError, match=f"not a note of a recorder: {path}"):
        note.read(path)


def test_a_socket_has_a_folder_and_no_other_address_does():
    assert str(note.folder_of("unix:/run/tracekit/d.sock")) == "/run/tracekit"
    assert note.folder_of("localhost:4000") is None
