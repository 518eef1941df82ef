"""Resolve the lock files of the engine environments again (maintainers only).

`python -m tracekit.engines.relock [v0-cpu ...]`, all where none is named.

Each `locks/<name>-<variant>.in` (and `.override`) becomes `.txt`: one resolution per Python version for Linux on
x86_64, merged, with a marker on the lines that differ. NVIDIA's libraries of a CPU lock go to `.nvidia.txt`: they are
installed only where the torch that was found is a CUDA build (PyPI's), not with a `+cpu` one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tracekit.engines import uvtool
from tracekit.engines.recipes import LOCKS, RECIPES


def resolve(source: Path, python: str) -> list[str]:
    """Return the pinned requirements of `source` for one Python version, sorted, without comments."""
    command = [uvtool.uv_binary(), "pip", "compile", "--quiet", "--no-config", "--no-header", "--no-annotate"]
    command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28", str(source)]
    override = source.with_suffix(".override")
    if override.exists():
        command += ["--override", str(override)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line and not line.startswith("#")]


def merge(resolved: dict[str, list[str]]) -> list[str]:
    """Join the resolutions of several Pythons; a line that not all have gets a marker that names those that do."""
    lines = []
    for line in sorted({line for found in resolved.values() for line in found}):
        having = [python for python in resolved if line in resolved[python]]
        marker = " or ".join(f"python_version == '{python}'" for python in having)
        lines.append(line if len(having) == len(resolved) else f"{line} ; {marker}")
    return lines


def write(path: Path, lines: list[str]) -> None:
    """Write a lock file."""
    path.write_text("# Linux x86_64; written by tracekit.engines.relock, do not edit\n" + "\n".join(lines) + "\n")


def main() -> None:
    """Resolve the lock files that the command line names, or all."""
    wanted = sys.argv[1:]
    for source in sorted(LOCKS.glob("*.in")):
        if wanted and source.stem not in wanted:
            continue
        pythons = [f"{major}.{minor}" for major, minor in RECIPES[source.stem.partition("-")[0]].pythons]
        lines = merge({python: resolve(source, python) for python in pythons})
        libraries = [line for line in lines if line.startswith(("nvidia-", "cuda-"))]
        if source.stem.endswith("-cpu"):
            lines = [line for line in lines if line not in libraries]
            write(source.with_suffix(".nvidia.txt"), libraries)
        write(source.with_suffix(".txt"), lines)
        print(f"{source.stem}: {len(lines)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
