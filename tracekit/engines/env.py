"""Engine environments: a Python of their own with one version of vLLM and the recorder, built from a lock file.

`ensure` returns a whole environment or raises; it builds at most once for a lock file, and half an environment (a
folder without its marker) is removed and built again.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from tracekit import cache
from tracekit.engines import preload, recipes, selfinstall
from tracekit.engines.build import build, ensure_recorder, has_recorder
from tracekit.engines.environ import cpu_environ
from tracekit.engines.interpreter import inspect
from tracekit.engines.recipes import RECIPES
from tracekit.engines.uvtool import Progress, quiet
from tracekit.errors import EngineEnvError, UsageError


@dataclass(frozen=True)
class EngineEnv:
    """An environment that can run vLLM with the recorder in it."""

    name: str
    python: Path
    environ: dict[str, str] = field(default_factory=dict)
    """What must be added to os.environ to run it."""
    vllm_version: str = ""
    variant: str = "cpu"
    """cpu | cuda"""


def ensure(name: str, progress: Progress = quiet, *, torch_index: str | None = None) -> EngineEnv:
    """Return the environment of `name`, built first if it is not there.

    Args:
        name: "v0" (vLLM 0.8.5), "v1" (0.18.1) or "latest" (0.32.0).
        progress: is handed one line of text at a time.
        torch_index: URL of a package index with `+cpu` builds of torch; default $TRACEKIT_TORCH_INDEX.

    Raises:
        UsageError: no such engine.
        EngineEnvError: it could not be built; nothing half-built is left as whole.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown engine {name!r}: choose one of {', '.join(RECIPES)}")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise EngineEnvError("engine environments are built for Linux on x86_64 only: use --python PATH for your own")
    variant = recipes.variant_here()
    folder = recipes.folder_of(name, variant)
    if set(":;") & set(str(folder)):  # between these the loader takes the rest for another path
        raise EngineEnvError(f"no engine runs from a path with : or ; in it (set TRACEKIT_CACHE): {folder}")
    if cache.read_marker(folder) is not None and has_recorder(folder):
        return open_env(name, folder, progress)  # without a lock: the cache may be read-only
    with cache.locked(folder, progress):
        if cache.read_marker(folder) is None:
            build(name, variant, folder, progress, torch_index or os.environ.get("TRACEKIT_TORCH_INDEX"))
        ensure_recorder(folder, progress)
        return open_env(name, folder, progress)


def open_env(name: str, folder: Path, progress: Progress = quiet) -> EngineEnv:
    """Describe a whole environment folder: its interpreter and what to add to os.environ."""
    facts = cache.read_marker(folder) or {}
    variant = str(facts.get("variant", "cpu"))
    environ = {key: value for key, value in RECIPES[name].environ.items() if key not in os.environ}
    if variant == "cpu":
        tcmalloc = None
        if RECIPES[name].needs_preload:
            tcmalloc = preload.ensure_library(preload.TCMALLOC, folder / "lib", progress)
        environ |= cpu_environ(folder, tcmalloc, os.environ)
    return EngineEnv(name, folder / "bin" / "python", environ, str(facts.get("vllm", "")), variant)


def from_python(path: Path) -> EngineEnv:
    """Return the user's own environment for `--python PATH`.

    Raises:
        EngineEnvError: no such interpreter, no vLLM in it, or no recorder in it.
    """
    # not resolve(): a venv's python is a link to the base one, and following it would leave the venv
    python = Path(os.path.abspath(path.expanduser()))
    if not python.exists():
        raise EngineEnvError(f"there is no Python interpreter at {path}")
    if python.is_dir():
        raise EngineEnvError(f"this is a folder, not a Python interpreter: {path}")
    found = inspect(python)
    if found["vllm"] is None:
        raise EngineEnvError(f"vLLM is not installed in the environment of {path}")
    if found["recorder"] is None:
        hint = selfinstall.install_hint(python)
        raise EngineEnvError(f"the recorder is not installed in that environment, put it there with: {hint}")
    missing = [name for name in ("grpcio", "protobuf", "numpy") if found[name] is None]
    if missing:
        raise EngineEnvError(f"the recorder needs {', '.join(missing)} in the environment of {path}")
    variant = "cpu" if "cpu" in found["vllm"] or recipes.variant_here() == "cpu" else "cuda"
    environ = {}
    if variant == "cpu":
        folder = python.parent.parent
        places = (str(folder / "lib"), *preload.USUAL_FOLDERS)
        environ = cpu_environ(folder, preload.find_library(preload.TCMALLOC[0], places), os.environ)
    return EngineEnv("python", python, environ, found["vllm"], variant)
