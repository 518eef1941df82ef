"""Fetch objects into the cache folder, once for as long as they stay the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tracekit import cache
from tracekit.errors import CacheError, NoSuchObjectError
from tracekit.objects.address import Address, is_url
from tracekit.objects.store import Store, Stored

Say = Callable[[str], None]
_LINE_SECS = 10.0
_PATIENCE_SECS = 2.0
_WEIGHTS = (".safetensors", ".bin")  # the first kind that is there is what transformers loads
_BESIDE = (".json", ".jinja", ".model", ".txt")


def quiet(_line: str) -> None:
    """Say nothing."""


def local_file(url: str, say: Say = quiet) -> Path:
    """Return a copy of one object.

    Raises:
        NoSuchObjectError, StoreError, CacheError, UsageError
    """
    store = Store(Address.of(url))
    stored = store.object()
    return _fetched(store, [stored], say) / stored.name


def local_folder(where: str, say: Say = quiet) -> Path:
    """Return the folder of a model: one on this machine as it is, of a URL a copy of what transformers reads of it.

    Raises:
        NoSuchObjectError, StoreError, CacheError, UsageError
    """
    if not is_url(where):
        return Path(where)
    store = Store(Address.of(where))
    return _fetched(store, _model(store), say)


def _model(store: Store) -> list[Stored]:
    found = store.below(_of_a_model)
    if not any(stored.name == "config.json" for stored in found):
        raise NoSuchObjectError("model folder (nothing called config.json)", store.address.url)
    return found


def _of_a_model(names: set[str]) -> set[str]:
    """Pick what transformers reads: a checkpoint has gigabytes of optimizer state beside it."""
    seen = {name for name in names if not name.startswith(".")}
    weights = next((kind for kind in _WEIGHTS if any(name.endswith(kind) for name in seen)), _WEIGHTS[0])
    return {name for name in seen if name.endswith((weights, *_BESIDE))}


def _fetched(store: Store, objects: Sequence[Stored], say: Say) -> Path:
    """Return a folder in the cache that holds these objects as they are now."""
    address = store.address
    facts = [f"{stored.path} {stored.size} {stored.tag}" for stored in objects]
    folder = cache.cache_dir() / "objects" / cache.short_hash(address.server, *facts) / address.name
    if cache.read_marker(folder) is not None:
        return folder
    with cache.locked(folder, say):
        if cache.read_marker(folder) is None:
            cache.remove_folder(folder)
            total = sum(stored.size for stored in objects)
            cache.require_space(folder, total, address.url)
            try:
                folder.mkdir(parents=True)
                store.download(objects, folder, _teller(address.url, total, say))
                cache.write_marker(folder, {"url": address.url, "objects": facts})
            except OSError as error:
                raise CacheError(f"cannot write into the cache folder ({error.strerror}): {folder}") from None
    return folder


def _teller(url: str, total: int, say: Say) -> Callable[[int], None]:
    done, due = 0, time.monotonic() + _PATIENCE_SECS

    def on_bytes(count: int) -> None:
        nonlocal done, due
        done += count
        if (now := time.monotonic()) >= due:
            due = now + _LINE_SECS
            say(f"fetching {url}: {done / 1e9:.2f} of {total / 1e9:.2f} GB")

    return on_bytes
