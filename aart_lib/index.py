"""Where every video lies, who it is and what it shows: some thirty bytes a video, so that millions fit in memory.

Small data sets are read once in full when they are opened, so that a bad record is told before hours of training. Of
large ones only the head of each record is read, and what was found is kept in the cache folder.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from aart_lib.records import RecordError, cache_folder, decode_example, replacing, scan_heads, scan_records
from aart_lib.specs import DatasetSpec, chosen_frames, features_of

SEGMENT = 5  # seconds, the length of YouTube-8M's rated segments
CONVERTED = ".frames"  # raw bytes [frames of all videos, D], see `convert`


@dataclass(frozen=True)
class Entry:
    """One video."""

    path: str
    offset: int  # in a record file: byte; in a converted file: row
    id: str
    labels: tuple[int, ...]  # ascending
    start: int = 0  # first frame, where only a part of the video is meant
    frames: int = 0  # number of frames of that part, 0 = all


class Entries(Sequence):
    """Videos, packed into arrays. Behaves as a list of `Entry`; `take` gives a part of it."""

    def __init__(self, paths: list[str], **columns: np.ndarray):
        self.paths, self.columns = paths, columns  # shard, offset, start, frames, id, first, last [N]; labels, flat

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Entries":
        paths = list(dict.fromkeys(entry.path for entry in entries))
        place = {path: i for i, path in enumerate(paths)}
        ends = np.cumsum([0, *(len(entry.labels) for entry in entries)])
        column = lambda name, kind: np.array([getattr(e, name) for e in entries], kind)  # noqa: E731
        return cls(
            paths,
            shard=np.array([place[entry.path] for entry in entries], np.int32),
            offset=column("offset", np.int64),
            start=column("start", np.int32),
            frames=column("frames", np.int32),
            id=np.array([entry.id.encode() for entry in entries] or [b""], np.bytes_)[: len(entries)],
            first=ends[:-1].astype(np.int64),
            last=ends[1:].astype(np.int64),
            labels=np.array([label for entry in entries for label in entry.labels], np.int32),
        )

    @classmethod
    def join(cls, parts: Sequence["Entries"]) -> "Entries":
        """All videos of all parts, one part behind the other."""
        if not parts:
            return cls.of([])
        paths, labels, moved = [], 0, []
        for part in parts:
            shift = {"shard": len(paths), "first": labels, "last": labels}
            moved.append({name: c + shift[name] if name in shift else c for name, c in part.columns.items()})
            paths, labels = paths + part.paths, labels + len(part.columns["labels"])
        return cls(paths, **{name: np.concatenate([columns[name] for columns in moved]) for name in moved[0]})

    def __len__(self) -> int:
        return len(self.columns["offset"])

    def __getitem__(self, i: int) -> Entry:
        if not -len(self) <= i < len(self):
            raise IndexError(f"video {i} of {len(self)}")
        at = lambda name: self.columns[name][i].item()  # noqa: E731
        labels = self.columns["labels"][at("first") : at("last")]
        name = self.columns["id"][i].decode("utf-8", "replace")
        return Entry(self.paths[at("shard")], at("offset"), name, tuple(labels.tolist()), at("start"), at("frames"))

    def take(self, rows) -> "Entries":
        """The videos at these positions (or where a boolean [N] is true), in this order."""
        rows = np.asarray(rows)
        rows = rows if rows.dtype == bool else rows.astype(np.int64)
        kept = {name: column if name == "labels" else column[rows] for name, column in self.columns.items()}
        return Entries(self.paths, **kept)

    def showing(self, labels: Sequence[int]) -> np.ndarray:
        """Boolean [N]: videos with at least one of the labels."""
        before = np.concatenate([[0], np.isin(self.columns["labels"], labels).cumsum()])
        return before[self.columns["last"]] > before[self.columns["first"]]

    def label_counts(self) -> dict[int, int]:
        """{label: number of videos}."""
        flat, first, last = (self.columns[name] for name in ("labels", "first", "last"))
        begun, ended = (np.bincount(side, minlength=len(flat) + 1) for side in (first, last))
        owners = (begun - ended).cumsum()[:-1]  # 0 where the video of a label was left out
        counts = np.bincount(flat, owners, minlength=1).astype(int)
        return {int(label): int(counts[label]) for label in counts.nonzero()[0]}

    def by_shard(self) -> dict[str, np.ndarray]:
        """{path: positions of its videos}, paths without a video left out."""
        order = self.columns["shard"].argsort(kind="stable")
        bounds = np.searchsorted(self.columns["shard"][order], np.arange(len(self.paths) + 1))
        found = {path: order[bounds[i] : bounds[i + 1]] for i, path in enumerate(self.paths)}
        return {path: rows for path, rows in found.items() if len(rows)}


# ---------------------------------------------------------------- building


def index(paths: Sequence[Path], spec: DatasetSpec, *, segments: bool = False, check: bool = True) -> Entries:
    """The videos of record files or converted ones, in the order of the files.

    Args:
        segments: each rated segment of YouTube-8M's third version is a video of its own, with the labels found there.
        check: read every record in full; else its head only.
    Raises: RecordError for a record that is not what the spec says, ValueError for a converted file that does not fit.
    """
    parts = []
    for path in map(Path, paths):
        if path.suffix == CONVERTED:
            parts.append(_converted(path, spec))
        elif check or segments or spec.video_level:
            parts.append(Entries.of(list(_scan(path, spec, scan_records(path), segments, check))))
        else:
            parts.append(_remembered(path, spec))
    return Entries.join(parts)


def _scan(path: Path, spec: DatasetSpec, records, segments: bool, check: bool) -> Iterator[Entry]:
    for offset, payload in records:
        try:
            context = decode_example(payload)
            name = (context.get("id") or context.get("video_id") or [None])[0]
            if not isinstance(name, bytes):
                raise ValueError("neither `id` nor `video_id` names the video")
            labels = np.unique(context.get("labels", []))
            if labels.size and (labels.dtype.kind != "i" or labels[0] < 0 or labels[-1] >= spec.classes):
                raise ValueError(f"labels {labels.tolist()} outside the vocabulary of {spec.classes} classes")
            if check:  # what cannot be used is told now, not after hours of training
                features_of(payload, spec, lambda total: chosen_frames(total, 1))
            whole = Entry(str(path), offset, name.decode("utf-8", "replace"), tuple(labels.astype(int).tolist()))
            found = list(_segments(whole, context, spec)) if segments else [whole]
        except ValueError as error:
            raise RecordError(path, offset, str(error)) from error
        yield from found


def _segments(video: Entry, context: dict, spec: DatasetSpec) -> Iterator[Entry]:
    """One entry a rated segment; its labels are those that raters saw (score 1), a segment may have none."""
    starts, labels, scores = (context.get(f"segment_{key}", []) for key in ("start_times", "labels", "scores"))
    if not len(starts) == len(labels) == len(scores):
        raise ValueError(f"{len(starts)} segment_start_times, {len(labels)} _labels and {len(scores)} _scores differ")
    if len(labels) and not 0 <= min(labels) <= max(labels) < spec.classes:
        raise ValueError(f"segment_labels outside the vocabulary of {spec.classes} classes")
    for start in sorted(set(map(int, starts))):
        seen = {int(k) for s, k, v in zip(starts, labels, scores, strict=True) if s == start and v > 0}
        yield replace(video, id=f"{video.id}:{start}", labels=tuple(sorted(seen)), start=start, frames=SEGMENT)


def _remembered(path: Path, spec: DatasetSpec) -> Entries:
    """The index of a large shard from the heads of its records, kept in the cache folder until the file changes."""
    about = path.stat()
    key = f"{path.resolve()} {about.st_size} {about.st_mtime_ns} {spec.classes}"
    kept = cache_folder() / "index" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
    try:
        with np.load(kept, allow_pickle=False) as columns:
            return Entries([str(path)], **columns)
    except (OSError, ValueError, BadZipFile):
        pass  # not there yet, or damaged: made anew
    found = Entries.of(list(_scan(path, spec, scan_heads(path), False, False)))
    found.paths = [str(path)]
    with replacing(kept) as file:
        np.savez(file, **found.columns)
    return found


# ---------------------------------------------------------------- converted files


def save_converted(path: Path, spec: DatasetSpec, entries: Entries) -> None:
    """Write the index beside a converted file. Each entry names its first row and its number of frames."""
    with replacing(path.with_suffix(".npz")) as file:
        np.savez(file, features=_layout(spec), classes=spec.classes, **entries.columns)


def _layout(spec: DatasetSpec) -> str:
    return " ".join(f"{name}:{used}" for name, (_, used) in spec.features.items())


def _converted(path: Path, spec: DatasetSpec) -> Entries:
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            columns = dict(stored)
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} has no readable index {path.stem}.npz beside it; convert again") from error
    layout, classes = str(columns.pop("features")), int(columns.pop("classes"))
    if (layout, classes) != (_layout(spec), spec.classes):
        raise ValueError(f"{path} was converted with {layout}, {classes} classes; convert again for {_layout(spec)}")
    if os.path.getsize(path) != columns["frames"].sum() * spec.dims:
        raise ValueError(f"{path} has {os.path.getsize(path)} bytes, its index speaks of others; convert again")
    return Entries([str(path)], **columns)
