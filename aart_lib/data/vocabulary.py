"""Names of the classes, and which of them are wanted.

YouTube-8M's vocabulary.csv has a row per class with its name and up to three verticals (Games, Vehicles, ...),
AudioSet's class_labels_indices.csv has names alone. Either is looked for in the data folder.

Source: research.google.com/youtube8m/csv/2/vocabulary.csv, the AudioSet ontology.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from aart_lib.data import synthetic
from aart_lib.data.formats import DatasetSpec

FILES = ("vocabulary.csv", "*vocabulary.csv", "class_labels_indices.csv")


@dataclass(frozen=True)
class Vocabulary:
    """Name and verticals of each class index; a class may have no name."""

    names: dict[int, str]
    verticals: dict[int, tuple[str, ...]]

    def classes(self, wanted: str) -> list[int]:
        """The classes of a name or of a vertical, case does not matter. Raises: ValueError with what is near."""
        key = wanted.strip().casefold()
        found = [k for k, name in self.names.items() if name.casefold() == key]
        found = found or [k for k, known in self.verticals.items() if key in map(str.casefold, known)]
        if not found:
            near = [name for name in self.names.values() if key in name.casefold()][:5]
            verticals = sorted({name for known in self.verticals.values() for name in known})
            known = f"names with these letters: {', '.join(near)}" if near else f"verticals: {', '.join(verticals)}"
            known = known if near or verticals else f"labels: {', '.join(list(self.names.values())[:40])}"
            raise ValueError(f"no label or vertical is called {wanted.strip()!r}; {known}")
        return found


def read_vocabulary(path) -> Vocabulary:
    """The vocabulary of a csv file with a header. Raises: ValueError if the columns are not known."""
    names, verticals = {}, {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            row = {(key or "").lower(): value or "" for key, value in row.items()}
            index, name = row.get("index", ""), row.get("name", row.get("display_name"))
            if not index.isdigit() or name is None:
                raise ValueError(f"{path} is not a vocabulary: it needs the columns Index and Name (or display_name)")
            if name:
                names[int(index)] = name
            found = (value for key, value in row.items() if key.startswith("vertical"))
            verticals[int(index)] = tuple(v for v in found if v and v != "NULL")
    return Vocabulary(names, verticals)


def vocabulary(spec: DatasetSpec, data_dir) -> Vocabulary:
    """The names of a data set's classes. Raises: ValueError if the data folder has no vocabulary."""
    if spec.name == "synthetic":
        return Vocabulary(dict(enumerate(synthetic.names(synthetic.SETTINGS["default"]))), {})
    for pattern in FILES:
        for path in sorted(Path(data_dir).glob(pattern)):
            found = read_vocabulary(path)
            if len(found.verticals) == spec.classes:
                return found
    fetch = f"`python -m aart_lib download vocabulary --out {data_dir}`" if "yt8m" in spec.name else "fetch it first"
    raise ValueError(f"{data_dir} has no {FILES[0]} with {spec.classes} classes, which label names need; {fetch}")


def chosen(labels: int | str | list[int] | None, spec: DatasetSpec, data_dir) -> int | list[int] | None:
    """Which labels are kept: None = all, a number = the most frequent, text = names or verticals with commas between.

    Raises: ValueError for a name that is not there.
    """
    if not isinstance(labels, str):
        return labels
    if labels.removeprefix("-").isdecimal():
        return int(labels)
    known = vocabulary(spec, data_dir)
    wanted = next(csv.reader([labels], skipinitialspace=True)) or [""]  # "a, b" in quotes is one name
    return list(dict.fromkeys(k for name in wanted for k in known.classes(name)))
