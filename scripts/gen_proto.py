"""Write what Python needs of proto/: `make proto` runs this, a test runs it again and compares.

Stubs made by a current protoc do not import on protobuf 4.25, which some engines pin. So the wire is committed as a
serialized FileDescriptorSet that every protobuf runtime can load, next to a stub file that gives mypy the names.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "tracekit/v1/recorder.proto"
DESCRIPTORS = ROOT / "tracekit/rpc/recorder.binpb"
STUB = ROOT / "tracekit/rpc/messages.pyi"

PYTHON_TYPES = {
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_DOUBLE: "float",
    FieldDescriptorProto.TYPE_FIXED32: "int",
    FieldDescriptorProto.TYPE_STRING: "str",
    FieldDescriptorProto.TYPE_UINT32: "int",
    FieldDescriptorProto.TYPE_UINT64: "int",
}

HEAD = """\
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
"""


def compile_descriptors() -> bytes:
    """Return the FileDescriptorSet of proto/ as the installed protoc makes it, without comments or positions."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}"]
        subprocess.run([*protoc, f"--descriptor_set_out={out}", SOURCE], check=True)
        return out.read_bytes()


def _python_type(field: FieldDescriptorProto) -> str:
    if field.type == FieldDescriptorProto.TYPE_MESSAGE:
        return str(field.type_name.rsplit(".", 1)[1])
    return PYTHON_TYPES[field.type]


def _stub_class(message: DescriptorProto) -> str:
    maps = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    lines, arguments = [f"class {message.name}(_Message):"], []
    for field in message.field:
        entry = maps.get(field.type_name.rsplit(".", 1)[-1])
        kind = _python_type(field)
        if entry is not None:
            key, value = (_python_type(part) for part in entry.field)
            kind, given = f"MutableMapping[{key}, {value}]", f"Mapping[{key}, {value}]"
        elif field.label == FieldDescriptorProto.LABEL_REPEATED:
            kind, given = f"_Repeated[{kind}]", f"Iterable[{kind}]"
        else:
            given = f"{kind} | None" if field.type == FieldDescriptorProto.TYPE_MESSAGE else kind
        lines.append(f"    {field.name}: {kind}")
        arguments.append(f"        {field.name}: {given} = ...,")
    if arguments:
        lines += ["    def __init__(", "        self,", "        *,", *arguments, "    ) -> None: ..."]
    else:
        lines.append("    def __init__(self) -> None: ...")
    return "\n".join(lines) + "\n"


def render_stub(descriptors: bytes) -> str:
    """Return the text of messages.pyi for a serialized FileDescriptorSet."""
    files = FileDescriptorSet.FromString(descriptors).file
    return "\n".join([HEAD, *(_stub_class(message) for file in files for message in file.message_type)])


if __name__ == "__main__":
    compiled = compile_descriptors()
    DESCRIPTORS.write_bytes(compiled)
    STUB.write_text(render_stub(compiled))
