"""Find the libraries that vLLM's CPU builds want from the system, or fetch them without touching the system.

vLLM 0.18.1 refuses to start on a CPU unless libtcmalloc and libiomp5 are in LD_PRELOAD, and its extension links to
libnuma. libiomp5 comes with the environment; the other two are Debian packages that may not be there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tracekit.engines.uvtool import Progress
from tracekit.errors import EngineEnvError

# wanted -> (names it may have, Debian packages that carry it)
TCMALLOC = (("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"), ("libtcmalloc-minimal4", "libtcmalloc-minimal4t64"))
NUMA = (("libnuma.so.1",), ("libnuma1",))
USUAL_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64", "/usr/local/lib")


def find_library(names: tuple[str, ...], folders: tuple[str, ...] = USUAL_FOLDERS) -> Path | None:
    """Return the path of the first of `names` that is in `folders` or known to the loader's cache."""
    for name in names:
        for folder in folders:
            if (Path(folder) / name).exists():
                return Path(folder) / name
    loader = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")
    if loader is None:
        return None
    done = subprocess.run([loader, "-p"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in done.stdout.splitlines():
        name, _, path = line.partition("=>")
        if name.split()[:1] and name.split()[0] in names and "x86-64" in name and Path(path.strip()).exists():
            return Path(path.strip())
    return None


def ensure_library(wanted: tuple[tuple[str, ...], tuple[str, ...]], folder: Path, progress: Progress) -> Path:
    """Return the library's path: in `folder`, on the system, or unpacked from its Debian package into `folder`.

    Raises:
        EngineEnvError: it is nowhere; the message says which package to install.
    """
    names, packages = wanted
    found = find_library(names, (str(folder),)) if folder.exists() else None
    found = found or find_library(names)
    if found is not None:
        return found
    for package in packages:
        progress(f"fetching the Debian package {package} (the system is not changed)")
        if fetch_debian(package, names, folder):
            return next(folder / name for name in names if (folder / name).exists())
    raise EngineEnvError(f"vLLM on a CPU needs {names[0]}, which is not installed: apt-get install {packages[0]}")


def fetch_debian(package: str, names: tuple[str, ...], folder: Path) -> bool:
    """Download `package` with apt-get, unpack it in a temporary folder, and copy the library into `folder`."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return False
    with tempfile.TemporaryDirectory() as temp:
        # apt drops to a user of its own for downloads, who must be able to write here
        os.chmod(temp, 0o777)
        got = download(package, temp)
        if not got and os.geteuid() == 0 and quietly("apt-get", "update"):  # lists of packages may be missing
            got = download(package, temp)
        if not got:
            return False
        deb = next(Path(temp).glob("*.deb"))
        if not quietly("dpkg-deb", "-x", str(deb), temp + "/unpacked"):
            return False
        for name in names:
            for path in Path(temp, "unpacked").rglob(name):
                folder.mkdir(parents=True, exist_ok=True)
                part = folder / (name + ".part")
                shutil.copyfile(path, part)
                os.replace(part, folder / name)
                return True
    return False


def download(package: str, folder: str) -> bool:
    """Run `apt-get download` in `folder` and say whether a package file came."""
    return quietly("apt-get", "download", package, cwd=folder) and any(Path(folder).glob("*.deb"))


def quietly(*command: str, cwd: str | None = None) -> bool:
    """Run a command without output and say whether it succeeded."""
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(command, cwd=cwd, stdin=quiet, stdout=quiet, stderr=quiet, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
