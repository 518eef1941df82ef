"""Object stores on this machine, each a process of its own: moto has AWS's semantics, rclone checks who asks."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs

BUCKET = "runs"
# without the two checksum settings, rclone refuses what an AWS client of today uploads in parts
ENVIRON = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
_BIN = Path(sys.executable).parent


class StoreServer:
    """A server with one bucket; `folder` is where rclone keeps its objects."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        (folder / BUCKET).mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> StoreServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> StoreServer:
        address = f"127.0.0.1:{self.port}"
        argv = {
            "moto": [_BIN / "moto_server", "-H", "127.0.0.1", "-p", str(self.port)],
            "rclone": [_BIN / "rclone", "serve", "s3", "--addr", address, "--auth-key", "key,secret",
                       "--dir-cache-time", "0s", "--config", "", str(self.folder)],
        }[self.kind]  # fmt: skip
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                assert self.process.poll() is None, "the store did not start"
                time.sleep(0.05)
        if self.kind == "moto":
            self._client().create_dir(BUCKET)
        return self

    def url(self, key: str, *, bucket: str = BUCKET) -> str:
        return f"s3://{bucket}/{key}?endpoint_override={self.endpoint}"

    def put(self, key: str, data: bytes) -> str:
        """Store an object; returns its URL."""
        if self.kind == "rclone":
            path = self.folder / BUCKET / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            with self._client().open_output_stream(f"{BUCKET}/{key}") as stream:
                stream.write(data)
        return self.url(key)

    def put_folder(self, key: str, folder: Path) -> str:
        for path in folder.iterdir():
            self.put(f"{key}/{path.name}", path.read_bytes())
        return self.url(key)

    def _client(self) -> pafs.S3FileSystem:
        return pafs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{self.port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
