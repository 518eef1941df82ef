"""What vLLM's CPU builds need in os.environ."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tracekit.engines import preload


def cpu_environ(folder: Path, tcmalloc: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what vLLM on a CPU needs in its environment; what the user has set already is left as it is.

    Args:
        folder: the environment, whose lib/ holds libiomp5.so.
        tcmalloc: the library to load first, or None where this vLLM needs none.
        environ: the environment as the user has it.
    """
    wanted = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    added = {key: value for key, value in wanted.items() if key not in environ}
    loaded = environ.get("LD_PRELOAD", "")
    libraries = [] if tcmalloc is None or "libtcmalloc" in loaded else [str(tcmalloc)]
    if tcmalloc is not None and "libiomp" not in loaded and (folder / "lib" / "libiomp5.so").exists():
        libraries.append(str(folder / "lib" / "libiomp5.so"))
    # a library taken from its package into our folder is found by name only through this
    places = [str(folder / "lib")] if (folder / "lib" / preload.NUMA[0][0]).exists() else []
    for number, library in enumerate(libraries):
        if re.search(r"\s", library):  # LD_PRELOAD ends a path there, LD_LIBRARY_PATH does not
            place, libraries[number] = os.path.split(library)
            places += [place] if place not in places else []
    if places:
        added["LD_LIBRARY_PATH"] = ":".join([*places, environ.get("LD_LIBRARY_PATH", "")]).rstrip(":")
    if libraries:
        added["LD_PRELOAD"] = ":".join([*libraries, loaded]).rstrip(":")
    return added
