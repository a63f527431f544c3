"""Films: video files made into a data set of their own, features and pictures in the format of YouTube-8M.

Each file is decoded and shown to the image network once; what it gives is kept in the folder ``clips``, so that a run
that was stopped goes on, and one with other components, classes or joins decodes nothing. Then components are fitted on
the training frames and the films are written, a few at a time: memory does not grow with their number.
"""

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes
from tqdm import tqdm

from aart_lib.data import extractor as extracting
from aart_lib.data.batch import quantize
from aart_lib.data.extractor import EfficientNet, Extractor, network_features
from aart_lib.data.index import LONGEST_ID
from aart_lib.data.pictures import pictures, to_jpeg
from aart_lib.data.records import encode_sequence_example, write_records
from aart_lib.data.sources import SPLITS, Row, rows_of
from aart_lib.runtime.files import replacing

SHARD = 500  # films in a file
REMEMBERED = 128  # videos whose features and pictures are at hand while films are written


@dataclass(frozen=True)
class Film:
    """What is written: stretches of videos one behind the other."""

    id: str
    split: str
    group: str
    pieces: Sequence[tuple[Path, int, int]]  # file, first frame, the one behind the last
    shown: Sequence[tuple[str, int, int]]  # label, and its frames in the film
    timed: bool  # whether these times are known; else all labels hold for the film

    @property
    def length(self) -> int:
        return sum(last - first for _, first, last in self.pieces)

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(label for label, *_ in self.shown))


@dataclass(frozen=True)
class Joins:
    """How clips are joined to films: a few are brief, the others fill the time.

    ``background`` classes fill the time and are no labels; without them, one class of each film does, and is a label.
    """

    clips: int
    background: tuple[str, ...] = ()
    films: tuple[int, int] = (2000, 300)  # train, test
    pools: int = 4  # training films draw from one of so many sets of groups, so that validation can have its own
    most: int = 3  # brief clips in a film
    brief: tuple[int, int] = (1, 2)  # frames, from and to
    long: tuple[int, int] = (3, 7)


# ---------------------------------------------------------------- from rows to films


def _whole(files: Mapping[Path, list[Row]], lengths: Mapping[Path, int], fps: float) -> Iterator[Film]:
    """A film a file, with the labels of all its rows."""
    for path, rows in files.items():
        row, total = rows[0], lengths[path]
        name = row.name if len(row.name.encode()) <= LONGEST_ID else hashlib.sha256(row.name.encode()).hexdigest()
        shown = [(label, *part.frames(total, fps)) for part in rows for label in part.labels]
        yield Film(name, row.split, row.group or name, [(path, 0, total)], shown, any(part.timed for part in rows))


def _joined(rows: list[Row], lengths: Mapping[Path, int], fps: float, how: Joins) -> Iterator[Film]:
    """Films of several clips each; the same ones each time."""
    for split, count in zip(SPLITS, how.films, strict=True):
        pools = _pools([row for row in rows if row.split == split and row.labels], how.pools if split == "train" else 1)
        for i in range(count):
            rng = np.random.default_rng([SPLITS.index(split), i])
            pieces, shown, begun = list[tuple[Path, int, int]](), list[tuple[str, int, int]](), 0
            for row, bounds in _drawn(rng, pools[i % len(pools)], how):
                first, last = row.frames(lengths[row.path], fps)
                length = min(int(rng.integers(bounds[0], bounds[1] + 1)), last - first)
                first += int(rng.integers(last - first - length + 1))
                pieces.append((row.path, first, first + length))
                shown += [(label, begun, begun + length) for label in row.labels if label not in how.background]
                begun += length
            yield Film(f"{split}-{i:06d}", split, f"{split}-{i % len(pools)}", pieces, shown, True)


def _pools(rows: list[Row], most: int) -> list[dict[str, list[Row]]]:
    """The clips of each class {label: rows}, its groups dealt out to pools. Raises: ValueError."""
    groups: dict[str, dict[str, None]] = {}
    for row in rows:
        groups.setdefault(row.labels[0], {})[row.own_group] = None
    if len(groups) < 2:
        raise ValueError(f"joining takes clips of two classes in train and in test, got {', '.join(groups) or 'none'}")
    pools: list[dict] = [{} for _ in range(min(most, *map(len, groups.values())))]
    for row in rows:
        place = list(groups[row.labels[0]]).index(row.own_group) % len(pools)
        pools[place].setdefault(row.labels[0], []).append(row)
    return pools


def _drawn(rng: np.random.Generator, pool: dict[str, list[Row]], how: Joins) -> Iterator[tuple[Row, tuple[int, int]]]:
    """The clips of a film in their order, each with the bounds of its length. Raises: ValueError."""
    filling = [label for label in pool if label in how.background] or [str(rng.choice(list(pool)))]
    brief = [label for label in pool if label not in filling]
    if not brief or not pool.keys() >= set(how.background):
        known = f"classes in train and in test: {', '.join(pool)}"
        raise ValueError(f"background must name some classes, not all, got {', '.join(how.background)}; {known}")
    count = int(rng.integers(1, min(how.most, how.clips - 1, len(brief)) + 1))
    chosen = [(str(label), how.brief) for label in rng.choice(brief, count, replace=False)]
    chosen += [(str(label), how.long) for label in rng.choice(filling, how.clips - count)]
    for i in rng.permutation(len(chosen)):
        label, bounds = chosen[i]
        yield pool[label][rng.integers(len(pool[label]))], bounds


# ---------------------------------------------------------------- what is known of each video


class Clips:
    """What the network says of each video, and its pictures, kept in a folder: a video is decoded once."""

    def __init__(self, folder: Path, network: torch.nn.Module, fps: float, size: int):
        self.folder, self.network, self.fps, self.size = folder, network, fps, size
        self.weights = extracting.weights_of(network)

    def _place(self, path: Path) -> Path:
        file = path.stat()
        key = [str(path.resolve()), file.st_size, file.st_mtime_ns, self.fps, self.size, self.weights["sha256"]]
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.safetensors"

    def table(self, path: Path) -> dict[str, np.ndarray]:
        """features [T,F]; jpegs, one behind the other in uint8; ends [T] of each."""
        return load_file(self._place(path))

    def length(self, path: Path) -> int:
        """Frames of a video; it is decoded if it was not yet. Raises: ValueError with the file's name."""
        if not path.is_file():
            raise ValueError(f"{path} is not there; mend the list, or leave it out")
        try:
            return len(self.table(path)["ends"])
        except (OSError, SafetensorError, KeyError):
            pass  # not there yet, or damaged: made anew
        jpegs: list[bytes] = []

        def seen() -> Iterator[np.ndarray]:
            for picture in pictures(path, fps=self.fps, size=self.size):
                jpegs.append(to_jpeg(picture))
                yield picture

        kept = {"features": network_features(self.network, seen()), "ends": np.cumsum(list(map(len, jpegs)))}
        with replacing(self._place(path)) as file:
            file.write(to_bytes(kept | {"jpegs": np.frombuffer(b"".join(jpegs), np.uint8)}))
        return len(jpegs)

    def lengths(self, files: Mapping[Path, list[Row]], bad) -> dict[Path, int]:
        """Frames of each video that can be used. Raises: ValueError, also if none is left."""
        found: dict[Path, int] = {}
        for path, rows in tqdm(files.items(), desc="decoding", unit="video"):
            try:
                total = self.length(path)
                for row in rows:
                    row.frames(total, self.fps)
                found[path] = total
            except ValueError as error:
                if bad is None:
                    raise
                bad(error)
        if not found:
            raise ValueError(f"none of the {len(files)} videos can be used; the first is {next(iter(files))}")
        return found

    def extractor(self, files: Mapping[Path, list[Row]], dims: int) -> Extractor:
        """Components fitted on the training frames, on all if there are none."""
        chosen = [path for path, rows in files.items() if rows[0].split == "train"] or list(files)
        mean, components = extracting.fit((self.table(path)["features"] for path in chosen), dims)
        about = {"network": self.weights, "size": self.size, "fps": self.fps, "dims": components.shape[1]}
        return Extractor(self.network, mean, components, about)


def films(
    source,
    out,
    *,
    fps: float = 1.0,
    join: Joins | None = None,
    dims: int = 256,
    size: int = 224,
    network: torch.nn.Module | None = None,
    pictured: Sequence[str] = SPLITS,
    bad: Callable[[ValueError], None] | None = None,
) -> str:
    """Write a data folder ``out`` from videos (see `rows_of`); returns a line that tells what is there.

    Args:
        fps: frames a second; size: pixels of their sides; dims: components kept, fewer where the frames have no more.
        join: None makes a film of every file.
        network: see `extractor`; pictured: the splits whose films keep their pictures.
        bad: is given the error of each video that cannot be used, which is then left out; None = it is raised.
    Raises: ValueError with the name of the file, or of the line of the list.
    """
    if not 0 < fps <= 1000 or dims < 1 or not 16 <= size <= 1024 or (join and join.clips < 2):
        got = f"fps {fps:g}, dims {dims}, size {size}, join {join.clips if join else None}"
        raise ValueError(f"fps must be above 0, dims at least 1, size 16 to 1024 and join at least 2, got {got}")
    out, files = Path(out), dict[Path, list[Row]]()
    for row in rows_of(source):
        files.setdefault(row.path, []).append(row)
    clips = Clips(out / "clips", network or EfficientNet(), fps, size)
    lengths = clips.lengths(files, bad)
    files = {path: rows for path, rows in files.items() if path in lengths}
    rows = [row for parts in files.values() for row in parts]
    plan = list(_joined(rows, lengths, fps, join) if join else _whole(files, lengths, fps))
    classes = sorted({label for film in plan for label in film.labels})
    extractor = clips.extractor(files, dims)
    extractor.about |= {"classes": len(classes), "frames": max(film.length for film in plan)}
    extracting.save(extractor, out)
    _write(plan, out, classes, clips, extractor, pictured)
    _write_tables(plan, out, classes)
    counts = Counter(film.split for film in plan)
    told = f"{counts['train']} training and {counts['test']} test films of {len(lengths)} videos, {len(classes)} labels"
    return f"{told}, {extractor.about['dims']} numbers a frame; {out}, use it as --data-dir"


def _write(plan: list[Film], out: Path, classes: list[str], clips: Clips, extractor: Extractor, pictured) -> None:
    @lru_cache(REMEMBERED)
    def kept(path: Path) -> tuple[np.ndarray, list[bytes]]:
        """The bytes [T,D] and the JPEGs of a video."""
        table = clips.table(path)
        features = extractor.project(torch.from_numpy(table["features"])).numpy()
        return quantize(features), [part.tobytes() for part in np.split(table["jpegs"], table["ends"][:-1])]

    made = set[Path]()
    for split in SPLITS:
        films = [film for film in plan if film.split == split]
        for start in range(0, len(films), SHARD):
            path = out / f"{split}-{start // SHARD:05d}-of-{math.ceil(len(films) / SHARD):05d}.tfrecord"
            some = tqdm(films[start : start + SHARD], desc=f"writing {path.name}", unit="film")
            write_records(path, (_record(film, classes, kept, split in pictured) for film in some))
            made.add(path)
    for path in {path for split in SPLITS for path in out.glob(f"{split}-*-of-*.tfrecord")} - made:
        path.unlink()  # of an earlier run with more films


def _record(film: Film, classes: list[str], kept: Callable, pictured: bool) -> bytes:
    lists: dict = {"rgb": np.concatenate([kept(path)[0][first:last] for path, first, last in film.pieces])}
    if pictured:
        lists["picture"] = [jpeg for path, first, last in film.pieces for jpeg in kept(path)[1][first:last]]
    if film.timed:
        lists["evidence"] = np.zeros((film.length, len(classes)), np.uint8)
        for label, first, last in film.shown:
            lists["evidence"][first:last, classes.index(label)] = 1
    labels = sorted(classes.index(label) for label in film.labels)
    return encode_sequence_example({"id": film.id, "labels": labels}, lists)


def _write_tables(plan: list[Film], out: Path, classes: list[str]) -> None:
    """The names of the classes, and which film belongs to which group, where it is not its own."""
    counts = Counter(label for film in plan if film.split == "train" for label in film.labels)
    names = [("Index", "TrainVideoCount", "Name"), *((i, counts[name], name) for i, name in enumerate(classes))]
    groups = [("id", "group"), *((film.id, film.group) for film in plan if film.group != film.id)]
    for name, table in (("vocabulary.csv", names), ("films.csv", groups)):
        csv.writer(text := io.StringIO(), lineterminator="\n").writerows(table)
        with replacing(out / name) as file:
            file.write(text.getvalue().encode())
