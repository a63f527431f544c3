"""TFRecord files and the tf.train messages inside them, without TensorFlow.

A TFRecord file is a chain of records: the length (8 bytes, little endian), a masked CRC32C of the
length, the payload, a masked CRC32C of the payload. In YouTube-8M and AudioSet the payload is a
protobuf message: an ``Example`` (a map from names to lists) or a ``SequenceExample`` (the same map,
called context, and lists over time: one byte string for each frame).

Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/{example,feature}.proto.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache

import google_crc32c
import numpy as np

from aart_lib.data import foreign
from aart_lib.data.exact import byte_table, numbers
from aart_lib.runtime.files import replacing

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
HEAD = 4096  # bytes read of a record to find its context
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
INTEGERS = {"labels", "segment_labels", "segment_start_times"}


class RecordError(ValueError):
    """A file that cannot be read: which file, at which byte offset, and why; ``after``: where the next record is."""

    def __init__(self, path, offset: int, reason: str, after: int | None = None):
        super().__init__(f"{path}, record at byte {offset}: {reason}")
        self.path, self.offset, self.reason, self.after = str(path), offset, reason, after

    def __reduce__(self):  # an error raised in a reader process reaches the main one whole
        return RecordError, (self.path, self.offset, self.reason, self.after)


class Skipped:
    """Bad records that were left out where a command is told to go on: how many, in which files, why.

    Behind a damaged length no other record can be found: the rest of the file counts as one record, and its bytes.
    """

    def __init__(self):
        self.files: dict[str, dict] = {}  # {path: records, bytes of an unreadable rest, first reason}

    def add(self, error: RecordError, lost: int = 0) -> None:
        found = self.files.setdefault(error.path, {"records": 0, "bytes": 0, "first": str(error)})
        found["records"] += 1
        found["bytes"] += lost

    def __str__(self) -> str:
        lines = [f"skipped {sum(f['records'] for f in self.files.values())} bad records in {len(self.files)} files"]
        for path, found in self.files.items():
            rest = f" (with the rest of the file, {found['bytes']} bytes)" if found["bytes"] else ""
            lines.append(f"  {found['records']} in {path}{rest}; first: {found['first']}")
        return "\n".join(lines)


def refuse(error: RecordError, skipped: Skipped | None, lost: int = 0) -> None:
    """Raise the error, or count it where bad records are skipped."""
    if skipped is None:
        raise error
    skipped.add(error, lost)


# ---------------------------------------------------------------- framing


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_record(file, path, offset: int, size: int, *, check: bool = True) -> bytes:
    """The payload of the record that starts at ``offset`` of an open binary ``file`` of ``size`` bytes.

    Raises: RecordError if the record is cut off or, with ``check``, a checksum is wrong.
    """
    length = _length(file, path, offset, size, check)
    end = offset + HEADER.size + length
    payload, footer = file.read(length), file.read(FOOTER.size)
    if len(payload) < length or len(footer) < FOOTER.size:
        raise RecordError(path, offset, "the file ends inside the record; fetch the file again")
    if check and _masked_crc(payload) != FOOTER.unpack(footer)[0]:
        reason = "wrong checksum of the data: the record is damaged; fetch the file again"
        raise RecordError(path, offset, reason, end + FOOTER.size)
    return payload


def _length(file, path, offset: int, size: int, check: bool) -> int:
    """Bytes of the payload of the record at ``offset``, which is what the file reads next. Raises: RecordError."""
    file.seek(offset)
    header = file.read(HEADER.size)
    length, length_crc = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
    if len(header) < HEADER.size:
        reason = "the file ends inside a record header; fetch it again"
    elif check and _masked_crc(header[:8]) != length_crc:
        reason = "wrong checksum of the length: not a TFRecord file, or damaged"
    elif length > size - offset - HEADER.size - FOOTER.size:  # before anything is allocated
        reason = f"the record claims {length} bytes, the file ends before; fetch it again"
    else:
        return length
    file.seek(0)
    what = "" if offset else foreign.told(file.read(512))
    raise RecordError(path, offset, reason + (what and f"; it is {what}"))


def scan_heads(path) -> Iterator[tuple[int, bytes]]:
    """(byte offset, beginning of the payload) of every record: of a ``SequenceExample`` its context and no frames.

    The checksum of the data is not verified here, that of the length is. Raises: RecordError.
    """
    with open(path, "rb") as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            length = _length(file, path, offset, size, True)
            head = file.read(min(length, HEAD))
            try:
                end = min(length, _end_of_context(head, length))
            except ValueError as error:
                raise RecordError(path, offset, str(error)) from error
            yield offset, (head + file.read(max(0, end - len(head))))[:end]
            offset += HEADER.size + length + FOOTER.size


def _end_of_context(head: bytes, length: int) -> int:
    if head[:1] != b"\x0a":  # field 1, the context, comes first wherever protobuf wrote the file
        return length
    context, position = _read_varint(head, 1)
    return position + context


def scan_records(path, *, check: bool = True, skipped: Skipped | None = None) -> Iterator[tuple[int, bytes]]:
    """(byte offset, payload) of every record of a TFRecord file, in order; bad ones go to ``skipped`` if given.

    Raises: RecordError.
    """
    with open(path, "rb") as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            try:
                payload = read_record(file, path, offset, size, check=check)
                yield offset, payload
                offset += HEADER.size + len(payload) + FOOTER.size
            except RecordError as error:
                refuse(error, skipped, 0 if error.after else size - offset)
                offset = error.after or size


def read_records(path, *, check: bool = True) -> Iterator[bytes]:
    """The payloads of a TFRecord file; ``check`` verifies both checksums of each. Raises: RecordError."""
    return (payload for _, payload in scan_records(path, check=check))


def write_records(path, payloads: Iterable[bytes]) -> None:
    """Write payloads as a TFRecord file; the file appears under its name only when it is complete."""
    with replacing(path) as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + FOOTER.pack(_masked_crc(length)))
            file.write(payload + FOOTER.pack(_masked_crc(payload)))


# ---------------------------------------------------------------- protobuf, read


def _read_varint(buffer, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(buffer):
            raise ValueError("a number runs past the end of its message")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise ValueError("a number of more than 10 bytes")


def _fields(buffer) -> Iterator[tuple]:
    """(field number, wire type, value) of a protobuf message; a value is a number or a memoryview."""
    position = 0
    while position < len(buffer):
        tag, position = _read_varint(buffer, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _read_varint(buffer, position)
            yield number, kind, value
            continue
        if kind == _BYTES:
            size, position = _read_varint(buffer, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        if size > len(buffer) - position:
            raise ValueError("a field runs past the end of its message")
        yield number, kind, buffer[position : position + size]
        position += size


def _messages(buffer, number: int) -> Iterator[memoryview]:
    """The messages in the fields of that number."""
    return (value for found, kind, value in _fields(buffer) if found == number and kind == _BYTES)


def _entries(buffer) -> Iterator[tuple[str, memoryview]]:
    """The entries of a protobuf map from names to messages."""
    for entry in _messages(buffer, 1):
        pair = {n: v for n, k, v in _fields(entry) if k == _BYTES}
        yield bytes(pair.get(1, b"")).decode("utf-8", "replace"), pair.get(2, memoryview(b""))


def _feature(buffer):
    """A ``Feature``: list of bytes, float32 array or int64 array; one without a list is an empty list."""
    lists = [(number, body) for number, kind, body in _fields(buffer) if kind == _BYTES]
    number = next((n for n, _ in reversed(lists) if n in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST)), None)
    values = [(k, v) for n, body in lists if n == number for m, k, v in _fields(body) if m == 1]  # parts are joined
    if number == _FLOAT_LIST:
        packed = b"".join(v for k, v in values if k in (_BYTES, _FIXED32))
        if len(packed) % 4:
            raise ValueError("a list of floats whose size is not a multiple of 4 bytes")
        return np.frombuffer(packed, "<f4")
    if number == _INT64_LIST:
        numbers = [i for k, v in values for i in ([v] if k == _VARINT else _packed_varints(v))]
        return np.array(numbers, np.uint64).astype(np.int64)
    return [bytes(v) for k, v in values if k == _BYTES]


def _packed_varints(buffer) -> Iterator[int]:
    position = 0
    while position < len(buffer):
        value, position = _read_varint(buffer, position)
        yield value


def _frames(buffer, name: str) -> np.ndarray:
    """A ``FeatureList`` with one byte string a frame, as uint8 [T, n].

    Frames of one size have the same header bytes in front. Where that holds (it is checked), the
    result is a strided view into the record: no loop over frames, no copy.
    """
    first = _feature(next(_messages(buffer, 1), b""))
    if isinstance(first, list) and len(first) == 1 and first[0]:
        header = _frame_header(len(first[0]))
        stride = len(header) + len(first[0])
        if len(buffer) % stride == 0:
            table = np.frombuffer(buffer, np.uint8).reshape(-1, stride)
            if table[:, : len(header)].tobytes() == header * len(table):  # every frame is written the usual way
                return table[:, len(header) :]
    values = [_feature(body) for body in _messages(buffer, 1)]
    for value in values:
        if not isinstance(value, list) or len(value) != 1:
            raise ValueError(f"`{name:.40}` must be one byte string a frame, got {_words(value)}; quantize makes bytes")
    if len({len(value[0]) for value in values}) > 1:
        raise ValueError("frames of different sizes in one feature list")
    return np.stack([np.frombuffer(value[0], np.uint8) for value in values]) if values else np.zeros((0, 0), np.uint8)


@lru_cache(maxsize=64)
def _frame_header(size: int) -> bytes:
    """What protobuf writes in front of a frame of ``size`` bytes."""
    return _message(1, _encode_bytes(bytes(size)))[:-size]


def decode_example(payload: bytes) -> dict:
    """An ``Example`` as {name: list of bytes | float32 array | int64 array}. Raises: ValueError."""
    maps = _messages(memoryview(payload), 1)
    return {name: _feature(feature) for features in maps for name, feature in _entries(features)}


def _feature_lists(payload: bytes) -> Iterator[tuple[str, memoryview]]:
    """Name and frames of each feature list of a ``SequenceExample``."""
    return (pair for lists in _messages(memoryview(payload), 2) for pair in _entries(lists))


def decode_lists(payload: bytes, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The named byte lists of a ``SequenceExample``, uint8 [T, n] each; one that is not there is left out.

    Raises: ValueError if the bytes are not such a message.
    """
    wanted = set(names)
    return {name: _frames(frames, name) for name, frames in _feature_lists(payload) if name in wanted}


def decode_strings(payload: bytes, name: str) -> list[bytes]:
    """A feature list with one byte string of any length a frame; [] if the record has none of that name."""
    for key, frames in _feature_lists(payload):
        if key == name:
            values = map(_feature, _messages(frames, 1))
            return [value[0] if isinstance(value, list) and value else b"" for value in values]
    return []


def contents(payload: bytes) -> dict[str, str]:
    """What a record holds by name, in words: "3 integers", "1024 bytes a frame"; as far as it can be read."""
    found = dict[str, str]()
    with suppress(ValueError):  # the rest is not such a message
        found |= {name: _words(value) for name, value in decode_example(payload).items()}
        for name, frames in _feature_lists(payload):
            found[name] = f"{_words(_feature(next(_messages(frames, 1), b'')))} a frame"
    return found


def _words(values) -> str:
    if isinstance(values, list):
        return f"{len(values[0])} bytes" if len(values) == 1 else f"{len(values)} byte strings"
    return f"{len(values)} {'floats' if values.dtype.kind == 'f' else 'integers'}"


def decode_sequence_example(payload: bytes, lists: Iterable[str] = ()) -> tuple[dict, dict[str, np.ndarray]]:
    """The context of a ``SequenceExample`` (as `decode_example`) and its named lists (as `decode_lists`)."""
    return decode_example(payload), decode_lists(payload, lists)  # the context has the number that features have


# ---------------------------------------------------------------- protobuf, written


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def _message(number: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _varint(number << 3 | _BYTES) + _varint(len(body)) + body


def _encode_bytes(*values: bytes) -> bytes:
    return _message(_BYTES_LIST, *(_message(1, value) for value in values))


def _encode_feature(name: str, value) -> bytes:
    if isinstance(value, (bytes, str)):
        return _encode_bytes(_utf8(value))
    array = numbers(name, value, whole=name in INTEGERS)
    if array.dtype.kind == "f":
        return _message(_FLOAT_LIST, _message(1, array.astype("<f4").tobytes()))
    return _message(_INT64_LIST, _message(1, *(_varint(int(i) & 0xFFFFFFFFFFFFFFFF) for i in array)))


def _utf8(text: bytes | str) -> bytes:
    try:
        return text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is no Unicode text; a record can hold it as bytes") from None


def _encode_map(encoded: Mapping[str, bytes]) -> list[bytes]:
    return [_message(1, _message(1, _utf8(name)), _message(2, body)) for name, body in encoded.items()]


def encode_example(features: Mapping) -> bytes:
    """An ``Example`` from {name: bytes | str | list of floats | list of integers}; floats are stored in 32 bits.

    Raises: ValueError that names what would not be read back as it is.
    """
    return _message(1, *_encode_map({name: _encode_feature(name, value) for name, value in features.items()}))


def encode_sequence_example(context: Mapping, lists: Mapping[str, np.ndarray | list[bytes]]) -> bytes:
    """A ``SequenceExample`` from a context (as in `encode_example`) and byte lists: uint8 [T,n], or T byte strings.

    Raises: ValueError that names what would not be read back as it is; features become bytes by `quantize`.
    """
    frames = {
        name: b"".join(_message(1, _encode_bytes(row)) for row in _byte_rows(name, table))
        for name, table in lists.items()
    }
    return encode_example(context) + _message(2, *_encode_map(frames))


def _byte_rows(name: str, table) -> Iterable[bytes]:
    if isinstance(table, list) and all(isinstance(row, bytes) for row in table):
        return table
    return (row.tobytes() for row in byte_table(name, table))
