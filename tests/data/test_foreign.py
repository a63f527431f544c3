"""foreign.py, formats.py: what is not what it should be is called what it is, with its place: files and records."""

import bz2
import gzip
import io
import lzma
import math
import pickle
import tarfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from shards import MEANS, TINY, frame_lists, means, protobuf, record, shard

from aart_lib.data import records
from aart_lib.data.catalog import find_shards
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.foreign import told
from aart_lib.data.formats import SPECS
from aart_lib.data.records import RecordError, Skipped, encode_example, read_records

YT8M = SPECS["yt8m-frame"]
FRAMES = {"rgb": np.ones((2, 1024), np.uint8), "audio": np.ones((2, 128), np.uint8)}

# ---------------------------------------------------------------- files


def made(write) -> bytes:
    write(into := io.BytesIO())
    return into.getvalue()


def tarred(into) -> None:
    with tarfile.open(fileobj=into, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("train.tfrecord"))


BYTES = record(lists=FRAMES)
FILES = {
    "a gzip file": gzip.compress(BYTES),
    "a zlib stream": zlib.compress(BYTES),
    "a bzip2 file": bz2.compress(BYTES),
    "an xz file": lzma.compress(BYTES),
    "a zip archive, as .npz": made(lambda into: np.savez(into, a=np.ones(9))),
    "a zip archive, as .npz and .pt": made(lambda into: torch.save(torch.ones(9), into)),
    "an array of numpy": made(lambda into: np.save(into, np.ones((9, 9)))),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "a pickle": pickle.dumps({"frames": [1.0] * 99}),
    "a tar archive": made(tarred),
    "a text file, HTML": b"<html><body>404 Not Found</body></html>",
    "a text file, which begins 'path,labels": b"path,labels\na.mp4,dog\n" * 9,
    "a text file, which begins 'a'": b"a",
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, what):
    (path := tmp_path / "train.tfrecord").write_bytes(FILES[what])
    for check in (True, False):
        with pytest.raises(RecordError, match=f"train.tfrecord.*; it is {what}"):
            list(read_records(path, check=check))
    with pytest.raises(RecordError, match=f"it is {what}"):
        VideoDataset(path, YT8M)


def test_a_damaged_record_file_is_called_nothing_else(tmp_path):
    path = shard(tmp_path, BYTES)
    assert told(bytes(512)) == told(np.random.default_rng(0).bytes(512)) == told(b"") == ""
    assert told(path.read_bytes()[:512]) == ""
    path.write_bytes(path.read_bytes() + gzip.compress(b"more"))
    with pytest.raises(RecordError) as caught:
        list(read_records(path))
    assert "gzip" not in str(caught.value)


def test_folders_empty_files_and_packed_shards_are_named(tmp_path):
    (empty := tmp_path / "empty.tfrecord").touch()
    for path, words in ((tmp_path, "it is a folder"), (empty, "the file is empty")):
        with pytest.raises(RecordError, match=words):
            VideoDataset([path], YT8M)
    skipped = Skipped()
    assert len(VideoDataset(empty, YT8M, skipped=skipped)) == 0 and "the file is empty" in str(skipped)
    (tmp_path / "train0.tfrecord.gz").write_bytes(FILES["a gzip file"])
    with pytest.raises(ValueError, match=r"no train shards .*; train0\.tfrecord\.gz must be unpacked first"):
        find_shards(YT8M, tmp_path, "train")


# ---------------------------------------------------------------- records


def context(lists=None, **features) -> bytes:
    """A record as others write it, who store values of any kind under any name."""
    about = {"id": b"v", "labels": np.array([1])} | features
    return protobuf(about, frame_lists() if lists is None else lists).SerializeToString()


def tiny(**lists) -> bytes:
    return record(lists=frame_lists() | lists)


def nameless(lists) -> bytes:
    return records.encode_sequence_example({"labels": [1]}, lists)


AUDIO = {"audio_embedding": np.ones((2, 128), np.uint8)}
NARROW = FRAMES | {"rgb": FRAMES["audio"]}
WITH_EVIDENCE = replace(TINY, evidence=True)
ANYTHING = encode_example({"a\nb" * 300: [1], **{f"x{i}": [1] for i in range(500)}})
EXAMPLE = encode_example({"id": "v", "labels": [1], "mean_rgb": np.ones(1024, np.float32), "mean_audio": [1.0] * 128})
RECORDS = {
    # of another extractor
    "no id": (YT8M, nameless(FRAMES), "neither `id` nor `video_id` .*'rgb' .1024 bytes a frame"),
    "audio without id": (SPECS["audioset"], nameless(AUDIO), "neither `id`.*, as audioset has"),
    "floats for bytes": (YT8M, context({"rgb": np.ones((2, 1024))}), "`rgb` .* got 1024 floats; quantize"),
    "integers for bytes": (YT8M, context({"rgb": np.ones((2, 1024), int)}), "`rgb` .* got 1024 integers"),
    "any names": (YT8M, ANYTHING, "neither `id`"),
    "another name": (YT8M, record(lists={"feature": FRAMES["rgb"]}), "no such list; .*'feature' .1024 bytes"),
    "another width": (YT8M, record(lists=NARROW), "`rgb` must have 1024 bytes a frame, got 128"),
    "an Example for frames": (YT8M, EXAMPLE, "as yt8m-video has"),
    "frames for an Example": (SPECS["yt8m-video"], BYTES, "`mean_rgb` must .* numbers, got 0; .*as yt8m-frame has"),
    # frames and means
    "no frames": (TINY, record(lists=frame_lists(0)), "`rgb`|at least one"),
    "other lengths": (TINY, tiny(rgb=np.ones((4, 3), np.uint8)), "same number of frames"),
    "other evidence": (WITH_EVIDENCE, tiny(evidence=np.ones((3, 4), np.uint8)), "evidence must have 5 bytes .* got 4"),
    "NaN": (MEANS, means(1, math.nan, 2), "`mean_rgb` holds NaN or infinity"),
    "too few means": (MEANS, means(1, 2), "`mean_rgb` must have 3 numbers, got 2"),
    # labels and id
    "not a message": (TINY, b"\x0a\xff\xff", "message"),
    "a label above the vocabulary": (TINY, record(labels=(1, 5)), "labels from 1 to 5 outside the vocabulary of 5"),
    "the largest label": (TINY, context(labels=np.array([2**63 - 1])), "labels from 9223372036854775807 to"),
    "thousands of labels": (TINY, record(labels=range(5000)), "labels from 0 to 4999 outside the vocabulary of 5"),
    "a text for labels": (TINY, context(labels=b"\xff" * 5000), "labels must be integers"),
    "broken numbers for labels": (TINY, context(labels=np.float32([np.inf, np.nan])), "labels must be integers"),
    "numbers for an id": (TINY, context(id=np.array([7, 8])), "neither `id` nor `video_id` names the video"),
    "an id as long as a book": (TINY, context(id=b"v" * 100_000), "in at most 256 bytes"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_bad_record_is_found_on_opening_and_told_by_what_it_holds_and_where_it_lies(tmp_path, case):
    spec, payload, words = RECORDS[case]
    first = [record()] if spec is TINY else []
    path, offset = shard(tmp_path, *first, payload), sum(16 + len(sound) for sound in first)
    with pytest.raises(RecordError, match=words) as caught:
        VideoDataset(path, spec)
    assert (caught.value.path, caught.value.offset) == (str(path), offset)
    assert str(path) in str(caught.value) and f"byte {offset}" in str(caught.value)
    assert len(caught.value.reason) < 250 and "\n" not in caught.value.reason


SEGMENTS = [
    ({"segment_labels": np.array([1, 2])}, "1 segment_start_times, 2 _labels and 1 _scores differ"),
    ({"segment_labels": np.array([7])}, "segment_labels from 7 to 7 outside the vocabulary of 5"),
    ({"segment_start_times": np.float32([np.inf])}, "segment_start_times must be integers"),
    ({"segment_scores": b"x" * 5000}, "segment_scores must be numbers"),
    ({"segment_start_times": np.array([12])}, "segment_start_times from 12 to 12 outside the 12 frames"),
    ({"segment_start_times": np.array([2**40])}, f"segment_start_times from {2**40} to {2**40} outside the 12 frames"),
]


@pytest.mark.parametrize(("changes", "words"), SEGMENTS)
def test_segments_that_do_not_fit_are_named(tmp_path, changes, words):
    segments = {"segment_start_times": np.array([5]), "segment_labels": np.array([1]), "segment_scores": np.ones(1)}
    with pytest.raises(RecordError, match=words):
        VideoDataset(shard(tmp_path, context(frame_lists(12), **segments | changes)), TINY, segments=True)
