"""Ask an object store, with an end to every wait, and one sentence for whatever goes wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from tracekit.errors import NoSuchObjectError, StoreError
from tracekit.objects.address import Address

# not left to pyarrow, whose retries may go on for minutes; these end a wait after about 10 seconds
_ATTEMPTS = 3
_CONNECT_SECS = 2.0
_STALL_SECS = 3.0
_PIECE_BYTES = 16 << 20
_AT_ONCE = 8
_FAILURE = re.compile(
    r"AWS Error (?P<code>\w+)(?: \(HTTP status (?P<status>\d+)\))? during \w+ operation(?:: (?P<detail>.*))?"
)
_REFUSALS = ("ACCESS_DENIED", "SIGNATURE_DOES_NOT_MATCH", "INVALID_ACCESS_KEY_ID", "INVALID_SIGNATURE",
             "MISSING_AUTHENTICATION_TOKEN", "UNRECOGNIZED_CLIENT", "INVALID_CLIENT_TOKEN_ID")  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """An object as the store has it now."""

    name: str  # the last part of its key
    path: str  # bucket and key
    size: int  # bytes
    tag: str  # changes with the content: the ETag, or the time of the last change where a store has none


class Store:
    """The server of an address."""

    def __init__(self, address: Address) -> None:
        """Connect.

        Raises:
            StoreError: this pyarrow has no S3, or the bucket's region cannot be had.
        """
        self.address = address
        with self._asked():
            self._files = _connect(address)

    def object(self) -> Stored:
        """Return the object of the address.

        Raises:
            NoSuchObjectError: it is not there.
            StoreError: the store does not answer, or refuses.
        """
        with self._asked():
            return self._stored(self._files.get_file_info(self.address.path))

    def below(self, wanted: Callable[[set[str]], set[str]]) -> list[Stored]:
        """Return the objects right below the address that `wanted` picks from all names, in the order of their names.

        Raises:
            NoSuchObjectError: there is nothing below it.
            StoreError: as `object`.
        """
        with self._asked():
            found = self._files.get_file_info(pafs.FileSelector(self.address.path))
            there = {info.base_name: info for info in found if info.type == pafs.FileType.File}
            return [self._stored(there[name]) for name in sorted(wanted(set(there)))]

    def download(self, objects: Sequence[Stored], folder: Path, on_bytes: Callable[[int], None]) -> None:
        """Write objects into files of a folder, synced, pieces of them at a time.

        Raises:
            StoreError: as `object`, or an object changed or ended early meanwhile.
            OSError: the disk refused.
        """
        for stored in objects:
            with self._asked():
                source = self._files.open_input_file(stored.path)
            with open(folder / stored.name, "wb") as file, ThreadPoolExecutor(_AT_ONCE) as pool:
                pieces = range(0, stored.size, _PIECE_BYTES)
                done = [pool.submit(self._piece, source, stored, file.fileno(), offset) for offset in pieces]
                try:
                    for piece in done:
                        on_bytes(piece.result())
                finally:
                    pool.shutdown(cancel_futures=True)
                os.fsync(file.fileno())
            with self._asked():
                if self._stored(self._files.get_file_info(stored.path)) != stored:
                    raise StoreError(f"{stored.name} changed while it was being read: {self.address.url}")

    def upload(self, path: Path) -> None:
        """Store a file as the object of the address, and read it back: what is there is what the file holds.

        Raises:
            StoreError: as `object`, or what came back is something else.
            OSError: the file cannot be read.
        """
        with open(path, "rb") as file:
            with self._asked(), self._files.open_output_stream(self.address.path) as target:
                while piece := file.read(_PIECE_BYTES):
                    target.write(piece)
            with self._asked():
                source = self._files.open_input_stream(self.address.path)
            file.seek(0)
            while True:
                wanted = file.read(_PIECE_BYTES)
                with self._asked():
                    found = source.read(_PIECE_BYTES)
                if found != wanted:
                    raise StoreError(f"what was stored came back as something else: {self.address.url}")
                if not wanted:
                    return

    def _piece(self, source: pa.NativeFile, stored: Stored, target: int, offset: int) -> int:
        wanted = min(_PIECE_BYTES, stored.size - offset)
        with self._asked():
            data = source.read_at(wanted, offset)
        if len(data) != wanted:
            raise StoreError(f"{stored.name} ended before its own end: {self.address.url}")
        view = memoryview(data)
        while view:  # a write may take a part
            written = os.pwrite(target, view, offset)
            view, offset = view[written:], offset + written
        return wanted

    def _stored(self, info: pafs.FileInfo) -> Stored:
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(info.path)
        metadata = self._files.open_input_file(info.path).metadata()
        tag = metadata.get("ETag", metadata.get("Last-Modified", b""))
        return Stored(info.base_name, info.path, info.size, tag.decode())

    @contextmanager
    def _asked(self) -> Iterator[None]:
        url = self.address.url
        try:
            yield
        except FileNotFoundError:
            raise NoSuchObjectError("such object", url) from None
        except (pa.ArrowException, OSError) as error:
            raise _explained(str(error), self.address) from None


def _connect(address: Address) -> pafs.FileSystem:
    if not hasattr(pafs, "S3FileSystem"):
        raise StoreError(f"this build of pyarrow reads no object store, the one on PyPI does: {address.url}")
    region = address.region
    if region is None:
        region = "us-east-1" if address.endpoint else pafs.resolve_s3_region(address.bucket)
    return pafs.S3FileSystem(
        region=region,
        scheme=address.scheme,
        endpoint_override=address.endpoint,
        connect_timeout=_CONNECT_SECS,
        request_timeout=_STALL_SECS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )


def _explained(text: str, address: Address) -> StoreError:
    found = _FAILURE.search(text)
    if found is None:
        return StoreError(f"the object store cannot be read ({text.splitlines()[0]}): {address.url}")
    code, detail = found["code"], (found["detail"] or "").rpartition("Details: ")[2].splitlines()
    if code == "NO_SUCH_BUCKET":
        return NoSuchObjectError("such bucket", address.url)
    if code == "NETWORK_CONNECTION":
        why = detail[0] if detail else code
        return StoreError(f"the object store at {address.server} does not answer ({why}): {address.url}")
    if code in _REFUSALS or found["status"] in ("401", "403"):
        return StoreError(f"the object store refuses these credentials ({code}; they are those of the AWS clients, "
                          f"AWS_ACCESS_KEY_ID or a profile): {address.url}")  # fmt: skip
    why = f"{code}: {detail[0]}" if detail else code
    return StoreError(f"the object store failed ({why}): {address.url}")
