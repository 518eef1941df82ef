"""What a daemon is told at its start: options, or a TOML file with the same names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomllib

from tracekit.errors import UsageError

MAX_NUMBER = 1e18  # seconds or bytes
_NEEDED = {"listen": "unix:PATH, or grpcs://HOST:PORT", "spool": "a folder for what comes"}


@dataclass(frozen=True)
class Config:
    """One daemon.

    Example:
        Config(listen=("unix:/run/user/1000/tracekit/d.sock",), spool=Path("spool"), seal=Path("trace.arrow"))
    """

    listen: tuple[str, ...]  # unix:/path/to.sock, grpcs://HOST:PORT, or both
    spool: Path  # folder of the hot segments, created if need be
    seal: Path | None = None  # on shutdown, make this trace of the spool and remove the spool
    grace: float = 10.0  # how many seconds a shutdown waits for connected engines to finish
    cert: Path | None = None  # of grpcs://, and its key
    key: Path | None = None
    client_ca: Path | None = None  # clients must have a certificate that it signed
    token_file: Path | None = None  # clients must have one of its tokens
    metrics: str | None = None  # HOST:PORT of an HTTP server for Prometheus
    log: str = "text"  # text or json
    roll_secs: float = 300.0  # after so many seconds a segment is ended, and sealed into a part
    roll_bytes: float = float(64 << 20)  # or after so many bytes
    archive: str | None = None  # s3:// URL below which every part is stored
    keep_secs: float = 0.0  # parts that are in the archive are removed here after so many seconds; 0: never
    keep_bytes: float = 0.0  # or where all parts here are larger; 0: never
    attached: bool = False  # see `Daemon.hear`; signals are ignored

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Config:
        """Make one of names and values, as options or a file have them.

        Args:
            given: by name; a None is as good as none.
            where: who said it, for the error.

        Raises:
            UsageError: an unknown name, a value that is not of its kind, or no spool or address.
        """
        known = {field.name: str(field.type) for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            key = name.replace("-", "_")
            if key not in known:
                raise UsageError(f"{where} has an unknown setting: {name}")
            if value is not None:
                values[key] = _value(known[key], value, f"{where}: {name.replace('_', '-')}")
        for name in _NEEDED:
            if not values.get(name):
                raise UsageError(f"{where} names no {name} ({_NEEDED[name]})")
        if values.get("log", "text") not in ("text", "json"):
            raise UsageError(f"{where}: log is text or json, not {values['log']}")
        if (values.get("keep_secs") or values.get("keep_bytes")) and not values.get("archive"):
            raise UsageError(
                f"{where}: what is not in an archive is never removed, so keep-secs and keep-bytes need one"
            )
        return cls(**values)


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file, as they are written there.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise UsageError(f"this is nested too deep to be settings: {path}") from None
    except ValueError as error:
        raise UsageError(f"this is not TOML ({error}): {path}") from None


def _value(kind: str, value: Any, where: str) -> Any:
    if kind.startswith("tuple"):
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list | tuple) and all(map(_is_text, texts)):
            return tuple(texts)
    elif kind == "bool" and isinstance(value, bool):
        return value
    elif kind == "float" and type(value) in (int, float) and 0 <= value <= MAX_NUMBER:
        return float(value)
    elif kind.startswith("Path") and _is_text(value):
        with contextlib.suppress(RuntimeError):  # nobody of that name
            return Path(value).expanduser()
    elif kind.startswith("str") and _is_text(value):
        return value
    raise UsageError(f"{where} cannot be {value!r:.200}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value  # which no path and no address may hold
