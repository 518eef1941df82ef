"""Let a shared library load where the C++ library is older than a symbol version it names but does not use."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

from tracekit.errors import EngineEnvError

SHT_GNU_VERNEED = 0x6FFFFFFE
VER_FLG_WEAK = 2


def weaken_version(library: Path, version: str) -> None:
    """Mark the version `version` that `library` needs as weak: the loader then does without it.

    vLLM 0.8.5's CPU build names GLIBCXX_3.4.32 only through a marker of GCC 13's <iostream> that nothing refers to. The
    file is replaced, never written in place: uv's installs are hard links into its cache.

    Args:
        library: a 64-bit little-endian ELF file.
        version: such as "GLIBCXX_3.4.32".

    Raises:
        EngineEnvError: there is not exactly one entry of that name.
    """
    data = bytearray(library.read_bytes())
    found = [at for at, name in needed_versions(data) if name == version]
    if len(found) != 1:
        raise EngineEnvError(f"{len(found)} entries for {version} where one was expected: {library}")
    # Elfxx_Vernaux: hash u4, flags u2, other u2, name u4, next u4
    (flags,) = struct.unpack_from("<H", data, found[0] + 4)
    if flags & VER_FLG_WEAK:
        return
    struct.pack_into("<H", data, found[0] + 4, flags | VER_FLG_WEAK)
    part = library.with_name(library.name + ".part")
    part.write_bytes(data)
    shutil.copymode(library, part)
    os.replace(part, library)


def needed_versions(data: bytes | bytearray) -> list[tuple[int, str]]:
    """Return (offset of the entry, name) of every symbol version that an ELF file needs from other libraries.

    Raises:
        EngineEnvError: not a 64-bit little-endian ELF file, or a damaged one.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise EngineEnvError("this is not a 64-bit little-endian ELF file")
    try:
        return _needed_versions(data)
    except (struct.error, IndexError, ValueError):
        raise EngineEnvError("this ELF file is damaged") from None


def _needed_versions(data: bytes | bytearray) -> list[tuple[int, str]]:
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    # sh_name u4, sh_type u4, sh_flags u8, sh_addr u8, sh_offset u8, sh_size u8, sh_link u4, sh_info u4
    sections = [struct.unpack_from("<IIQQQQII", data, table + i * size) for i in range(count)]
    found = []
    for _, kind, _, _, need, _, link, num_files in sections:
        if kind != SHT_GNU_VERNEED:
            continue
        names = sections[link][4]
        for _ in range(num_files):
            _, num_versions, _, first, following = struct.unpack_from("<HHIII", data, need)
            entry = need + first
            for _ in range(num_versions):
                _, _, _, name, step = struct.unpack_from("<IHHII", data, entry)
                start = names + name
                found.append((entry, bytes(data[start : data.index(b"\0", start)]).decode()))
                entry += step
            need += following
    return found
