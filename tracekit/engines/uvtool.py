"""Run the `uv` program with the package sources that the user's pip is configured with.

uv does not read pip's configuration, so a mirror or a folder of wheels that works for pip would be missed. What uv's
own configuration (`UV_*`) already says is left as it is.
"""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tracekit import cache
from tracekit.errors import EngineEnvError

Progress = Callable[[str], None]


def quiet(_text: str) -> None:
    """Show no progress."""


def uv_binary() -> str:
    """Return the path of the uv program that our `uv` dependency installed.

    Raises:
        EngineEnvError: uv is not installed beside tracekit.
    """
    try:
        import uv

        return os.fsdecode(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        raise EngineEnvError(
            "the uv program that builds engine environments is missing: "
            + shlex.join([sys.executable, "-m", "pip", "install", "uv"])
        ) from None


def pip_settings() -> dict[str, str]:
    """Return pip's configuration as `{"find-links": ..., "index-url": ...}`; later sources win, as in pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
        listing = done.stdout
    except (OSError, subprocess.TimeoutExpired):
        listing = ""
    settings = parse_pip_config(listing)
    for name in ("find-links", "index-url", "extra-index-url", "no-index", "cert", "proxy", "trusted-host"):
        value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            settings[name] = value
    return settings


def parse_pip_config(listing: str) -> dict[str, str]:
    """Read the output of `pip config list`: lines like `global.find-links='/wheels'`.

    Sections count in pip's order of strength: `global`, then `install`, then `:env:`.
    """
    settings: dict[str, str] = {}
    entries = []
    for line in listing.splitlines():
        key, _, literal = line.partition("=")
        section, _, name = key.rpartition(".")
        if section not in ("global", "install", ":env:"):
            continue
        try:
            entries.append((("global", "install", ":env:").index(section), name, str(ast.literal_eval(literal))))
        except (ValueError, SyntaxError):
            continue
    for _, name, value in sorted(entries, key=lambda entry: entry[0]):
        settings[name] = value
    return settings


def source_flags(settings: Mapping[str, str], environ: Mapping[str, str], extra_index: str | None = None) -> list[str]:
    """Turn pip's settings into uv flags; a setting that uv has from its own `UV_*` variable is left out.

    Args:
        settings: as from pip_settings().
        environ: the environment uv will run in.
        extra_index: one more index to look at, such as PyTorch's index of CPU wheels.
    """
    flags: list[str] = []
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        flags.append("--no-index")
    if settings.get("index-url") and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environ.keys():
        flags += ["--default-index", settings["index-url"]]
    indexes = [extra_index] if extra_index else []
    if not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & environ.keys():
        indexes += settings.get("extra-index-url", "").split()
    for index in indexes:
        flags += ["--index", index]
    if "UV_FIND_LINKS" not in environ:
        for place in settings.get("find-links", "").split():
            flags += ["--find-links", os.path.expanduser(place)]
    if "UV_INSECURE_HOST" not in environ:
        for host in settings.get("trusted-host", "").split():
            flags += ["--allow-insecure-host", host]
    return flags


def source_environ(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that carry pip's certificate and proxy to uv, where the user has not set them."""
    added = {}
    if settings.get("cert") and "SSL_CERT_FILE" not in environ:
        added["SSL_CERT_FILE"] = settings["cert"]
    if settings.get("proxy") and not {"ALL_PROXY", "HTTPS_PROXY", "https_proxy", "all_proxy"} & environ.keys():
        added["ALL_PROXY"] = settings["proxy"]
    return added


def own_cache(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that gives uv a cache beside our environments, where it cannot write its own."""
    if environ.get("UV_CACHE_DIR"):
        return {}
    folder = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "uv"
    folder = next(place for place in (folder, *folder.parents) if place.exists())
    return {} if os.access(folder, os.W_OK) else {"UV_CACHE_DIR": str(cache.cache_dir() / "uv")}


def pip_install(python: Path, arguments: Sequence[str], progress: Progress, torch_index: str | None = None) -> None:
    """Run `uv pip install --no-deps` with `arguments` into the environment of `python`.

    Raises:
        EngineEnvError: uv failed; the message holds its last lines.
    """
    settings = pip_settings()
    flags = source_flags(settings, os.environ, torch_index)
    # every pin is exact: which index serves it must not depend on the order of the indexes, as in pip
    command = ["pip", "install", "--no-deps", "--python", str(python), "--index-strategy", "unsafe-best-match"]
    run([*command, *flags, *arguments], progress, source_environ(settings, os.environ))


def run(arguments: Sequence[str], progress: Progress, environ: Mapping[str, str] | None = None) -> None:
    """Run uv, hand each line it prints to `progress`, and raise EngineEnvError if it fails."""
    command = [uv_binary(), *arguments]
    last: deque[str] = deque(maxlen=12)
    # a virtual environment that is active around us must not be taken for the one uv works on
    env = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"} | dict(environ or {})
    env |= own_cache(os.environ)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if text := line.strip():
                last.append(text)
                # "+ name==version" for each of 150 packages says nothing new
                if not text.startswith(("+ ", "Using Python")):
                    progress(text)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        verb = shlex.join(arguments[:2]) if arguments[0] == "pip" else arguments[0]
        raise EngineEnvError(f"`uv {verb}` failed with exit code {code}: {failure_text(last)}")


def failure_text(lines: Sequence[str]) -> str:
    """Return the part of uv's last lines that says what went wrong, as one line."""
    start = next((i for i, line in enumerate(lines) if line.startswith(("error", "×", "Error"))), 0)
    return " ".join(line.lstrip("×╰─▶│├ ") for line in list(lines)[start:]) or "it printed nothing"
