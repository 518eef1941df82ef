"""Put the running tracekit into an engine environment without moving a package there.

The files that the installed distribution lists in its RECORD are copied into the environment's site-packages, with
their dist-info, so that vLLM finds the `vllm.general_plugins` entry point. Nothing is built or fetched. For an
editable install that list holds the path file that points to the checkout: a developer's edit is live in the engine.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import shutil
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from tracekit.cache import short_hash
from tracekit.errors import EngineEnvError

DISTRIBUTION = "tracekit-rl"


def distribution() -> importlib.metadata.Distribution:
    """Return the installed distribution that is running.

    Raises:
        EngineEnvError: tracekit runs from a folder and is not installed.
    """
    try:
        return importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise EngineEnvError(
            "tracekit runs from a folder and is not installed, so it cannot install its recorder into an engine "
            "environment: pip install -e . in its checkout"
        ) from None


def listed_files(dist: importlib.metadata.Distribution) -> list[PurePosixPath]:
    """Return the distribution's files below site-packages (scripts in bin/ and byte code are left out)."""
    return [
        PurePosixPath(file)
        for file in dist.files or []
        if ".." not in file.parts and not PurePosixPath(file).is_absolute() and file.suffix != ".pyc"
    ]


def fingerprint(dist: importlib.metadata.Distribution) -> str:
    """Return a hash that changes with the distribution's version or any file of it.

    RECORD holds the hash of each file; for an editable install that is the path file, which is what is copied.
    """
    return short_hash(dist.version, dist.read_text("RECORD") or "", dist.read_text("entry_points.txt") or "")


def copy_into(site_packages: Path, dist: importlib.metadata.Distribution) -> None:
    """Copy the distribution's files into `site_packages`, in place of those of an earlier copy.

    Raises:
        EngineEnvError: a listed file is missing or the target cannot be written.
    """
    remove_from(site_packages)
    files = listed_files(dist)
    if not files:
        raise EngineEnvError(f"the installed {DISTRIBUTION} lists no files (no RECORD): install it again with pip")
    # the dist-info last: until it is there, no entry point points to half a package
    for file in sorted(files, key=lambda file: ".dist-info" in file.parts[0]):
        target = site_packages / file
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(dist.locate_file(str(file))), target)
        except OSError as error:
            raise EngineEnvError(f"the recorder could not be copied ({error.strerror}): {target}") from None


def remove_from(site_packages: Path) -> None:
    """Remove an earlier copy: its dist-info first, then its packages and path file."""
    stem = DISTRIBUTION.replace("-", "_")
    for path in (*site_packages.glob(f"{stem}-*.dist-info"), site_packages / "tracekit", site_packages / "tracekitd"):
        shutil.rmtree(path, ignore_errors=True)
    for path in site_packages.glob(f"*{stem}*.pth"):
        path.unlink()


def install_hint(python: Path) -> str:
    """Return the command, to be pasted into a shell, that puts the recorder into somebody's environment alone."""
    # uv itself need not be on PATH; `python -m uv` is beside us
    return shlex.join([sys.executable, "-m", "uv", "pip", "install", "--python", str(python), "--no-deps", _origin()])


def _origin() -> str:
    """What the running tracekit was installed from, as an installer takes it."""
    dist = distribution()
    origin = json.loads(dist.read_text("direct_url.json") or "{}")
    url = str(origin.get("url", ""))
    if vcs := origin.get("vcs_info"):
        return f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    if url.startswith("file://"):
        return unquote(urlsplit(url).path)
    return url or f"{DISTRIBUTION}=={dist.version}"
