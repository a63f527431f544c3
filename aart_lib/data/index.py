"""Where every video lies, who it is and what it shows: some thirty bytes a video, so that millions fit in memory.

Small data sets are read once in full when they are opened, so that a bad record is told before hours of training. Of
large ones only the head of each record is read, and what was found is kept in the cache folder.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aart_lib.data.formats import DatasetSpec, holds, tables_of
from aart_lib.data.records import RecordError, Skipped, decode_example, refuse, scan_heads, scan_records
from aart_lib.runtime.files import cache_folder, replacing

SEGMENT = 5  # seconds, the length of YouTube-8M's rated segments
LONGEST_ID = 256  # bytes; all ids of a data set lie in one array, as wide as the longest
# Of a video: its file, place, first frame and their number, and where its labels begin and end among all.
ROW = [("shard", "i4"), ("offset", "i8"), ("start", "i4"), ("frames", "i4"), ("first", "i8"), ("last", "i8")]


@dataclass(frozen=True)
class Entry:
    """One video."""

    path: str
    offset: int  # in a file: byte; of features in memory: row
    id: str
    labels: tuple[int, ...]  # ascending
    start: int = 0  # first frame, where only a part of the video is meant
    frames: int = 0  # number of frames of that part, 0 = all


class Entries(Sequence[Entry]):
    """Videos, packed into two arrays. Behaves as a list of `Entry`; `take` gives a part of it."""

    def __init__(self, paths: list[str], rows: np.ndarray, labels: np.ndarray):
        self.paths, self.rows = paths, rows  # [N] of ROW, and the id
        self.labels = labels  # of all videos, one behind the other

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Entries":
        shards = {path: i for i, path in enumerate(dict.fromkeys(entry.path for entry in entries))}
        ends, rows = np.cumsum([0, *(len(entry.labels) for entry in entries)]), []
        for i, entry in enumerate(entries):
            place = shards[entry.path], entry.offset, entry.start, entry.frames
            rows.append((*place, ends[i], ends[i + 1], entry.id.encode()))
        longest = max((len(row[-1]) for row in rows), default=0) or 1
        labels = np.array([label for entry in entries for label in entry.labels], np.int32)
        return cls([*shards], np.array(rows, [*ROW, ("id", f"S{longest}")]), labels)

    @classmethod
    def join(cls, parts: Sequence["Entries"]) -> "Entries":
        """All videos of all parts, one part behind the other."""
        if not parts:
            return cls.of([])
        paths, rows, labels = list[str](), [], 0
        for part in parts:
            rows.append(part.rows.copy())
            rows[-1]["shard"] += len(paths)
            for end in ("first", "last"):
                rows[-1][end] += labels
            paths, labels = paths + part.paths, labels + len(part.labels)
        return cls(paths, np.concatenate(rows), np.concatenate([part.labels for part in parts]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Entry:  # type: ignore[override]  # for several there is `take`
        if not -len(self) <= i < len(self):
            raise IndexError(f"video {i} of {len(self)}")
        shard, offset, start, frames, first, last, name = self.rows[i].tolist()
        labels = tuple(self.labels[first:last].tolist())
        return Entry(self.paths[shard], offset, name.decode("utf-8", "replace"), labels, start, frames)

    def take(self, rows) -> "Entries":
        """The videos at these positions (or where a boolean [N] is true), in this order."""
        rows = np.asarray(rows)
        return Entries(self.paths, self.rows[rows if rows.dtype == bool else rows.astype(np.int64)], self.labels)

    def showing(self, labels: Sequence[int]) -> np.ndarray:
        """Boolean [N]: videos with at least one of the labels."""
        before = np.concatenate([[0], np.isin(self.labels, labels).cumsum()])
        return before[self.rows["last"]] > before[self.rows["first"]]

    def label_counts(self) -> dict[int, int]:
        """{label: number of videos}."""
        begun, ended = (np.bincount(self.rows[end], minlength=len(self.labels) + 1) for end in ("first", "last"))
        owners = (begun - ended).cumsum()[:-1]  # 0 where the video of a label was left out
        counts = np.bincount(self.labels, owners, minlength=1).astype(int)
        return {int(label): int(counts[label]) for label in counts.nonzero()[0]}

    def by_shard(self) -> dict[str, np.ndarray]:
        """{path: positions of its videos}, paths without a video left out."""
        order = self.rows["shard"].argsort(kind="stable")
        bounds = np.searchsorted(self.rows["shard"][order], np.arange(len(self.paths) + 1))
        found = {path: order[bounds[i] : bounds[i + 1]] for i, path in enumerate(self.paths)}
        return {path: rows for path, rows in found.items() if len(rows)}


# ---------------------------------------------------------------- building


def index(paths, spec: DatasetSpec, *, segments=False, check=True, skipped: Skipped | None = None) -> Entries:
    """The videos of record files, in the order of the files.

    Args:
        segments: each rated segment of YouTube-8M's third version is a video of its own, with the labels found there.
        check: read every record in full; else its head only.
        skipped: leave out bad records and count them here; for that every record is read in full.
    Raises: RecordError for a record that is not what the spec says.
    """
    parts, in_full = [], check or skipped is not None
    for path in map(Path, paths):
        if path.is_dir():
            raise RecordError(path, 0, "it is a folder; give the record files in it")
        if skipped is not None:
            skipped.files.pop(str(path), None)  # counted anew where a file is opened again
        if not path.stat().st_size:
            refuse(RecordError(path, 0, "the file is empty; fetch it again"), skipped)
        elif in_full or segments or spec.video_level:
            records = scan_records(path, skipped=skipped)
            parts.append(Entries.of(list(_scan(path, spec, records, segments, in_full, skipped))))
        else:
            parts.append(_remembered(path, spec))
    return Entries.join(parts)


def _scan(path: Path, spec: DatasetSpec, records, segments: bool, check: bool, skipped=None) -> Iterator[Entry]:
    for offset, payload in records:
        try:
            yield from _videos(Entry(str(path), offset, "", ()), payload, spec, segments, check)
        except ValueError as error:
            refuse(RecordError(path, offset, str(error)), skipped)


def _videos(at: Entry, payload: bytes, spec: DatasetSpec, segments: bool, check: bool) -> list[Entry]:
    """The video of the record there, or its segments. Raises: ValueError."""
    context = decode_example(payload)
    names = [n for key in ("id", "video_id") for n in context.get(key, []) if isinstance(n, bytes)]
    if not names or len(names[0]) > LONGEST_ID:
        told = f"neither `id` nor `video_id` names the video in at most {LONGEST_ID} bytes"
        raise ValueError(told + holds(payload))
    labels = _integers(context, "labels", spec.classes, f"the vocabulary of {spec.classes} classes")
    # What cannot be used is told now, not after hours of training.
    total = len(next(iter(tables_of(payload, spec).values()))) if check else 2**31
    whole = replace(at, id=names[0].decode("utf-8", "replace"), labels=tuple(np.unique(labels).tolist()))
    return _segments(whole, context, spec, total) if segments else [whole]


def _integers(context: dict, key: str, end: int, where: str) -> np.ndarray:
    """A list of the context. Raises: ValueError unless it holds integers from 0 and below ``end``."""
    values = context.get(key, [])
    if len(values) and (isinstance(values, list) or values.dtype != np.int64):
        raise ValueError(f"{key} must be integers")
    if len(values) and not 0 <= values.min() <= values.max() < end:
        raise ValueError(f"{key} from {values.min()} to {values.max()} outside {where}")
    return np.asarray(values, np.int64)


def _segments(video: Entry, context: dict, spec: DatasetSpec, total: int) -> list[Entry]:
    """One entry a rated segment; its labels are those that raters saw (score 1), a segment may have none."""
    starts = _integers(context, "segment_start_times", total, f"the {total} frames of the video")
    labels = _integers(context, "segment_labels", spec.classes, f"the vocabulary of {spec.classes} classes")
    scores, seen = context.get("segment_scores", []), dict[int, set[int]]()
    if not len(starts) == len(labels) == len(scores):
        raise ValueError(f"{len(starts)} segment_start_times, {len(labels)} _labels and {len(scores)} _scores differ")
    if len(scores) and isinstance(scores, list):
        raise ValueError("segment_scores must be numbers")
    for start, label, rated in zip(starts.tolist(), labels.tolist(), np.asarray(scores) > 0, strict=True):
        seen.setdefault(start, set()).update([label] if rated else [])
    return [
        replace(video, id=f"{video.id}:{start}", labels=tuple(sorted(found)), start=start, frames=SEGMENT)
        for start, found in sorted(seen.items())
    ]


def _remembered(path: Path, spec: DatasetSpec) -> Entries:
    """The index of a large shard from the heads of its records, kept in the cache folder until the file changes."""
    about = path.stat()
    key = f"{path.resolve()} {about.st_size} {about.st_mtime_ns} {spec.classes}"
    kept = cache_folder() / "index" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
    with suppress(Exception):  # not there yet, or damaged, for which zipfile and numpy raise a dozen kinds: made anew
        with np.load(kept, allow_pickle=False) as stored:
            return Entries([str(path)], **stored)
    found = Entries.of(list(_scan(path, spec, scan_heads(path), False, False)))
    found.paths = [str(path)]
    with replacing(kept) as file:
        np.savez(file, rows=found.rows, labels=found.labels)
    return found
