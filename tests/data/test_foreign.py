"""foreign.py, specs.py: files and records of others are called what they are, and the way on is named."""

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from test_records import SequenceExample

from aart_lib.data import records
from aart_lib.data.catalog import find_shards
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.foreign import told
from aart_lib.data.formats import SPECS
from aart_lib.data.records import (
    RecordError,
    Skipped,
    encode_example,
    encode_sequence_example,
    read_records,
    write_records,
)

FRAMES = {"rgb": np.ones((2, 1024), np.uint8), "audio": np.ones((2, 128), np.uint8)}


def made(write) -> bytes:
    write(into := io.BytesIO())
    return into.getvalue()


def tarred(into) -> None:
    with tarfile.open(fileobj=into, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("train.tfrecord"))


def framed(payload: bytes) -> bytes:
    """A record file of one record."""
    length = struct.pack("<Q", len(payload))
    parts = ((data, records.FOOTER.pack(records._masked_crc(data))) for data in (length, payload))
    return b"".join(data + crc for data, crc in parts)


SHARD = framed(encode_sequence_example({"id": "v", "labels": [1]}, FRAMES))
FILES = {
    "a gzip file": gzip.compress(SHARD),
    "a zlib stream": zlib.compress(SHARD),
    "a bzip2 file": bz2.compress(SHARD),
    "an xz file": lzma.compress(SHARD),
    "a zip archive": made(lambda into: zipfile.ZipFile(into, "w").writestr("a", SHARD)),
    "a zip archive, as .npz": made(lambda into: np.savez(into, a=np.ones(9))),
    "a zip archive, as .npz and .pt": made(lambda into: torch.save(torch.ones(9), into)),
    "an array of numpy": made(lambda into: np.save(into, np.ones((9, 9)))),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "a pickle": pickle.dumps({"frames": [1.0] * 99}),
    "a tar archive": made(tarred),
    "a text file, HTML": b"<html><body>404 Not Found</body></html>",
    "a text file, which begins 'path,labels": b"path,labels\na.mp4,dog\n" * 9,
    "a text file, which begins '{": b'{"labels": [1, 2, 3]}',
    "a text file, which begins 'a'": b"a",
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, what):
    (path := tmp_path / "train.tfrecord").write_bytes(FILES[what])
    for read in (read_records, lambda path: read_records(path, check=False)):
        with pytest.raises(RecordError, match=f"train.tfrecord.*; it is {what}"):
            list(read(path))
    with pytest.raises(RecordError, match=f"it is {what}"):
        VideoDataset(path, SPECS["yt8m-frame"])


def test_a_damaged_record_file_is_called_nothing_else(tmp_path):
    assert told(bytes(512)) == told(np.random.default_rng(0).bytes(512)) == told(b"") == told(SHARD[:512]) == ""
    path = tmp_path / "a.tfrecord"
    path.write_bytes(SHARD + gzip.compress(b"more"))
    with pytest.raises(RecordError) as caught:
        list(read_records(path))
    assert "gzip" not in str(caught.value)


def test_folders_empty_files_and_packed_shards_are_named(tmp_path):
    (empty := tmp_path / "empty.tfrecord").touch()
    for path, words in ((tmp_path, "it is a folder"), (empty, "the file is empty")):
        with pytest.raises(RecordError, match=words):
            VideoDataset([path], SPECS["yt8m-frame"])
    skipped = Skipped()
    assert len(VideoDataset(empty, SPECS["yt8m-frame"], skipped=skipped)) == 0 and "the file is empty" in str(skipped)
    (tmp_path / "train0.tfrecord.gz").write_bytes(FILES["a gzip file"])
    with pytest.raises(ValueError, match=r"no train shards .*; train0\.tfrecord\.gz must be unpacked first"):
        find_shards(SPECS["yt8m-frame"], tmp_path, "train")


def with_lists(kind: str, values) -> bytes:
    message = SequenceExample.FromString(encode_sequence_example({"id": "v", "labels": [1]}, FRAMES))
    feature = message.feature_lists.feature_list["rgb"].feature
    del feature[:]
    for _ in range(2):
        getattr(feature.add(), kind).value.extend(values)
    return message.SerializeToString()


ANYTHING = encode_example({"a\nb" * 300: [1], **{f"x{i}": [1] for i in range(500)}})


def strange(context=None, lists=FRAMES) -> bytes:
    return encode_sequence_example({"id": "v", "labels": [1]} if context is None else context, lists)


AUDIO = {"audio_embedding": np.ones((2, 128), np.uint8)}
MEANS = {"mean_rgb": np.ones(1024, np.float32), "mean_audio": np.ones(128, np.float32)}
RECORDS = {
    "no id": ("yt8m-frame", strange({"labels": [1]}), "neither `id` nor `video_id` .*'rgb' .1024 bytes a frame"),
    "audio without id": ("audioset", strange({"labels": [1]}, AUDIO), "neither `id`.*, as audioset has"),
    "floats for bytes": ("yt8m-frame", with_lists("float_list", [0.5] * 1024), "`rgb` .* got 1024 floats; quantize"),
    "integers for bytes": ("yt8m-frame", with_lists("int64_list", [7] * 1024), "`rgb` .* got 1024 integers"),
    "several strings a frame": ("yt8m-frame", with_lists("bytes_list", [b"a"] * 2), "`rgb` .* got 2 byte strings"),
    "any names": ("yt8m-frame", ANYTHING, "neither `id`"),
    "another name": ("yt8m-frame", strange(lists={"feature": FRAMES["rgb"]}), "no such list; .*'feature' .1024 bytes"),
    "another width": ("yt8m-frame", strange(lists=FRAMES | {"rgb": FRAMES["audio"]}), "1024 bytes a frame, got 128"),
    "another data set": ("yt8m-frame", strange(lists=AUDIO), "no such list; .*, as audioset has"),
    "an Example for frames": ("yt8m-frame", encode_example({"id": "v", "labels": [1]} | MEANS), "as yt8m-video has"),
    "frames for an Example": ("yt8m-video", strange(), "`mean_rgb` must have 1024 numbers, got 0; .*as yt8m-frame has"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_of_another_extractor_is_told_by_what_it_holds(tmp_path, case):
    name, payload, message = RECORDS[case]
    write_records(path := tmp_path / "a.tfrecord", [payload])
    with pytest.raises(RecordError, match=message) as caught:
        VideoDataset(path, SPECS[name])
    assert len(caught.value.reason) < 250 and "\n" not in caught.value.reason
