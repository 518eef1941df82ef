"""The recorder alone as a wheel, made of the running tracekit: on PYTHONPATH it is found from inside the zip.

Nothing is installed, so nothing moves there; numpy, grpcio and protobuf are what every vLLM has.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from tracekit import __version__
from tracekit.cache import cache_dir, short_hash
from tracekit.errors import CacheError

ROOMS = ("recorder", "rpc")
FILES = ("__init__.py", "cache.py", "errors.py", "plain.py", "plural.py", "tables.py")
ENTRY = "[vllm.general_plugins]\ntracekit = tracekit.recorder.plugin:register\n"


def recorder_wheel() -> Path:
    """Return the wheel in the cache folder, made where it is not there yet.

    Raises:
        CacheError: the cache folder cannot be written.
    """
    root = resources.files("tracekit")
    files = {name: (root / name).read_bytes() for name in FILES}
    for room in ROOMS:
        files |= dict(_below(root / room, room))
    about = f"tracekit_rl-{__version__}"
    told = {
        f"{about}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: tracekit-rl\nVersion: {__version__}\n".encode(),
        f"{about}.dist-info/entry_points.txt": ENTRY.encode(),
    }
    found = {f"tracekit/{name}": data for name, data in sorted(files.items())} | told
    digest = short_hash(*(part for name, data in found.items() for part in (name, data.hex())))
    wheel = cache_dir() / "recorder" / digest / f"{about}-py3-none-any.whl"
    if wheel.exists():
        return wheel
    draft = wheel.with_name(f".{wheel.name}.{os.getpid()}")
    try:
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in found.items():
                file.writestr(name, data)
        draft.replace(wheel)
    except OSError as error:
        raise CacheError(f"the recorder's wheel cannot be written ({error.strerror}): {wheel}") from None
    return wheel


def _below(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        path = f"{name}/{item.name}"
        if item.is_dir():
            yield from _below(item, path)
        elif item.name.endswith((".py", ".pyi", ".binpb")):
            yield path, item.read_bytes()
