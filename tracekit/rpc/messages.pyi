# Written by scripts/gen_proto.py from proto/; do not edit.
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

from typing_extensions import Self

PROTOCOL: int
MAX_MESSAGE_BYTES: int
MAX_HEAD_BYTES: int
MAX_PIECE_BYTES: int
MAX_PAYLOAD_BYTES: int
MAX_SEQ: int
MAX_COUNT: int
MAX_TEXT: int
FILES: tuple[Any, ...]  # FileDescriptorProto of each file

_T = TypeVar("_T")

class _Repeated(Generic[_T]):
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_T]: ...
    def __getitem__(self, index: int) -> _T: ...
    def add(self, **fields: Any) -> _T: ...
    def append(self, value: _T) -> None: ...
    def extend(self, values: Iterable[_T]) -> None: ...

class _Message:
    @classmethod
    def FromString(cls, data: bytes) -> Self: ...
    def SerializeToString(self) -> bytes: ...
    def ByteSize(self) -> int: ...
    def HasField(self, name: str) -> bool: ...
    def CopyFrom(self, other: Self) -> None: ...

class Frame(_Message):
    crc: int
    batch: bytes
    payload: bytes
    def __init__(
        self,
        *,
        crc: int = ...,
        batch: bytes = ...,
        payload: bytes = ...,
    ) -> None: ...

class Hello(_Message):
    protocol: int
    schema: int
    recorder_version: str
    token: str
    trainer: bool
    def __init__(
        self,
        *,
        protocol: int = ...,
        schema: int = ...,
        recorder_version: str = ...,
        token: str = ...,
        trainer: bool = ...,
    ) -> None: ...

class Counters(_Message):
    produced: MutableMapping[str, int]
    lost: MutableMapping[str, int]
    def __init__(
        self,
        *,
        produced: Mapping[str, int] = ...,
        lost: Mapping[str, int] = ...,
    ) -> None: ...

class Loss(_Message):
    from_seq: int
    to_seq: int
    reason: str
    rows: MutableMapping[str, int]
    def __init__(
        self,
        *,
        from_seq: int = ...,
        to_seq: int = ...,
        reason: str = ...,
        rows: Mapping[str, int] = ...,
    ) -> None: ...

class Batch(_Message):
    engine_id: str
    seq: int
    totals: Counters
    losses: _Repeated[Loss]
    hello: Hello
    last: bool
    results: _Repeated[CommandResult]
    piece: int
    pieces: int
    def __init__(
        self,
        *,
        engine_id: str = ...,
        seq: int = ...,
        totals: Counters | None = ...,
        losses: Iterable[Loss] = ...,
        hello: Hello | None = ...,
        last: bool = ...,
        results: Iterable[CommandResult] = ...,
        piece: int = ...,
        pieces: int = ...,
    ) -> None: ...

class Ack(_Message):
    durable_seq: int
    commands: _Repeated[Command]
    def __init__(
        self,
        *,
        durable_seq: int = ...,
        commands: Iterable[Command] = ...,
    ) -> None: ...

class Command(_Message):
    id: str
    mark_weights: MarkWeights
    def __init__(
        self,
        *,
        id: str = ...,
        mark_weights: MarkWeights | None = ...,
    ) -> None: ...

class MarkWeights(_Message):
    label: str
    checkpoint: str
    def __init__(
        self,
        *,
        label: str = ...,
        checkpoint: str = ...,
    ) -> None: ...

class CommandResult(_Message):
    id: str
    error: str
    weight_version: int
    engine_step: int
    def __init__(
        self,
        *,
        id: str = ...,
        error: str = ...,
        weight_version: int = ...,
        engine_step: int = ...,
    ) -> None: ...

class DescribeRequest(_Message):
    def __init__(self) -> None: ...

class DescribeReply(_Message):
    protocol: int
    schema: int
    version: str
    spool: str
    def __init__(
        self,
        *,
        protocol: int = ...,
        schema: int = ...,
        version: str = ...,
        spool: str = ...,
    ) -> None: ...

class ListEnginesRequest(_Message):
    live: bool
    def __init__(
        self,
        *,
        live: bool = ...,
    ) -> None: ...

class EngineInfo(_Message):
    engine_id: str
    engine: int
    durable_seq: int
    totals: Counters
    open: bool
    ended: bool
    trainer: bool
    live: Live
    def __init__(
        self,
        *,
        engine_id: str = ...,
        engine: int = ...,
        durable_seq: int = ...,
        totals: Counters | None = ...,
        open: bool = ...,
        ended: bool = ...,
        trainer: bool = ...,
        live: Live | None = ...,
    ) -> None: ...

class Live(_Message):
    engine_step: int
    weight_version: int
    num_requests: int
    num_waiting: int
    kv_usage: float
    compared_tokens: int
    ratio_mean: float
    mismatch_kl: float
    def __init__(
        self,
        *,
        engine_step: int = ...,
        weight_version: int = ...,
        num_requests: int = ...,
        num_waiting: int = ...,
        kv_usage: float = ...,
        compared_tokens: int = ...,
        ratio_mean: float = ...,
        mismatch_kl: float = ...,
    ) -> None: ...

class ListEnginesReply(_Message):
    engines: _Repeated[EngineInfo]
    def __init__(
        self,
        *,
        engines: Iterable[EngineInfo] = ...,
    ) -> None: ...

class FlushRequest(_Message):
    def __init__(self) -> None: ...

class FlushReply(_Message):
    def __init__(self) -> None: ...

class MarkWeightsRequest(_Message):
    mark: MarkWeights
    engines: _Repeated[int]
    def __init__(
        self,
        *,
        mark: MarkWeights | None = ...,
        engines: Iterable[int] = ...,
    ) -> None: ...

class MarkWeightsReply(_Message):
    engines: _Repeated[MarkedEngine]
    def __init__(
        self,
        *,
        engines: Iterable[MarkedEngine] = ...,
    ) -> None: ...

class MarkedEngine(_Message):
    engine: int
    engine_id: str
    result: CommandResult
    def __init__(
        self,
        *,
        engine: int = ...,
        engine_id: str = ...,
        result: CommandResult | None = ...,
    ) -> None: ...
