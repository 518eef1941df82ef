"""The mark of an idle engine: it stands only while nothing can have followed it."""

import errno
import os

import pytest

from tracekit.rpc import idle
from tracekit.rpc.idle import Marker

ENGINE = "ab" * 16


def test_a_claim_stands_until_the_engine_is_busy(tmp_path):
    marker = Marker(tmp_path / "d.sock", ENGINE)
    assert idle.read(tmp_path / "d.sock", ENGINE) is None
    marker.busy()
    marker.claim(1, 7)
    assert idle.read(tmp_path / "d.sock", ENGINE) == 7
    marker.busy()
    assert idle.read(tmp_path / "d.sock", ENGINE) is None
    marker.claim(2, 9)
    assert idle.read(tmp_path / "d.sock", ENGINE) == 9
    assert (tmp_path / f"d.sock.idle-{ENGINE}").stat().st_mode & 0o077 == 0
    idle.remove(tmp_path / "d.sock", ENGINE)
    assert idle.read(tmp_path / "d.sock", ENGINE) is None and not list(tmp_path.iterdir())


def test_a_claim_that_was_overtaken_is_none(tmp_path):
    marker = Marker(tmp_path / "d.sock", ENGINE)
    marker.busy()
    marker.claim(0, 7)  # the first: there was no file that `busy` could have written to
    assert idle.read(tmp_path / "d.sock", ENGINE) is None
    marker.claim(0, 7)
    assert idle.read(tmp_path / "d.sock", ENGINE) is None


def test_a_claim_that_cannot_be_taken_back_goes(tmp_path, monkeypatch):
    marker = Marker(tmp_path / "d.sock", ENGINE)
    marker.claim(0, 7)

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    marker.busy()
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    marker.claim(1, 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [Marker.busy, lambda marker: marker.claim(0, 8), Marker.close])
def test_a_file_of_the_jobs_under_our_descriptor_is_left_alone(tmp_path, call):
    marker = Marker(tmp_path / "d.sock", ENGINE)
    marker.claim(0, 7)
    theirs = tmp_path / "theirs"
    theirs.write_text("checkpoint")
    fd = os.open(theirs, os.O_RDWR)
    os.dup2(fd, marker._fd)  # as after a launcher has closed all descriptors
    ours = marker._fd
    call(marker)
    assert theirs.read_text() == "checkpoint" and os.fstat(ours)
    if call is not Marker.close:  # a claim that cannot be taken back goes
        assert idle.read(tmp_path / "d.sock", ENGINE) is None
    os.close(fd)
    os.close(ours)


@pytest.mark.parametrize("folder", [None, "absent"])
def test_without_a_folder_nothing_is_claimed(tmp_path, folder):
    marker = Marker(folder and tmp_path / folder / "d.sock", ENGINE)
    marker.claim(0, 7)
    marker.busy()
    assert not list(tmp_path.iterdir())


def test_a_claim_of_an_earlier_boot_or_half_a_file_is_none(tmp_path, monkeypatch):
    marker = Marker(tmp_path / "d.sock", ENGINE)
    marker.claim(0, 7)
    boot = tmp_path / "boot_id"
    boot.write_text("0" * 36)
    with monkeypatch.context() as patched:
        patched.setattr(idle, "BOOT_ID", boot)
        assert idle.read(tmp_path / "d.sock", ENGINE) is None
    path = tmp_path / f"d.sock.idle-{ENGINE}"
    path.write_bytes(path.read_bytes()[:-1])
    assert idle.read(tmp_path / "d.sock", ENGINE) is None
