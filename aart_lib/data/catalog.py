"""Data sets by name, and their splits: train, validation, test."""

import copy
import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aart_lib.data import synthetic
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.exact import integers, one_of
from aart_lib.data.formats import SPECS, DatasetSpec
from aart_lib.data.records import Skipped
from aart_lib.data.vocabulary import chosen
from aart_lib.runtime.files import read_json, replacing

BUNDLED = Path(__file__).resolve().parents[2] / "notebooks" / "films"  # films of photographs, in a checkout


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set, with the class indices behind the label columns."""

    spec: DatasetSpec
    train: VideoDataset
    validation: VideoDataset
    test: VideoDataset

    @classmethod
    def of(cls, train: VideoDataset, test: VideoDataset, *, labels=None, groups: Mapping | None = None) -> "Splits":
        """Splits of data sets that are open; validation, ``labels`` and ``groups`` as in `open_splits`.

        Raises: ValueError.
        """
        train, test = copy.copy(train), copy.copy(test)
        if (train.spec.dims, train.labels) != (test.spec.dims, test.labels):
            told = [f"{part.spec.dims} numbers a frame, {len(part.labels)} labels" for part in (train, test)]
            raise ValueError(f"train and test must have the same features and labels, got {' and '.join(told)}")
        train.max_frames = test.max_frames = max(train.max_frames, test.max_frames)
        if labels is not None:
            kept = integers(labels, "labels").tolist()
            classes = kept if isinstance(kept, list) else most_frequent(train, kept)
            train.keep(classes)
            test.keep(classes)
        if min(len(train), len(test)) < 2:
            raise ValueError(f"there are {len(train)} train and {len(test)} test videos; it takes at least 2 of each")
        names = [(groups or {}).get(entry.id, entry.id) for entry in train.entries]
        digests = [hashlib.md5(name.encode()).digest() for name in names]
        order = sorted(range(len(train)), key=digests.__getitem__)
        held = min(max(500, len(train) // 10), len(train) // 2, 5000)
        if groups:  # a group lies on one side, unless there is but one
            borders = [i for i in range(1, len(train)) if digests[order[i]] != digests[order[i - 1]]]
            held = min(borders, key=lambda border: abs(border - held), default=held)
        parts = {"train": train.select(sorted(order[held:])), "validation": train.select(sorted(order[:held]))}
        bare = [name for name, part in {**parts, "test": test}.items() if not part.entries.label_counts()]
        if bare:
            raise ValueError(f"no {bare[0]} video of these has a label; there is nothing to learn or judge")
        return cls(train.spec.joined(test.spec), **parts, test=test)

    @property
    def labels(self) -> list[int]:
        return self.train.labels


def find_shards(spec: DatasetSpec, data_dir, split: str) -> list[Path]:
    """The files of ``split`` ("train" or "test") in a data folder, sorted. Raises: ValueError if there is none."""
    folder, patterns = Path(data_dir), getattr(spec, split)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; --data-dir must be the folder with the {spec.name} shards")
    if found := sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        return found
    packed = [path.name for pattern in patterns for path in folder.glob(f"{pattern}.*")][:1]
    more = f"; {packed[0]} must be unpacked first" if packed else ""
    raise ValueError(f"{folder} has no {split} shards of {spec.name}; looked for {', '.join(patterns)}{more}")


def most_frequent(dataset: VideoDataset, count: int) -> list[int]:
    """The ``count`` most frequent classes, most frequent first, ties by index. Raises: ValueError if there are less."""
    counts = dataset.entries.label_counts()
    if not 0 < count <= len(counts):
        raise ValueError(f"--labels must be between 1 and the {len(counts)} classes that occur, got {count}")
    return sorted(counts, key=lambda label: (-counts[label], label))[:count]


def open_splits(
    spec: DatasetSpec,
    data_dir,
    *,
    labels: int | Sequence[int] | None = None,
    max_frames=None,
    skipped=None,
    groups: Mapping[str, str] | None = None,
) -> Splits:
    """Train, validation and test of a data folder.

    Validation is cut from train by the md5 of the id: a tenth, at least 500 videos where there are a thousand, at most
    5,000 (it is attacked while ε is calibrated).
    ``labels`` keeps that many classes, the most frequent of train, or the classes named; videos without any of them are
    left out. ``skipped`` as in `VideoDataset`. ``groups``: of videos that must not be divided, by id; the
    cut then is that between two groups which is nearest.
    """
    shards = find_shards(spec, data_dir, "train"), find_shards(spec, data_dir, "test")
    train, test = (VideoDataset(paths, spec, max_frames=max_frames, skipped=skipped) for paths in shards)
    try:
        return Splits.of(train, test, labels=labels, groups=groups)
    except ValueError as error:
        raise ValueError(f"{data_dir}: {error}") from error


def open_data(
    name: str,
    data_dir=None,
    *,
    labels: int | str | list[int] | None = None,
    dims: dict[str, int] | None = None,
    max_frames: int | None = None,
    skipped: Skipped | None = None,
) -> Splits:
    """The splits of a data set by name; the synthetic one is generated on first use. Raises: ValueError.

    labels: how many, the most frequent; or names of labels or verticals, see `vocabulary.chosen`; or class indices.
    "synthetic:short" and its like are the unseen variants of the synthetic data, on which nothing is tuned.
    dims: leading dimensions used of each feature list; max_frames, skipped: as in `VideoDataset`.
    """
    name, _, variant = name.partition(":")
    spec = spec_named(name, dims, data_dir)
    if name == "synthetic":
        one_of("variant of the synthetic data", variant or "default", synthetic.SETTINGS)
        data_dir = data_dir or synthetic.ensure(synthetic.SETTINGS[variant or "default"])
    elif variant:
        raise ValueError(f"{name} has no variants, got {variant!r}; leave out what follows the colon")
    elif name == "films":
        data_dir = data_dir or BUNDLED
    elif data_dir is None:
        raise ValueError(f"{name} needs --data-dir, the folder with its shards; `python -m aart_lib download` fetches")
    kept = chosen(labels, spec, data_dir)
    splits = open_splits(spec, data_dir, labels=kept, max_frames=max_frames, skipped=skipped, groups=_groups(data_dir))
    if variant and variant_of(splits) != variant:
        raise ValueError(f"{data_dir} was not generated as {name}:{variant}; leave out the variant, or --data-dir")
    return splits


def spec_named(name: str, dims: dict[str, int] | None = None, data_dir=None) -> DatasetSpec:
    """What a data set's files hold, with so many leading dimensions used; of films, the folder tells it.

    Raises: ValueError for an unknown name, and for a folder of films that is none.
    """
    one_of("data set", name, SPECS)
    if name == "films":
        return films_spec(data_dir or BUNDLED, dims)
    return SPECS[name] if name == "synthetic" else SPECS[name].leading(**(dims or {}))


def films_spec(data_dir, dims: dict[str, int] | None = None) -> DatasetSpec:
    """What the films of a folder hold. Raises: ValueError if `films` did not write it."""
    path = Path(data_dir) / "extractor.json"
    about = read_json(path)
    stored, classes, frames = found = [about.get(key, -1) for key in ("dims", "classes", "frames")]
    if not all(isinstance(number, int) and 0 <= number < 2**20 for number in found):
        made = f"`python -m aart_lib films VIDEOS --out {data_dir}` makes one"
        raise ValueError(f"{data_dir} is no folder of films, it has no readable {path.name}; {made}")
    used = min(stored, (dims or {}).get("rgb", stored))
    most = min(frames, SPECS["films"].max_frames)
    return replace(SPECS["films"], features={"rgb": (stored, used)}, classes=classes, max_frames=most)


def _groups(data_dir) -> dict[str, str]:
    """{id: group} of the films of a folder, as far as it says."""
    path = Path(data_dir) / "films.csv"
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["id"]: row["group"] for row in csv.DictReader(file) if row.get("id") and row.get("group")}


def keep_extractor(splits: Splits, out) -> None:
    """Copy what tells how films' features are made beside models of them, into OUT/films, where `look` finds it."""
    if splits.spec.pictured:
        folder = Path(splits.train.entries[0].path).parent
        for path in (*folder.glob("extractor.*"), folder / "vocabulary.csv"):
            with replacing(Path(out) / "films" / path.name) as file:
                file.write(path.read_bytes())


def settings_hash(splits: Splits) -> str | None:
    """Of what the videos were generated with; None for genuine data, and where nothing is known of that."""
    generated = splits.spec.name == "synthetic"
    return synthetic.made_with(Path(splits.train.entries[0].path).parent) if generated else None


def data_name(splits: Splits) -> str:
    """The name by which `open_data` opens these videos, "synthetic:short" for a variant of the synthetic data."""
    variant = variant_of(splits)
    return splits.spec.name if variant in (None, "default") else f"{splits.spec.name}:{variant}"


def variant_of(splits: Splits) -> str | None:
    """Name of the generator's settings that made the videos; None where it has no name."""
    known: dict = {synthetic.settings_hash(settings): name for name, settings in synthetic.SETTINGS.items()}
    return known.get(settings_hash(splits))
