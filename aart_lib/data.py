"""From record files to batches: what a data set looks like, which videos belong to which split, padding and masks.

Frames are read from the file when they are asked for; in memory stay one index entry a video and a bounded cache.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aart_lib.records import RecordError, decode_example, decode_sequence_example, read_record, scan_records

LEVEL = 4 / 255  # one byte step of the stored features: the unit in which ε is spoken of
BOX = (4 / 512 - 2, 255 * LEVEL + 4 / 512 - 2)  # the values a stored feature can have: [-1.992, 2.008]
CACHE_BYTES = 2**28


def dequantize(stored: np.ndarray) -> np.ndarray:
    """Bytes as float32 features in `BOX`. Source: github.com/google/youtube-8m, utils.Dequantize."""
    return stored.astype(np.float32) * np.float32(LEVEL) + np.float32(BOX[0])


def quantize(features: np.ndarray) -> np.ndarray:
    """Features as the nearest bytes, values outside `BOX` clipped: the inverse of `dequantize`."""
    return np.clip(np.rint((np.asarray(features) - BOX[0]) / LEVEL), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class DatasetSpec:
    """What one data set's files hold, and the threat model its features call for."""

    name: str
    features: dict[str, tuple[int, int]]  # feature list -> (dimensions stored, leading ones used)
    classes: int
    train: tuple[str, ...]  # file patterns inside the data folder
    test: tuple[str, ...]
    max_frames: int = 32
    norm: str = "linf"
    epsilon: float = 2.5 * LEVEL  # where the calibration starts to look
    epochs: int = 20  # until no defense still rises
    video_level: bool = False  # one row of floats a video, not byte lists
    evidence: bool = False

    @property
    def dims(self) -> int:
        return sum(used for _, used in self.features.values())

    def leading(self, **dims: int) -> "DatasetSpec":
        """The same data with other numbers of leading dimensions, e.g. ``leading(rgb=256, audio=64)``."""
        return replace(self, features={k: (stored, dims.get(k, used)) for k, (stored, used) in self.features.items()})


SPECS = {
    "synthetic": DatasetSpec(
        "synthetic",
        {"rgb": (256, 256), "audio": (64, 64)},
        40,
        ("train*.tfrecord",),
        ("test*.tfrecord",),
        evidence=True,
    ),
    "audioset": DatasetSpec(
        "audioset",
        {"audio_embedding": (128, 128)},
        527,
        ("*bal_train*.tfrecord", "bal_train/*.tfrecord"),
        ("*eval*.tfrecord", "eval/*.tfrecord"),
        max_frames=10,
        norm="l2-clip",
        epsilon=0.9,
        epochs=8,
    ),
    "yt8m-frame": DatasetSpec(
        "yt8m-frame",
        {"rgb": (1024, 256), "audio": (128, 64)},
        3862,
        ("train*.tfrecord", "yt8m_frame/train*.tfrecord", "frame/train/train*.tfrecord"),
        ("validate*.tfrecord", "yt8m_frame/validate*.tfrecord", "frame/validate/validate*.tfrecord"),
        max_frames=300,
    ),
    "yt8m-video": DatasetSpec(
        "yt8m-video",
        {"mean_rgb": (1024, 1024), "mean_audio": (128, 128)},
        3862,
        ("train*.tfrecord", "yt8m_video/train*.tfrecord", "video/train/train*.tfrecord"),
        ("validate*.tfrecord", "yt8m_video/validate*.tfrecord", "video/validate/validate*.tfrecord"),
        max_frames=1,
        epsilon=2 * LEVEL,
        video_level=True,
    ),
}


@dataclass(frozen=True)
class Item:
    """One video."""

    frames: Tensor  # [T,D] float32
    labels: Tensor  # [C] float32, multi-hot
    id: str
    evidence: Tensor | None = None  # [T,C] bool: frames that show a label


@dataclass(frozen=True)
class Batch:
    """Videos side by side, padded with zeros to the longest."""

    frames: Tensor  # [B,T,D] float32
    mask: Tensor  # [B,T] bool, True = real frame
    labels: Tensor  # [B,C] float32, multi-hot
    ids: tuple[str, ...]
    evidence: Tensor | None = None  # [B,T,C] bool

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device) -> "Batch":
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


def collate(items: Sequence[Item]) -> Batch:
    """A `Batch` of videos of any lengths; evidence only if all have it. Raises: ValueError without a video."""
    if not items:
        raise ValueError("a batch needs at least one video, got none")
    lengths = torch.tensor([len(item.frames) for item in items])
    if not lengths.all():
        raise ValueError(f"video {items[int((lengths == 0).nonzero()[0])].id!r} has no frame; leave it out")
    pad = lambda parts: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)  # noqa: E731
    evidence = pad([i.evidence for i in items]) if all(i.evidence is not None for i in items) else None
    return Batch(
        frames=pad([item.frames for item in items]),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        labels=torch.stack([item.labels for item in items]),
        ids=tuple(item.id for item in items),
        evidence=evidence,
    )


@dataclass(frozen=True)
class _Entry:
    """Where a video lies, who it is and what it shows."""

    path: str
    offset: int
    id: str
    labels: tuple[int, ...]


class VideoDataset(Dataset):
    """The videos of some record files, indexed when opened, read when asked for.

    Args:
        paths: TFRecord files; spec: what they hold.
        labels: class indices to keep, in column order; videos without any of them are left out (`left_out` counts
            them). None = all classes, all videos.
        max_frames: frames used of a video, evenly spread over it; None = the spec's.
    Raises: RecordError (a ValueError) for any record that is not what the spec says.
    """

    def __init__(self, paths, spec: DatasetSpec, *, labels: Sequence[int] | None = None, max_frames: int | None = None):
        self.spec, self.max_frames = spec, max_frames or spec.max_frames
        self.entries = [entry for path in paths for entry in _index(Path(path), spec)]
        self.left_out, self._cache = 0, {}
        self._room = [CACHE_BYTES]  # a list, so that selections fill one cache together
        self.labels = list(range(spec.classes))
        self._column = {label: label for label in self.labels}
        if labels is not None:
            self.keep(labels)

    def keep(self, labels: Sequence[int]) -> None:
        """Narrow to these classes, in column order; videos without any of them leave. Raises: ValueError."""
        unknown = [label for label in labels if not 0 <= label < self.spec.classes]
        if unknown or len(set(labels)) != len(labels):
            raise ValueError(f"labels must be different class indices below {self.spec.classes}, got {list(labels)}")
        self.labels, everything = list(labels), len(self.entries)
        self._column = {label: column for column, label in enumerate(labels)}
        self.entries = [entry for entry in self.entries if set(labels) & set(entry.labels)]
        self.left_out = everything - len(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        entry = self.entries[index]
        stored, evidence = self._stored(entry)
        frames = stored.copy() if self.spec.video_level else dequantize(stored)
        labels = torch.zeros(len(self.labels))
        labels[[self._column[label] for label in entry.labels if label in self._column]] = 1
        shown = torch.from_numpy(evidence[:, self.labels] > 0) if evidence is not None else None
        return Item(torch.from_numpy(frames), labels, entry.id, shown)

    def _stored(self, entry: _Entry):
        key = entry.path, entry.offset
        if key in self._cache:
            return self._cache[key]
        payload = _read(entry)
        try:
            found = _features(payload, self.spec, self.max_frames)
        except ValueError as error:
            raise RecordError(*key, f"video {entry.id!r}: {error}") from error
        size = sum(part.nbytes for part in found if part is not None)
        if size <= self._room[0]:
            self._cache[key] = found
            self._room[0] -= size
        return found

    def select(self, indices) -> "VideoDataset":
        """The same data set with these videos only; the files are not read again."""
        chosen = object.__new__(VideoDataset)
        chosen.__dict__ = self.__dict__ | {"entries": [self.entries[i] for i in indices]}
        return chosen

    def batches(self, size: int, *, seed: int | None = None, workers: int = 0) -> DataLoader:
        """Batches of ``size`` videos, in file order, or shuffled by ``seed``."""
        order = torch.Generator().manual_seed(seed) if seed is not None else None
        return DataLoader(self, size, seed is not None, generator=order, collate_fn=collate, num_workers=workers)


def _index(path: Path, spec: DatasetSpec) -> Iterator[_Entry]:
    for offset, payload in scan_records(path):
        try:
            context = decode_example(payload)
            labels = np.unique(context.get("labels", []))
            if labels.size and (labels.dtype.kind != "i" or labels[0] < 0 or labels[-1] >= spec.classes):
                raise ValueError(f"labels {labels.tolist()} outside the vocabulary of {spec.classes} classes")
            name = (context.get("id") or context.get("video_id") or [None])[0]
            if not isinstance(name, bytes):
                raise ValueError("neither `id` nor `video_id` names the video")
            _features(payload, spec, 1)  # what cannot be used is told now, not after hours of training
        except ValueError as error:
            raise RecordError(path, offset, str(error)) from error
        yield _Entry(str(path), offset, name.decode("utf-8", "replace"), tuple(labels.astype(int).tolist()))


def _read(entry: _Entry) -> bytes:
    with open(entry.path, "rb") as file:
        return read_record(file, entry.path, entry.offset, os.fstat(file.fileno()).st_size)


def _features(payload: bytes, spec: DatasetSpec, max_frames: int):
    return (_video_features(payload, spec), None) if spec.video_level else _frame_features(payload, spec, max_frames)


def _frame_features(payload: bytes, spec: DatasetSpec, max_frames: int):
    """Bytes [T,D] of the dimensions used, and evidence [T,classes] or None."""
    wanted = [*spec.features, "evidence"] if spec.evidence else list(spec.features)
    _, lists = decode_sequence_example(payload, wanted)
    for name, (stored, _) in spec.features.items():
        if name not in lists or lists[name].shape[1] != stored:
            got = f"{lists[name].shape[1]} bytes a frame" if name in lists else "no such list"
            raise ValueError(f"feature list `{name}` must have {stored} bytes a frame, got {got}")
    counts = {name: len(table) for name, table in lists.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise ValueError(f"feature lists must have the same number of frames, at least one, got {counts}")
    total = next(iter(counts.values()))
    rows = np.arange(total)
    if total > max_frames:  # evenly spread, so that the end of a long video is seen too
        rows = np.linspace(0, total - 1, max_frames).round().astype(int)
    parts = [lists[name][rows, :used] for name, (_, used) in spec.features.items()]
    evidence = lists["evidence"][rows] if "evidence" in lists else None
    if evidence is not None and evidence.shape[1] != spec.classes:
        raise ValueError(f"evidence must have {spec.classes} bytes a frame, got {evidence.shape[1]}")
    return np.concatenate(parts, 1), evidence


def _video_features(payload: bytes, spec: DatasetSpec) -> np.ndarray:
    """Mean features as one frame, float32 [1,D]."""
    context, parts = decode_example(payload), []
    for name, (stored, used) in spec.features.items():
        values = context.get(name, [])
        if len(values) != stored or not isinstance(values, np.ndarray):
            raise ValueError(f"feature `{name}` must have {stored} numbers, got {len(values)}")
        if not np.isfinite(values).all():
            raise ValueError(f"feature `{name}` holds NaN or infinity")
        parts.append(values[:used])
    return np.concatenate(parts)[None].astype(np.float32)


# ---------------------------------------------------------------- splits


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set, with the class indices behind the label columns."""

    spec: DatasetSpec
    train: VideoDataset
    validation: VideoDataset
    test: VideoDataset

    @property
    def labels(self) -> list[int]:
        return self.train.labels


def find_shards(spec: DatasetSpec, data_dir, split: str) -> list[Path]:
    """The files of ``split`` ("train" or "test") in a data folder, sorted. Raises: ValueError if there is none."""
    folder, patterns = Path(data_dir), getattr(spec, split)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; --data-dir must be the folder with the {spec.name} shards")
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not found:
        raise ValueError(f"{folder} has no {split} shards of {spec.name}; looked for {', '.join(patterns)}")
    return found


def most_frequent(dataset: VideoDataset, count: int) -> list[int]:
    """The ``count`` most frequent classes, most frequent first, ties by index. Raises: ValueError if there are less."""
    counts = Counter(label for entry in dataset.entries for label in entry.labels)
    if not 0 < count <= len(counts):
        raise ValueError(f"--labels must be between 1 and the {len(counts)} classes that occur, got {count}")
    return sorted(counts, key=lambda label: (-counts[label], label))[:count]


def open_splits(spec: DatasetSpec, data_dir, *, labels: int | None = None, max_frames: int | None = None) -> Splits:
    """Train, validation and test of a data folder.

    Validation is cut from train by the md5 of the id: a tenth, at least 500 videos where there are a thousand.
    ``labels`` keeps that many classes, the most frequent of train; videos without any of them are left out.
    """
    shards = find_shards(spec, data_dir, "train"), find_shards(spec, data_dir, "test")
    train, test = (VideoDataset(paths, spec, max_frames=max_frames) for paths in shards)
    if labels is not None:
        classes = most_frequent(train, labels)
        train.keep(classes)
        test.keep(classes)
    if min(len(train), len(test)) < 2:
        raise ValueError(
            f"{data_dir} has {len(train)} train and {len(test)} test videos; at least 2 of each are needed"
        )
    order = sorted(range(len(train)), key=lambda i: hashlib.md5(train.entries[i].id.encode()).digest())
    held = min(max(500, len(train) // 10), len(train) // 2)
    return Splits(spec, train.select(sorted(order[held:])), train.select(sorted(order[:held])), test)
