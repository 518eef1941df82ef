"""A daemon over TLS: who signs, and what it shows to whom."""

from pathlib import Path

import trustme

from helpers.wire import DaemonProcess
from tracekit.errors import DaemonError
from tracekit.rpc.client import ControlClient
from tracekit.rpc.credentials import Access

TOKEN = "an-honest-token-of-length"


class Files:
    """A certificate authority, and what it gave to a daemon and a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        self.issue(self.ca)
        client = self.ca.issue_cert("client.example")
        client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
        self.secret("client.key", client.private_key_pem.bytes())
        self.secret("token", TOKEN.encode())

    def issue(self, ca: trustme.CA, **fields) -> None:
        made = ca.issue_cert("localhost", "127.0.0.1", **fields)
        self.secret("server.key", made.private_key_pem.bytes())
        made.cert_chain_pems[0].write_to_path(str(self.folder / "server.pem"))

    def secret(self, name: str, data: bytes) -> None:
        draft = self.folder / f"{name}.new"
        draft.touch(0o600)
        draft.write_bytes(data)
        draft.replace(self.folder / name)

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)


class TcpDaemon(DaemonProcess):
    """One that listens on a free port of 127.0.0.1 besides."""

    def __init__(self, folder, files, *more: str) -> None:
        super().__init__(folder)
        self.files = files
        self.argv += ["--listen", "grpcs://127.0.0.1:0", "--cert", files / "server.pem", "--key", files / "server.key"]
        self.argv += more or ["--token-file", files / "token"]

    def start(self):
        super().start()
        self.tcp = "grpcs://" + self.stderr().split("grpcs://")[-1].split()[0]
        return self

    def access(self, **fields) -> Access:
        return Access(token_file=self.files / "token", ca_file=self.files / "ca.pem")._replace(**fields)

    def ask(self, **fields) -> str:
        """What a client is told."""
        try:
            with ControlClient(self.tcp, 5, self.access(**fields)) as client:
                return client.describe().version
        except DaemonError as error:
            return str(error)
