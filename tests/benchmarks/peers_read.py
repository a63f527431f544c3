"""Readers of frame-level shards: this project's, and its peers'. All give the same two products.

*Stored* batches are bytes [B,T,D] as they lie in the file; *float* batches are what a model takes, the bytes
dequantized to float32 [B,T,D]. Labels are multi-hot [B,C] in both.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.utils.data import DataLoader

from aart_lib.data import dataset as data
from aart_lib.data import index, records
from aart_lib.data.batch import BOX, LEVEL, dequantize
from aart_lib.data.formats import SPECS

LISTS = {"rgb": 1024, "audio": 128}
SPEC = SPECS["yt8m-frame"].leading(**LISTS)
BATCH = 50


def write_shard(path: Path, videos: int, frames: int, seed: int = 0) -> None:
    """Records like YouTube-8M's: random bytes, three labels a video."""
    rng = np.random.default_rng(seed)

    def record(number: int) -> bytes:
        lists = {key: rng.integers(0, 256, (frames, size), np.uint8) for key, size in LISTS.items()}
        labels = np.sort(rng.choice(SPEC.classes, 3, replace=False))
        return records.encode_sequence_example({"id": f"{path.stem}-{number:05d}", "labels": labels}, lists)

    records.write_records(path, map(record, range(videos)))


def batched(videos: Iterator, floats: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches (frames [B,T,D], labels [B,C]) of (tables [T,n] of bytes, labels) pairs, dequantized on request.

    Every reader's tables are written side by side into the batch as they come, while the processor's cache holds them.
    """
    row = 0
    for tables, numbers in videos:
        if row == 0:
            frames = np.empty((BATCH, len(tables[0]), SPEC.dims), np.float32 if floats else np.uint8)
            labels = np.zeros((BATCH, SPEC.classes), np.float32)
        used = 0
        for table in tables:
            place = frames[row, :, used : used + table.shape[1]]
            if floats:
                dequantize(table, out=place)
            else:
                place[...] = table
            used += table.shape[1]
        labels[row, list(numbers)] = 1
        row = (row + 1) % BATCH
        if row == 0:
            yield frames, labels
    if row:
        yield frames[:row], labels[:row]


# ---------------------------------------------------------------- ours


def ours_stored(path) -> Iterator:
    """(tables, labels) of every video, both checksums checked, without a data set around it."""
    for payload in records.read_records(path):
        context, lists = records.decode_sequence_example(payload, LISTS)
        yield [lists[name] for name in LISTS], context["labels"]


def ours_opened(path, *, cached: bool = False):
    """The data set with room in its cache for all of the shard; else as if it were a large one, opened first now.

    Of a large one nothing is cached, and opening reads the head of each record, if no index of it is at hand.
    """
    if cached:
        with mock.patch.object(data, "CACHE_BYTES", 2**30):
            return data.VideoDataset([path], SPEC)
    with tempfile.TemporaryDirectory() as empty, mock.patch.object(data, "STREAM_BYTES", 0):
        with mock.patch.object(index, "cache_folder", lambda: Path(empty)):
            return data.VideoDataset([path], SPEC)


def ours_batches(dataset) -> Iterator:
    """Float batches as training sees them."""
    for batch in dataset.batches(BATCH):
        yield batch.frames.numpy(), batch.labels.numpy()


def ours_cached(dataset) -> Iterator:
    """(tables, labels) of every video from the data set's cache."""
    return ((dataset._stored(entry)[0], entry.labels) for entry in dataset.entries)


# ---------------------------------------------------------------- peers


def _from_lists(found: dict) -> list[np.ndarray]:
    """Byte strings of frames, a list a feature, as tables [T,n]."""
    return [np.frombuffer(b"".join(found[n]), np.uint8).reshape(len(found[n]), -1) for n in LISTS]


def tfrecord_stored(path) -> Iterator:
    """The `tfrecord` package; it checks no CRC."""
    from tfrecord.reader import tfrecord_loader

    names = dict.fromkeys(LISTS, "byte")
    for context, lists in tfrecord_loader(str(path), None, {"labels": "int"}, sequence_description=names):
        yield _from_lists(lists), context["labels"]


def tfrecord_batches(path) -> Iterator:
    """Float batches by the package's data set in torch's loader, each of whose two processes reads half of the file."""
    from tfrecord.torch.dataset import TFRecordDataset

    options = {"sequence_description": dict.fromkeys(LISTS, "byte"), "transform": _listed}
    dataset = TFRecordDataset(str(path), str(indexed(path)), {"labels": "int"}, **options)
    for frames, labels in DataLoader(dataset, BATCH, num_workers=2, collate_fn=_float_batch):
        yield frames.numpy(), labels.numpy()


def _listed(found) -> tuple:
    return _from_lists(found[1]), found[0]["labels"]


def _float_batch(videos: list) -> tuple:
    frames, labels = next(batched(iter(videos), floats=True))
    return torch.from_numpy(frames), torch.from_numpy(labels)


def indexed(path) -> Path:
    """The file of the byte offsets of a shard, by the package's own tool."""
    from tfrecord.tools.tfrecord2idx import create_index

    index = Path(f"{path}.idx")
    if not index.exists():
        create_index(str(path), str(index))
    return index


class TFRecordItems:
    """Single videos with the package's index and its parser.

    The package itself can only start at one record, and reads its index anew to do so; this is its best case.
    """

    def __init__(self, path):
        from tfrecord import example_pb2, reader

        self.index = np.loadtxt(indexed(path), dtype=np.int64, ndmin=2)  # (offset, length) of every record [N,2]
        self.parse, self.extract = example_pb2.SequenceExample.FromString, reader.extract_feature_dict
        self.file = open(path, "rb")

    def __getitem__(self, number: int) -> np.ndarray:
        offset, length = self.index[number]
        self.file.seek(offset)
        example = self.parse(self.file.read(length)[12:-4])
        kinds = {"byte": "bytes_list", "int": "int64_list"}
        self.extract(example.context, {"labels": "int"}, kinds)
        tables = _from_lists(self.extract(example.feature_lists, dict.fromkeys(LISTS, "byte"), kinds))
        return np.concatenate(tables, 1)


def tf_batches(path, floats: bool, threads: int = 1) -> Iterator:
    """tf.data with so many threads; it checks both checksums."""
    import tensorflow as tf

    context = {"labels": tf.io.VarLenFeature(tf.int64)}
    lists = {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in LISTS}

    def parse(payload):
        about, found = tf.io.parse_single_sequence_example(payload, context, lists)
        frames = tf.concat([tf.io.decode_raw(found[name], tf.uint8) for name in LISTS], 1)
        if floats:
            frames = tf.cast(frames, tf.float32) * np.float32(LEVEL) + np.float32(BOX[0])
        numbers = tf.sparse.to_dense(about["labels"])
        return frames, tf.reduce_max(tf.one_hot(numbers, SPEC.classes), 0)

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    dataset = tf.data.TFRecordDataset(str(path)).map(parse, threads if threads > 1 else None).batch(BATCH)
    dataset = dataset.prefetch(2).with_options(options) if threads > 1 else dataset.with_options(options)
    for frames, labels in dataset:
        yield frames.numpy(), labels.numpy()
