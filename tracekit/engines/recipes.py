"""What makes each engine environment: its vLLM, its lock files, and the folder it lives in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tracekit import cache

LOCKS = Path(__file__).parent / "locks"
BUILD = "2"  # raised when the way of building changes, so that older environments are not taken for today's


@dataclass(frozen=True)
class Recipe:
    """What makes one engine environment.

    Example:
        Recipe("0.18.1", {"cpu": 9_000_000_000, "cuda": 14_000_000_000}, ("libtcmalloc", "libiomp5"))
    """

    vllm_version: str
    num_bytes: Mapping[str, int]
    """Disk it takes, with head-room, by variant."""
    needs_preload: bool
    """Whether the CPU build refuses to start without libtcmalloc and libiomp5 in LD_PRELOAD."""
    pythons: tuple[tuple[int, int], ...] = ((3, 11), (3, 12), (3, 13))
    """Python versions that its lock files were resolved for."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """What must be in os.environ for it to run this engine."""
    weak_symbols: tuple[str, str] | None = None
    """(file below site-packages, version) of a symbol version that its CPU build asks for and does not use."""


RECIPES = {
    "v0": Recipe(
        "0.8.5",
        {"cpu": 8_000_000_000, "cuda": 12_000_000_000},
        needs_preload=False,
        pythons=((3, 11), (3, 12)),
        environ={"VLLM_USE_V1": "0"},
        weak_symbols=("vllm/_C.abi3.so", "GLIBCXX_3.4.32"),
    ),
    "v1": Recipe("0.18.1", {"cpu": 9_000_000_000, "cuda": 14_000_000_000}, needs_preload=True),
    "latest": Recipe("0.32.0", {"cpu": 3_500_000_000, "cuda": 16_000_000_000}, needs_preload=False),
}


def variant_here() -> str:
    """Return "cuda" where an NVIDIA GPU can be used, else "cpu"."""
    if Path("/dev/nvidia0").exists():
        return "cuda"
    if shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if done.returncode == 0 and "GPU" in done.stdout:
            return "cuda"
    return "cpu"


def python_request(name: str) -> tuple[str, str]:
    """Return the Python to build on: (what uv is asked for, "3.11"): the running one where the locks know it."""
    running = sys.version_info[:2]
    if running in RECIPES[name].pythons:
        return sys.executable, f"{running[0]}.{running[1]}"
    return "3.11", "3.11"


def locks_of(name: str, variant: str) -> tuple[Path, Path | None]:
    """Return the lock file, and that of the NVIDIA libraries which only a CUDA build of torch needs."""
    nvidia = LOCKS / f"{name}-{variant}.nvidia.txt"
    return LOCKS / f"{name}-{variant}.txt", nvidia if nvidia.exists() else None


def folder_of(name: str, variant: str) -> Path:
    """Return where the environment is or will be; the name changes with the lock, the variant and the Python."""
    texts = [path.read_text() for path in locks_of(name, variant) if path is not None]
    return cache.cache_dir() / "engines" / f"{name}-{cache.short_hash(BUILD, variant, python_request(name)[1], *texts)}"
