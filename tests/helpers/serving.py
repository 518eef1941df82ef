"""A recorded `vllm serve` for tests: with a daemon of its own, and a client of the standard library."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.engine import engine_environ
from helpers.wire import DaemonProcess
from tracekit.engines.env import EngineEnv

START_SECS = 600
OPTIONS = ("--served-model-name", "policy", "--enforce-eager", "--max-model-len", "256", "--dtype", "float32")


class Server:
    """A server that answers, and where its trace is written."""

    def __init__(self, url: str, daemon: DaemonProcess) -> None:
        self.url = url
        self.daemon = daemon
        self.metrics_url = f"{url}/metrics"

    def ask(self, prompt: str | list[int], **fields: Any) -> dict[str, Any]:
        """Return the whole answer of /v1/completions."""
        with self._post({"model": "policy", "prompt": prompt, **fields}) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def hang_up_after(self, num_chunks: int, prompt: str | list[int], **fields: Any) -> None:
        """Ask for a stream and go away when so many chunks were received."""
        with self._post({"model": "policy", "prompt": prompt, "stream": True, **fields}) as answer:
            while num_chunks:
                num_chunks -= answer.readline().startswith(b"data: ")

    def metrics(self) -> str:
        with urllib.request.urlopen(self.metrics_url, timeout=60) as answer:
            text: str = answer.read().decode()
        return text

    def call_workers(self, method: str) -> None:
        """Make a collective RPC, which needs VLLM_SERVER_DEV_MODE."""
        self._post({"method": method}, "collective_rpc").close()

    def _post(self, body: dict[str, Any], path: str = "v1/completions") -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request, timeout=300)


@contextlib.contextmanager
def serve(env: EngineEnv, model: Path, folder: Path, *options: str) -> Iterator[Server]:
    """Run `vllm serve` of this environment while inside, recorded into ``folder``/spool; its log is in ``folder``."""
    daemon = DaemonProcess(folder, grace_secs=20).start()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = ["vllm", "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *OPTIONS, *options]
    log = folder / "vllm.txt"
    more = {"TRACEKIT_STRICT": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_SERVER_DEV_MODE": "1"}
    environ = engine_environ(env, TRACEKIT_DAEMON=daemon.address, **more)
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(argv, env=environ, stdout=output, stderr=output)
        try:
            _wait_ready(f"http://127.0.0.1:{port}/health", process, log)
            yield Server(f"http://127.0.0.1:{port}", daemon)
        finally:
            process.terminate()
            process.wait(60)
    finally:
        daemon.end()


def _wait_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])
