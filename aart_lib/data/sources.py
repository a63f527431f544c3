"""Which video files a data set of films is made of: their labels, times, groups and splits."""

import csv
import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

SPLITS = ("train", "test")
LISTS = "manifest.csv"  # a folder that has one is read by it
COLUMNS = "path,labels[,start,end][,group][,split]"


@dataclass(frozen=True)
class Row:
    """A video file, or seconds ``start`` to ``end`` of it, and the labels that are seen there."""

    path: Path
    name: str  # of the file in its source
    labels: tuple[str, ...]
    start: float = 0.0
    end: float = math.inf
    group: str = ""  # of videos that show the same person or place; "" = the file by itself
    split: str = ""

    @property
    def own_group(self) -> str:
        return self.group or self.name

    @property
    def timed(self) -> bool:
        return (self.start, self.end) != (0.0, math.inf)

    def frames(self, total: int, fps: float) -> tuple[int, int]:
        """First frame and the one behind the last; at least one. Raises: ValueError if the video ends before."""
        first, last = math.ceil(self.start * fps - 1e-6), math.ceil(min(self.end * fps, total) - 1e-6)
        if first >= min(last, total):  # between two frames, or behind the end
            first = math.floor(self.start * fps)
            last = first + 1
        if first >= total:
            raise ValueError(f"{self.path} ends before second {self.start:g}, where {', '.join(self.labels)} begins")
        return first, last


def rows_of(source) -> list[Row]:
    """The videos of a folder with one sub-folder a class, of a CSV list, or one file. Raises: ValueError."""
    source = Path(source)
    if source.is_dir() and not (source / LISTS).is_file():
        names = (path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file())
        seen = [name for name in names if len(name.parts) > 1 and not any(part.startswith(".") for part in name.parts)]
        rows = [Row(source / name, name.as_posix(), (name.parts[0],)) for name in seen]
    elif source.is_dir() or source.suffix.lower() == ".csv":
        rows = _listed(source / LISTS if source.is_dir() else source)
    elif source.is_file():
        return [Row(source, source.name, (), split="test")]
    else:
        raise ValueError(f"{source} is not there; give a folder, a CSV list or a video file")
    if not rows:
        raise ValueError(f"{source} names no video; it takes a sub-folder of video files a class, or a CSV {COLUMNS}")
    return _divided(rows)


def _listed(path: Path) -> list[Row]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        known = {"class": "labels", "label": "labels"}
        table.fieldnames = [known.get(name.strip().lower(), name.strip().lower()) for name in table.fieldnames or ()]
        if not {"path", "labels"} <= set(table.fieldnames):
            raise ValueError(f"{path} must have the columns {COLUMNS}, got {','.join(table.fieldnames)[:80]}")
        return [_row(path, table.line_num, row) for row in table]


def _row(path: Path, line: int, row: dict) -> Row:
    row = {key: (value or "").strip() for key, value in row.items() if key}
    try:
        start, end = float(row.get("start") or 0), float(row.get("end") or math.inf)
    except ValueError:
        start = end = math.nan
    labels = tuple(dict.fromkeys(label.strip() for label in re.split("[;,|]", row["labels"]) if label.strip()))
    split = row.get("split", "")
    if not row["path"] or not 0 <= start < end or split not in ("", *SPLITS):
        wanted = "a path, 0 <= start < end in seconds, and the split train, test or none"
        raise ValueError(f"{path}, line {line}: it takes {wanted}, got {','.join(row.values())[:80]}")
    return Row(path.parent / row["path"], row["path"], labels, start, end, row.get("group", ""), split)


def _divided(rows: list[Row]) -> list[Row]:
    """Rows with a split each: a fifth of the groups of each class is for testing. Raises: ValueError for a leak."""
    told: dict[tuple, str] = {}
    for row in (row for row in rows if row.split):
        same: dict[str, tuple] = {"it": (row.name,)}
        if row.group:  # its number may mean another group in another class
            same[f"group {row.group}"] = (row.group, row.labels)
        for what, found in same.items():
            if told.setdefault(found, row.split) != row.split:
                raise ValueError(f"{row.path}: {what} is listed for train and for test; it must be in one of them")
    sides = {row.own_group: row.split for row in rows if row.split}
    classes: dict[str, set[str]] = {}
    for row in rows:
        classes.setdefault(row.own_group, set()).update(row.labels)
    room = Counter(label for labels in classes.values() for label in labels)
    room = Counter({label: max(count // 5, int(count > 1)) for label, count in room.items()})
    for key in sorted(classes.keys() - sides.keys(), key=lambda name: hashlib.md5(name.encode()).digest()):
        sides[key] = "test" if classes[key] and all(room[label] > 0 for label in classes[key]) else "train"
        room.subtract(classes[key] if sides[key] == "test" else ())
    return [row if row.split else replace(row, split=sides[row.own_group]) for row in rows]
