"""Arrays as Reverb has them on the wire: a TensorProto whose content is one raw snappy block.

Content that does not compress is written as a stored block (a single literal), which every snappy decoder accepts, which
costs no time to write, and which decodes without a copy. Strings are TensorFlow's own form: their lengths as varints, then
their bytes; no snappy.
"""

import functools
import math
import threading
from typing import Any, Literal

import cramjam
import ml_dtypes
import numpy as np

from podracer.stores.reverb import wire

Compression = Literal["auto", "always", "never"]

_DTYPES: dict[int, np.dtype[Any]] = {
    number: np.dtype(dtype)
    for number, dtype in (
        (1, np.float32),
        (2, np.float64),
        (3, np.int32),
        (4, np.uint8),
        (5, np.int16),
        (6, np.int8),
        (7, np.object_),
        (8, np.complex64),
        (9, np.int64),
        (10, np.bool_),
        (14, ml_dtypes.bfloat16),
        (17, np.uint16),
        (18, np.complex128),
        (19, np.float16),
        (22, np.uint32),
        (23, np.uint64),
    )
}
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}
_STRING = 7
_STORED = 0xFC  # snappy: a literal whose length - 1 follows in four bytes
_SMALL = 1024  # bytes up to which compression is not worth a call
_PROBE = 4096  # bytes that decide whether a large array is worth compressing
_MAX_SCRATCH = 16 * 2**20  # bytes that a thread may keep
_WORTH = 0.5  # of the size; above it the time of compressing is worth more than the memory


def dtype_number(dtype: Any) -> int:
    """TensorFlow's number of a dtype (strings and objects are DT_STRING). Raises TypeError for those Reverb cannot carry."""
    dtype = np.dtype(dtype)
    if dtype.kind in "SU":
        return _STRING
    try:
        return _NUMBERS[dtype.newbyteorder("=")]
    except KeyError:
        raise TypeError(f"Reverb cannot carry arrays of {dtype}") from None


def dtype_of(number: int) -> np.dtype[Any]:
    """The dtype of TensorFlow's number; `object` for strings. Raises TypeError for numbers without a numpy dtype here."""
    try:
        return _DTYPES[number]
    except KeyError:
        raise TypeError(f"TensorFlow's dtype number {number} has no counterpart here") from None


def canonical(array: Any) -> np.ndarray:
    """The array as it will be sent: little-endian and contiguous, strings as objects. Raises TypeError like `dtype_number`."""
    array = np.asarray(array)
    if array.dtype.kind in "SU":
        return array.astype(object)
    dtype_number(array.dtype)
    # Not ascontiguousarray, which would turn a scalar into a vector.
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def stored_block(data: Any) -> list[Any]:
    """A valid raw snappy block of a bytes-like object, uncompressed, as a list to join."""
    return [_stored_head(len(data)), data]


def _stored_head(size: int) -> bytes:
    if size == 0:
        return b"\x00"
    return wire.varint(size) + bytes([_STORED]) + (size - 1).to_bytes(4, "little")


def compressed_block(data: Any, compression: Compression = "auto") -> list[Any]:
    """A raw snappy block of a one-dimensional uint8 array, as a list to join.

    `auto` compresses what shrinks to half of its size, which a probe of 4 KiB from the middle decides for large arrays.
    """
    size = len(data)
    if compression == "never" or size == 0 or (compression == "auto" and size <= _SMALL):
        return stored_block(data)
    if compression == "auto" and size >= 2 * _PROBE:
        middle = (size - _PROBE) // 2
        if len(cramjam.snappy.compress_raw(data[middle : middle + _PROBE])) > _WORTH * _PROBE:
            return stored_block(data)
    packed = _compress(data)
    if compression == "auto" and len(packed) > _WORTH * size:
        return stored_block(data)
    return [packed]


class _Scratch(threading.local):
    """A thread's output buffer: fresh memory for each large array would cost as much as compressing it."""

    buffer: Any = np.empty(0, np.uint8)


_SCRATCH = _Scratch()


def _compress(data: Any) -> bytes:
    bound = cramjam.snappy.compress_raw_max_len(data)
    if bound > _MAX_SCRATCH:
        return bytes(cramjam.snappy.compress_raw(data))
    if len(_SCRATCH.buffer) < bound:
        _SCRATCH.buffer = np.empty(bound, np.uint8)
    written = cramjam.snappy.compress_raw_into(data, _SCRATCH.buffer)
    return bytes(_SCRATCH.buffer[:written].data)


def encode(array: np.ndarray, compression: Compression = "auto") -> list[Any]:
    """A serialised TensorProto of a canonical array, any shape, as a list of bytes-like parts to join.

    Parts may view the array's memory: join them before it changes.
    """
    if array.nbytes <= _SMALL and compression == "auto" and array.dtype != object:
        return [_small_head(array.dtype, array.shape), array.tobytes()]
    number = dtype_number(array.dtype)
    if number == _STRING:
        strings = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel().tolist()]
        content: list[Any] = [wire.varint(len(item)) for item in strings] + strings
    else:
        content = compressed_block(array.reshape(-1).view(np.uint8), compression)
    return [_header(number, array.shape), *wire.field(4, *content)]


@functools.lru_cache(maxsize=1024)
def _small_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """All of a stored array's message but its bytes: an item of small columns is mostly this."""
    size = math.prod(shape) * dtype.itemsize
    head = _stored_head(size)
    return _header(dtype_number(dtype), shape) + wire.varint(4 << 3 | 2) + wire.varint(len(head) + size) + head


@functools.lru_cache(maxsize=1024)
def _header(number: int, shape: tuple[int, ...]) -> bytes:
    header = wire.Tensor(dtype=number)
    header.tensor_shape.SetInParent()
    for size in shape:
        header.tensor_shape.dim.add(size=size)
    return bytes(header.SerializeToString())


def uncompress(block: Any) -> np.ndarray:
    """The bytes of a raw snappy block, `[n] uint8`. A stored block is not copied, and then the result is read-only.

    Raises ValueError for a damaged block.
    """
    size, start = wire.read_varint(block, 0)
    if size == 0:
        return np.empty(0, np.uint8)
    if start == len(block):
        raise ValueError("a damaged snappy block: it ends after its length")
    # A literal as long as the whole: the tag says in how many bytes (0 to 4) its length - 1 follows.
    tag = block[start]
    if tag & 3 == 0:
        extra = max((tag >> 2) - 59, 0)
        length = (int.from_bytes(block[start + 1 : start + 1 + extra], "little") if extra else tag >> 2) + 1
        if length == size and len(block) == start + 1 + extra + size:
            return np.frombuffer(block, np.uint8, size, start + 1 + extra)
    out: Any = np.empty(size, np.uint8)
    try:
        written = cramjam.snappy.decompress_raw_into(block, out)
    except cramjam.DecompressionError as error:
        raise ValueError(f"a damaged snappy block: {error}") from None
    if written != size:
        raise ValueError(f"a damaged snappy block: {written} bytes instead of {size}")
    return out


def decode(tensor: Any) -> np.ndarray:
    """The array of a Tensor message; strings become an object array of bytes. It may be read-only.

    Raises TypeError for a dtype unknown here and ValueError for damaged content.
    """
    dtype = dtype_of(tensor.dtype)
    shape = _shape(tensor.tensor_shape.SerializeToString())
    if tensor.dtype == _STRING:
        return _decode_strings(tensor, shape)
    data = uncompress(tensor.tensor_content).view(dtype)
    if data.size != math.prod(shape):
        raise ValueError(f"a damaged tensor: {data.size} elements for shape {list(shape)}")
    return data.reshape(shape)


@functools.lru_cache(maxsize=1024)
def _shape(serialised: bytes) -> tuple[int, ...]:
    return tuple(dim.size for dim in wire.TensorShape.FromString(serialised).dim)


def _decode_strings(tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(math.prod(shape), object)
    if tensor.string_val:
        out[:] = list(tensor.string_val)
        return out.reshape(shape)
    content, position, lengths = tensor.tensor_content, 0, []
    for _ in range(out.size):
        length, position = wire.read_varint(content, position)
        lengths.append(length)
    for i, length in enumerate(lengths):
        if position + length > len(content):
            raise ValueError("a damaged tensor: strings are cut off")
        out[i] = content[position : position + length]
        position += length
    return out.reshape(shape)


def undo_delta(array: np.ndarray) -> np.ndarray:
    """Sums up what a delta-encoding writer stored: differences along axis 0, modulo the integer's width.

    Only integer arrays with two or more dimensions were encoded; others come back as they are.
    """
    if array.dtype.kind not in "iu" or array.ndim < 2:
        return array
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    return np.cumsum(array.view(unsigned), axis=0, dtype=unsigned).view(array.dtype)
