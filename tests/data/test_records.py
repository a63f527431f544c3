"""records.py: against protobuf as an independent reader and writer, damaged files, and genuine records."""

import hashlib
import io
import json
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shards import Example, SequenceExample, protobuf, values_of

from aart_lib.data import records

LOSSY = {
    "features": ({}, {"rgb": np.zeros((2, 3), np.float32)}, "list `rgb` must be bytes .* got float32 .*quantize"),
    "NaN": ({}, {"rgb": [[np.nan]]}, "quantize"),
    "above a byte": ({}, {"rgb": [[1, 256]]}, "`rgb` must be bytes .* from 1 to 256"),
    "below zero": ({}, {"rgb": np.int8([[-1]])}, "`rgb` must be bytes"),
    "booleans": ({}, {"evidence": [[True]]}, r"`evidence` must be bytes .* got bool \[1, 1\]"),
    "labels as floats": ({"labels": [1.0]}, {}, "`labels` must be a list of integers of 64 bits, got float64"),
    "labels as a mask": ({"labels": [True, False]}, {}, "`labels` must be a list of integers"),
    "a list of texts": ({"labels": ["a"]}, {}, "`labels` must be"),
    "a mixture": ({"x": [1, 2.5]}, {}, r"`x` must be .* \[1, 2.5\]"),
    "a table": ({"x": [[1.0]]}, {}, r"`x` must be a list .* \[1, 1\]"),
    "beyond 64 bits": ({"x": [2**63]}, {}, "`x` must be .*9223372036854775808"),
    "beyond 32 bits of float": ({"x": [1e300]}, {}, "`x` must be .* floats of 32"),
    "nothing": ({"x": None}, {}, "`x` must be"),
    "a lone surrogate": ({"id": "\ud800"}, {}, "no Unicode text"),
}


@pytest.mark.parametrize("case", LOSSY)
def test_what_would_be_stored_as_something_else_is_refused(case):
    context, frames, message = LOSSY[case]
    with pytest.raises(ValueError, match=message):
        records.encode_sequence_example(context, frames)
    if not frames:
        with pytest.raises(ValueError, match=message):
            records.encode_example(context)


# ---------------------------------------------------------------- messages


numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3861)
values = (
    st.binary(max_size=40)
    | st.lists(numbers, min_size=1, max_size=20).map(lambda v: np.array(v, np.int64))
    | st.lists(st.floats(width=32), min_size=1, max_size=20).map(lambda v: np.array(v, np.float32))
)
contexts = st.dictionaries(st.text(max_size=12), values, max_size=5)


@st.composite
def tables(draw):
    """A uint8 table [T,n]; sizes around 128 bytes, where the length of a protobuf header changes."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 5) | st.integers(118, 130))
    return np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape, dtype=np.uint8)


def serialized(features) -> dict:
    """As bytes NaN equals NaN."""
    return {name: feature.SerializeToString() for name, feature in features.feature.items()}


@settings(max_examples=40)
@given(contexts, st.dictionaries(st.text(max_size=8), tables(), max_size=3))
def test_protobuf_reads_what_we_write_and_we_read_what_it_writes(context, frames):
    sequence = protobuf(context, frames)
    example = Example(features=sequence.context)
    ours = Example.FromString(records.encode_example(context))
    assert serialized(ours.features) == serialized(example.features)
    ours = SequenceExample.FromString(records.encode_sequence_example(context, frames))
    assert serialized(ours.context) == serialized(sequence.context)
    assert ours.feature_lists == sequence.feature_lists
    found, lists = records.decode_sequence_example(sequence.SerializeToString(), frames)
    lone = {name: [value] if isinstance(value, bytes) else value for name, value in context.items()}
    np.testing.assert_equal((found, lists), (lone, frames))
    np.testing.assert_equal(records.decode_example(example.SerializeToString()), lone)


def unusual() -> bytes:
    """A message that no usual writer makes and protobuf reads."""
    pack = records._message
    features = {
        "one integer at a time": pack(3, b"\x08\x03" + b"\x08\x05"),
        "one float at a time": pack(2, b"".join(b"\x0d" + struct.pack("<f", x) for x in (0.5, -2.0))),
        "in parts": pack(1, pack(1, b"ab")) + pack(1, pack(1, b"cd")),
        "the last kind counts": pack(3, b"\x08\x05") + pack(1, pack(1, b"x")),
        "none": b"",
        "no integer": pack(3),
    }
    # An unknown field that repeats the frame's bytes must not be taken for the frame.
    frame = pack(1, records._encode_bytes(b"ab") + pack(9, b"ab"))
    return pack(1, *records._encode_map(features)) + pack(2, *records._encode_map({"rgb": frame * 2}))


def test_unusual_messages_are_read_as_protobuf_reads_them():
    theirs = SequenceExample.FromString(unusual())
    context, lists = records.decode_sequence_example(unusual(), ["rgb"])
    assert len(context) == 6
    for name, values in context.items():
        np.testing.assert_equal(values, values_of(theirs.context.feature[name]))
    frames = theirs.feature_lists.feature_list["rgb"].feature
    assert [[row.tobytes()] for row in lists["rgb"]] == [values_of(frame) for frame in frames] == [[b"ab"]] * 2


def test_lists_that_are_not_named_are_left_out():
    payload = records.encode_sequence_example({}, {"rgb": np.ones((2, 3), int), "audio": np.ones((2, 1), int)})
    assert records.decode_sequence_example(payload, ["audio", "depth"])[1].keys() == {"audio"}
    assert records.decode_sequence_example(payload) == ({}, {})


ODD_FRAMES = {
    "different sizes": ([b"abc", b"abcd"], "different sizes"),
    "numbers": ([np.array([1, 2])], "one byte string"),
    # as many bytes in all, so that the fast view of equal strides must notice: these are no pixels
    "two strings in one frame": ([b"abcd", [b"ab", b""]], "one byte string"),
}


@pytest.mark.parametrize("case", ODD_FRAMES)
def test_frames_that_make_no_table_are_refused(case):
    frames, words = ODD_FRAMES[case]
    with pytest.raises(ValueError, match=words):
        records.decode_sequence_example(protobuf({}, {"rgb": frames}).SerializeToString(), ["rgb"])


# ---------------------------------------------------------------- files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(payloads=st.lists(st.binary(max_size=300), max_size=6))
def test_a_written_file_is_read_back(tmp_path, payloads):
    path = tmp_path / "a.tfrecord"
    records.write_records(path, iter(payloads))
    assert list(records.read_records(path)) == payloads
    assert path.stat().st_size == sum(16 + len(payload) for payload in payloads)
    with open(path, "rb") as file:
        for offset, payload in records.scan_records(path):
            assert records.read_record(file, path, offset, path.stat().st_size) == payload


def test_the_framing_is_the_published_one(tmp_path):
    """Bytes of a record with an empty payload, known from the format's description."""
    records.write_records(tmp_path / "a", [b""])
    assert (tmp_path / "a").read_bytes() == bytes(8) + bytes.fromhex("29039807") + bytes.fromhex("d8ea82a2")


def test_a_file_cut_anywhere_keeps_whole_records_and_names_the_place(tmp_path):
    path = tmp_path / "a.tfrecord"
    records.write_records(path, [b"first", b"second"])
    data, second = path.read_bytes(), 21  # 16 + len(b"first")
    for size in (*range(1, second), *range(second + 1, len(data))):
        path.write_bytes(data[:size])
        found = []
        with pytest.raises(records.RecordError) as caught:
            found.extend(records.read_records(path))
        assert found == [b"first"][: size > second] and caught.value.offset == second * len(found)
        assert str(path) in str(caught.value) and f"byte {caught.value.offset}" in str(caught.value)


def test_every_flipped_bit_is_found_if_checksums_are_read(tmp_path):
    path = tmp_path / "a.tfrecord"
    records.write_records(path, [b"payload"])
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(records.RecordError):
            list(records.read_records(path))
    path.write_bytes(data.replace(b"payload", b"pAyload"))
    assert list(records.read_records(path, check=False)) == [b"pAyload"]


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 4])
def test_a_false_length_allocates_nothing(tmp_path, length, monkeypatch):
    """Even with a valid checksum of the length; 4 bytes more than there are is refused as well."""
    path, header, sizes = tmp_path / "a.tfrecord", struct.pack("<Q", length), []
    path.write_bytes(header + struct.pack("<I", records._masked_crc(header)) + b"data")

    class Counting(io.FileIO):
        def read(self, size):
            sizes.append(size)
            return super().read(size)

    monkeypatch.setattr(records, "open", lambda path, mode: Counting(path), raising=False)
    for check in (True, False):
        with pytest.raises(records.RecordError, match="claims"):
            list(records.read_records(path, check=check))
    assert max(sizes) <= 512


def test_a_record_error_survives_pickling():
    error = pickle.loads(pickle.dumps(records.RecordError("a.tfrecord", 7, "why")))
    assert (error.path, error.offset, error.reason) == ("a.tfrecord", 7, "why") and isinstance(error, ValueError)


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "a.tfrecord"
    records.write_records(path, [b"old"])

    def failing():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_records(path, failing())
    assert list(records.read_records(path)) == [b"old"]
    assert os.listdir(tmp_path) == ["a.tfrecord"]


# ---------------------------------------------------------------- genuine records


def test_the_genuine_frame_level_video_is_read_byte_for_byte(real_data):
    facts = json.loads((real_data / "yt8m_frame/train_SjJ3.json").read_text())
    (payload,) = records.read_records(real_data / "yt8m_frame/train_SjJ3.tfrecord")
    context, lists = records.decode_sequence_example(payload, ["rgb", "audio"])
    assert context["id"] == [facts["id"].encode()] and context["labels"].tolist() == facts["labels"]
    for name in ("rgb", "audio"):
        assert lists[name].shape == (facts["num_frames"], facts[f"{name}_dim"])
        assert hashlib.sha256(lists[name].tobytes()).hexdigest() == facts[f"sha256_{name}_bytes"]
        assert np.shares_memory(lists[name], np.frombuffer(payload, np.uint8))  # a view, not a copy
