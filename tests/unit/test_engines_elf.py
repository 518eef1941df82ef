"""The weak-version edit, on ELF files written here byte by byte."""

import os
import struct
from pathlib import Path

import pytest

from tracekit.engines.elf import needed_versions, weaken_version
from tracekit.errors import EngineEnvError


def library(folder: Path, needs: dict[str, list[str]]) -> Path:
    """Write a shared library that holds nothing but a version-needs section: file -> versions."""
    names = b"\0"
    offsets = {}
    for name in (*needs, *(v for versions in needs.values() for v in versions)):
        offsets[name] = len(names)
        names += name.encode() + b"\0"
    section = b""
    files = list(needs.items())
    for i, (file, versions) in enumerate(files):
        following = 0 if i == len(files) - 1 else 16 + 16 * len(versions)
        section += struct.pack("<HHIII", 1, len(versions), offsets[file], 16, following)
        for j, version in enumerate(versions):
            section += struct.pack("<IHHII", 7, 0, 2, offsets[version], 0 if j == len(versions) - 1 else 16)
    headers = struct.pack("<IIQQQQIIQQ", *[0] * 10)
    headers += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, 64, len(names), 0, 0, 1, 0)
    headers += struct.pack("<IIQQQQIIQQ", 0, 0x6FFFFFFE, 2, 0, 64 + len(names), len(section), 1, len(files), 4, 0)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HHIQQ", 3, 62, 1, 0, 0)
    header += struct.pack("<QIHHHHHH", 64 + len(names) + len(section), 0, 64, 0, 0, 64, 3, 1)
    path = folder / "lib.so"
    path.write_bytes(header + names + section + headers)
    return path


def test_one_flag_changes_in_a_new_file(tmp_path):
    path = library(tmp_path, {"libc.so.6": ["GLIBC_2.32"], "libstdc++.so.6": ["GLIBCXX_3.4", "GLIBCXX_3.4.32"]})
    before = path.read_bytes()
    cached = tmp_path / "in-the-cache-of-uv"
    os.link(path, cached)
    os.chmod(path, 0o755)
    weaken_version(path, "GLIBCXX_3.4.32")
    after = path.read_bytes()
    (entry,) = (at for at, name in needed_versions(after) if name == "GLIBCXX_3.4.32")
    assert [i for i in range(len(before)) if before[i] != after[i]] == [entry + 4]
    assert after[entry + 4] == 2
    assert cached.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o755
    weaken_version(path, "GLIBCXX_3.4.32")
    assert path.read_bytes() == after


@pytest.mark.parametrize("versions", [["GLIBCXX_3.4"], ["GLIBCXX_3.4.32", "GLIBCXX_3.4.32"]])
def test_another_number_of_entries_than_one_is_refused(tmp_path, versions):
    path = library(tmp_path, {"libstdc++.so.6": versions})
    before = path.read_bytes()
    with pytest.raises(EngineEnvError, match="where one was expected"):
        weaken_version(path, "GLIBCXX_3.4.32")
    assert path.read_bytes() == before


def test_what_is_no_library_is_refused(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(b"MZ" * 100)
    with pytest.raises(EngineEnvError, match="not a 64-bit little-endian ELF file"):
        weaken_version(path, "GLIBCXX_3.4.32")
    whole = library(tmp_path, {"libstdc++.so.6": ["GLIBCXX_3.4.32"]}).read_bytes()
    path.write_bytes(whole[: len(whole) - 70])
    with pytest.raises(EngineEnvError, match="damaged"):
        weaken_version(path, "GLIBCXX_3.4.32")
