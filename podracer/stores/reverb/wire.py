"""The messages on the wire, and how a call of the service is named.

Message classes are built at import from a descriptor set (`wire.proto` is its source) in a descriptor pool of their own:
generated code would tie us to one protobuf runtime, and another library's descriptors cannot clash with these.
"""

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "/deepmind.reverb.ReverbService/"
"""Prefix of a method's path."""
MAX_MESSAGE_BYTES = 2**31 - 1
"""Protobuf's limit of one message, and so of one item."""


def _build() -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("wire.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name for file in files.file], pool)


_CLASSES = _build()


def _message(name: str) -> Any:
    return _CLASSES[f"podracer.reverb.wire.{name}"]


ChunkData = _message("ChunkData")
CheckpointRequest = _message("CheckpointRequest")
CheckpointResponse = _message("CheckpointResponse")
InsertStreamRequest = _message("InsertStreamRequest")
InsertStreamResponse = _message("InsertStreamResponse")
MutatePrioritiesRequest = _message("MutatePrioritiesRequest")
MutatePrioritiesResponse = _message("MutatePrioritiesResponse")
PrioritizedItem = _message("PrioritizedItem")
ResetRequest = _message("ResetRequest")
ResetResponse = _message("ResetResponse")
SampleStreamRequest = _message("SampleStreamRequest")
SampleStreamResponse = _message("SampleStreamResponse")
ServerInfoRequest = _message("ServerInfoRequest")
ServerInfoResponse = _message("ServerInfoResponse")
StructuredValue = _message("StructuredValue")
Tensor = _message("Tensor")
TensorShape = _message("TensorShape")


@functools.lru_cache(maxsize=4096)
def varint(value: int) -> bytes:
    """A non-negative integer in protobuf's base-128 form."""
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: Any, position: int) -> tuple[int, int]:
    """The integer at `position` of a bytes-like object, and the position after it. Raises ValueError where it is cut off."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("a varint is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def field(number: int, *parts: Any) -> list[Any]:
    """A length-delimited field whose payload is the parts in turn, as a list to join: large payloads are copied once."""
    return [varint(number << 3 | 2), varint(sum(map(len, parts))), *parts]
