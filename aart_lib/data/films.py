"""Films: video files made into a data set of their own, features and pictures in the format of YouTube-8M.

Each file is decoded and shown to the image network once; what it gives is kept in the folder ``clips``, so that a run
that was stopped goes on, and one with other components, classes or joins decodes nothing. Then components are fitted on
the training frames and the films are written, a few at a time: memory does not grow with their number.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from aart_lib.data.vocabulary import read_vocabulary
from aart_lib.runtime.files import replacing

SHARD = 500  # films in a file


@dataclass(frozen=True)
class Film:
    """What is written: stretches of clips one behind the other."""

    id: str
    split: str
    group: str
    labels: tuple[str, ...]
    pieces: tuple[tuple[Path, int, int], ...]  # file, first frame, the one behind the last
    shown: tuple[tuple[str, int, int], ...] | None = None  # label and its frames in the film; None = not known


@dataclass(frozen=True)
class Joins:
    """How clips are joined to films. ``background`` classes fill the time and are no labels."""

    clips: int
    background: tuple[str, ...] = ()
    films: tuple[int, int] = (2000, 300)  # train, test
    pools: int = 4  # training films draw from one of so many sets of groups, so that validation can have its own
    most: int = 3  # short clips in a film
    short: tuple[int, int] = (1, 2)  # frames of a clip that is shown briefly
    long: tuple[int, int] = (3, 7)  # of one that fills the time


# ---------------------------------------------------------------- from rows to films


def _whole(rows: list[Row], lengths: dict[Path, int], fps: float) -> Iterator[Film]:
    """A film a file, with the labels of all its rows."""
    files: dict[Path, list[Row]] = {}
    for row in rows:
        files.setdefault(row.path, []).append(row)
    for path, parts in files.items():
        total, row = lengths[path], parts[0]
        times = [(label, *part.frames(total, fps)) for part in parts for label in part.labels]
        name = row.name if len(row.name.encode()) <= LONGEST_ID else hashlib.sha256(row.name.encode()).hexdigest()
        labels = tuple(dict.fromkeys(label for label, *_ in times))
        shown = tuple(times) if any(part.timed for part in parts) else None
        yield Film(name, row.split, row.group or name, labels, ((path, 0, total),), shown)


def _joined(rows: list[Row], lengths: dict[Path, int], fps: float, how: Joins) -> Iterator[Film]:
    """Films of several clips each, a few of them brief; the same ones each time."""
    if unknown := set(how.background) - {label for row in rows for label in row.labels}:
        raise ValueError(f"no video shows the background {sorted(unknown)[0]!r}; name classes of the source")
    for split, count in zip(SPLITS, how.films, strict=True):
        pools = _pools([row for row in rows if row.split == split and row.labels], how.pools if split == "train" else 1)
        for i in range(count):
            rng = np.random.default_rng([SPLITS.index(split), i])
            drawn = _drawn(rng, pools[i % len(pools)], how)
            film = Film(f"{split}-{i:06d}", split, f"{split}-{i % len(pools)}", (), (), ())
            for row, (low, high) in drawn:
                film = _with(film, row, row.frames(lengths[row.path], fps), rng, int(rng.integers(low, high + 1)), how)
            yield film


def _pools(rows: list[Row], most: int) -> list[dict[str, list[Row]]]:
    """The clips of each class {label: rows}, its groups dealt out to pools. Raises: ValueError."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        known = groups.setdefault(row.labels[0], [])
        known += [row.own_group] if row.own_group not in known else []
    if len(groups) < 2:
        raise ValueError(f"joining takes clips of two classes in train and in test, got {', '.join(groups) or 'none'}")
    pools: list[dict] = [{} for _ in range(min(most, *map(len, groups.values())))]
    for row in rows:
        place = groups[row.labels[0]].index(row.own_group) % len(pools)
        pools[place].setdefault(row.labels[0], []).append(row)
    return pools


def _drawn(rng: np.random.Generator, pool: dict[str, list[Row]], how: Joins) -> list[tuple[Row, tuple[int, int]]]:
    """The clips of a film in their order, each with the bounds of its length."""
    filling = [label for label in pool if label in how.background]
    if not how.background:
        filling = [str(rng.choice(list(pool)))]  # without a background one class of the film is there for long
    brief = [label for label in pool if label not in filling]
    count = int(rng.integers(1, min(how.most, how.clips - 1, len(brief)) + 1))
    names = [(str(label), how.short) for label in rng.choice(brief, count, replace=False)]
    names += [(str(label), how.long) for label in rng.choice(filling, how.clips - count)]
    order = rng.permutation(len(names))
    return [(pool[label][rng.integers(len(pool[label]))], bounds) for label, bounds in (names[i] for i in order)]


def _with(film: Film, row: Row, frames: tuple[int, int], rng, length: int, how: Joins) -> Film:
    """The film with so many frames of one more clip behind it."""
    first = int(rng.integers(frames[0], max(frames[0], frames[1] - length) + 1))
    last, begun = min(first + length, frames[1]), sum(b - a for _, a, b in film.pieces)
    seen = tuple(label for label in row.labels if label not in how.background)
    shown = (*(film.shown or ()), *((label, begun, begun + last - first) for label in seen))
    labels = tuple(dict.fromkeys((*film.labels, *seen)))
    return replace(film, labels=labels, pieces=(*film.pieces, (row.path, first, last)), shown=shown)


# ---------------------------------------------------------------- clips


class Clips:
    """What the network says of each video file, kept in a folder, and what its pictures look like."""

    def __init__(self, folder: Path, *, fps: float, size: int, network: torch.nn.Module):
        self.folder, self.fps, self.size, self.network = folder, fps, size, network
        self.weights = extracting.weights_of(network)
        self.table = lru_cache(64)(self._table)

    def _kept(self, path: Path) -> Path:
        about = path.stat()
        key = [str(path.resolve()), about.st_size, about.st_mtime_ns, self.fps, self.size, self.weights["sha256"]]
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.safetensors"

    def _table(self, path: Path) -> dict[str, np.ndarray]:
        """features [T,F]; jpegs, bytes one behind the other; ends [T] of each."""
        return load_file(self._kept(path))

    def length(self, path: Path) -> int:
        """Frames of a video; it is decoded if it was not yet. Raises: ValueError with the file's name."""
        if not path.is_file():
            raise ValueError(f"{path} is not there; mend the list, or leave it out")
        try:
            return len(self._table(path)["ends"])
        except (OSError, SafetensorError, KeyError):
            pass  # not there yet, or damaged: made anew
        jpegs: list[bytes] = []
        # type: that `append` returns nothing is what leads on to the picture
        seen = (jpegs.append(to_jpeg(p)) or p for p in pictures(path, fps=self.fps, size=self.size))  # type: ignore[func-returns-value]
        features = network_features(self.network, seen)
        ends = np.cumsum([len(jpeg) for jpeg in jpegs], dtype=np.int64)
        with replacing(self._kept(path)) as file:
            file.write(
                to_bytes({"features": features, "jpegs": np.frombuffer(b"".join(jpegs), np.uint8), "ends": ends})
            )
        return len(ends)

    def jpegs(self, path: Path) -> list[bytes]:
        table = self.table(path)
        return [part.tobytes() for part in np.split(table["jpegs"], table["ends"][:-1])]


def films(
    source,
    out,
    *,
    fps: float = 1.0,
    join: Joins | None = None,
    dims: int = 256,
    size: int = 224,
    fitted=None,
    network: torch.nn.Module | None = None,
    pictured: Sequence[str] = SPLITS,
    bad: Callable[[ValueError], None] | None = None,
) -> str:
    """Write a data folder ``out`` from videos (see `rows_of`); returns a line that tells what is there.

    Args:
        fps: frames a second; size: pixels of their sides; dims: components kept, fewer where the frames have no more.
        join: None makes a film of every file.
        fitted: a folder of films whose components and classes are taken over, so that its models understand the new
            ones; network: see `extractor`; pictured: the splits whose films keep their pictures.
        bad: is given the error of each video that cannot be used, which is then left out; None = it is raised.
    Raises: ValueError with the name of the file, or of the line of the list.
    """
    if not (math.isfinite(fps) and 0 < fps <= 1000) or dims < 1 or not 16 <= size <= 1024 or (join and join.clips < 2):
        got = f"fps {fps:g}, dims {dims}, size {size}, join {join.clips if join else None}"
        raise ValueError(f"fps must be above 0, dims at least 1, size 16 to 1024 and join at least 2, got {got}")
    out, rows = Path(out), rows_of(source)
    loaded = extracting.load(fitted, network) if fitted else None
    network = loaded.network if loaded else network or EfficientNet()
    fps, size = (loaded.about["fps"], loaded.size) if loaded else (fps, size)
    clips = Clips(out / "clips", fps=fps, size=size, network=network)
    lengths = _decoded(clips, rows, bad)
    rows = [row for row in rows if row.path in lengths]
    plan = list(_joined(rows, lengths, fps, join) if join else _whole(rows, lengths, fps))
    classes = sorted({label for film in plan for label in film.labels})
    if loaded:
        names = read_vocabulary(Path(str(fitted)) / "vocabulary.csv").names
        classes = [names.get(index, "") for index in range(loaded.about["classes"])]
        if unknown := {label for film in plan for label in film.labels} - set(classes):
            raise ValueError(f"{source} has the class {sorted(unknown)[0]!r}, which {fitted} has not")
    about = {"classes": len(classes), "frames": max(sum(b - a for _, a, b in film.pieces) for film in plan)}
    extractor = loaded or _fit(clips, rows, dims)
    extractor.about |= about
    extracting.save(extractor, out)
    counts = _write(out, plan, classes, clips, extractor, pictured)
    _write_tables(out, plan, classes)
    told = f"{counts['train']} training and {counts['test']} test films of {len(lengths)} videos, {len(classes)} labels"
    return f"{told}, {extractor.about['dims']} numbers a frame; {out}, use it as --data-dir"


def _decoded(clips: Clips, rows: list[Row], bad) -> dict[Path, int]:
    """Frames of each video that can be used. Raises: ValueError, also if none is left."""
    lengths: dict[Path, int] = {}
    parts: dict[Path, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.path, []).append(row)
    for path in tqdm(parts, desc="decoding", unit="video"):
        try:
            total = clips.length(path)
            for row in parts[path]:
                row.frames(total, clips.fps)
            lengths[path] = total
        except ValueError as error:
            if bad is None:
                raise
            bad(error)
    if not lengths:
        raise ValueError(f"none of the {len(parts)} videos can be used; the first is {rows[0].path}")
    return lengths


def _fit(clips: Clips, rows: list[Row], dims: int) -> Extractor:
    seen = {row.path: None for row in rows if row.split == "train"} or {row.path: None for row in rows}
    mean, components = extracting.fit((clips.table(path)["features"] for path in seen), dims)
    about = {"network": clips.weights, "size": clips.size, "fps": clips.fps, "dims": components.shape[1]}
    return Extractor(clips.network, mean, components, about)


def _write(out: Path, plan: list[Film], classes: list[str], clips: Clips, extractor: Extractor, pictured) -> Counter:
    counts, made = Counter({split: sum(film.split == split for film in plan) for split in SPLITS}), set[Path]()
    stored = lru_cache(256)(
        lambda path: quantize(extractor.project(torch.from_numpy(clips.table(path)["features"])).numpy())
    )
    jpegs = lru_cache(256)(clips.jpegs)
    with tqdm(total=len(plan), desc="writing", unit="film") as bar:

        def payload(film: Film) -> bytes:
            bar.update()
            lists: dict = {"rgb": np.concatenate([stored(path)[a:b] for path, a, b in film.pieces])}
            if film.split in pictured:
                lists["picture"] = [jpeg for path, a, b in film.pieces for jpeg in jpegs(path)[a:b]]
            if film.shown is not None:
                lists["evidence"] = np.zeros((len(lists["rgb"]), len(classes)), np.uint8)
                for label, a, b in film.shown:
                    lists["evidence"][a:b, classes.index(label)] = 1
            labels = sorted(classes.index(label) for label in film.labels)
            return encode_sequence_example({"id": film.id, "labels": labels}, lists)

        for split in SPLITS:
            kept = [film for film in plan if film.split == split]
            for start in range(0, len(kept), SHARD):
                path = out / f"{split}-{start // SHARD:05d}-of-{-(-len(kept) // SHARD):05d}.tfrecord"
                write_records(path, map(payload, kept[start : start + SHARD]))
                made.add(path)
    for path in {path for split in SPLITS for path in out.glob(f"{split}-*-of-*.tfrecord")} - made:
        path.unlink()  # of an earlier run with more films
    return counts


def _write_tables(out: Path, plan: list[Film], classes: list[str]) -> None:
    """The names of the classes, and which film belongs to which group."""
    counts = Counter(label for film in plan if film.split == "train" for label in film.labels)
    names = [("Index", "TrainVideoCount", "Name"), *((i, counts[name], name) for i, name in enumerate(classes))]
    groups = [("id", "split", "group"), *((film.id, film.split, film.group) for film in plan)]
    for name, table in (("vocabulary.csv", names), ("films.csv", groups)):
        text = "\n".join(",".join(f'"{str(cell).replace(chr(34), 2 * chr(34))}"' for cell in line) for line in table)
        with replacing(out / name) as file:
            file.write((text + "\n").encode())
