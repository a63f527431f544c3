"""What a data set's records hold, and how bytes become features.

Source: github.com/google/youtube-8m, utils.Dequantize and readers.py; research.google.com/{youtube8m,audioset}.
"""

from dataclasses import dataclass, replace

import numpy as np

from aart_lib.data.batch import LEVEL
from aart_lib.data.records import contents, decode_example, decode_lists

SAMPLINGS = ("uniform", "random", "contiguous")  # which frames of a video longer than the model takes


@dataclass(frozen=True)
class DatasetSpec:
    """What one data set's files hold, and the threat model its features call for."""

    name: str
    features: dict[str, tuple[int, int]]  # feature list -> (dimensions stored, leading ones used)
    classes: int
    train: tuple[str, ...] = ("train*.tfrecord",)  # file patterns inside the data folder
    test: tuple[str, ...] = ("test*.tfrecord",)
    max_frames: int = 32
    norm: str = "linf"
    epsilon: float = 2.5 * LEVEL  # where the calibration starts to look
    epochs: int = 20  # until no defense still rises
    video_level: bool = False  # one row of floats a video, not byte lists
    evidence: bool = False
    box: tuple[float, float] | None = None  # of features that were never bytes: their range; None = `BOX`
    content: str | None = None  # of features without a file: a digest of them

    @property
    def pictured(self) -> bool:
        """Whether records may hold a picture of each frame."""
        return self.name == "films"

    @property
    def dims(self) -> int:
        return sum(used for _, used in self.features.values())

    def joined(self, other: "DatasetSpec") -> "DatasetSpec":
        """This, for the other's features as well."""
        if self.box is None or other.box is None:
            return self
        box = min(self.box[0], other.box[0]), max(self.box[1], other.box[1])
        return replace(self, box=box, content=f"{self.content} {other.content}")

    def leading(self, **dims: int) -> "DatasetSpec":
        """The same data with other numbers of leading dimensions, e.g. ``leading(rgb=256, audio=64)``."""
        return replace(self, features={k: (stored, dims.get(k, used)) for k, (stored, used) in self.features.items()})


SPECS = {
    "synthetic": DatasetSpec("synthetic", {"rgb": (256, 256), "audio": (64, 64)}, 40, evidence=True),
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
    # As many classes, numbers and frames as the folder says: `catalog.films_spec`.
    "films": DatasetSpec("films", {"rgb": (256, 256)}, 0, max_frames=300, evidence=True),
}


def chosen_frames(total: int, most: int, sampling: str = "uniform", seed=None) -> np.ndarray:
    """Ascending indices of at most ``most`` of ``total`` frames.

    uniform: evenly spread, so that the end of a long video is seen too; random: any; contiguous: neighbors.
    """
    if total <= most:
        return np.arange(total)
    if sampling == "uniform":
        return np.linspace(0, total - 1, most).round().astype(int)
    draw = np.random.default_rng(seed)
    if sampling == "contiguous":
        return draw.integers(total - most + 1) + np.arange(most)
    return np.sort(draw.choice(total, most, replace=False))


def holds(payload: bytes) -> str:
    """The end of a refusal: what the record holds, and which data set's it could be."""
    found = contents(payload)
    shown = ", ".join(f"{name!r:.20} ({what})" for name, what in found.items()) or "nothing"
    for name, spec in SPECS.items():
        unit = "floats" if spec.video_level else "bytes a frame"
        if all(found.get(key) == f"{stored} {unit}" for key, (stored, _) in spec.features.items()):
            return f"; the record holds {shown:.110}, as {name} has"
    return f"; the record holds {shown:.110}"


def tables_of(payload: bytes, spec: DatasetSpec) -> dict[str, np.ndarray]:
    """The feature lists of a record by name, [T, stored] each, and its evidence, [T, classes], if the data set has any.

    They are bytes, of video level float32 with T = 1. Raises: ValueError if the record is not what the spec says.
    """
    tables = _means(payload, spec) if spec.video_level else _lists(payload, spec)
    counts = {name: len(table) for name, table in tables.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise ValueError(f"feature lists must have the same number of frames, at least one, got {counts}")
    return tables


def _lists(payload: bytes, spec: DatasetSpec) -> dict[str, np.ndarray]:
    lists = decode_lists(payload, [*spec.features, "evidence"] if spec.evidence else spec.features)
    for name, (stored, _) in spec.features.items():
        if name not in lists or lists[name].shape[1] != stored:
            got = f"{lists[name].shape[1]} bytes a frame" if name in lists else "no such list"
            raise ValueError(f"feature list `{name}` must have {stored} bytes a frame, got {got}{holds(payload)}")
    if "evidence" in lists and (width := lists["evidence"].shape[1]) != spec.classes:
        raise ValueError(f"evidence must have {spec.classes} bytes a frame, got {width}")
    return lists


def _means(payload: bytes, spec: DatasetSpec) -> dict[str, np.ndarray]:
    context, tables = decode_example(payload), {}
    for name, (stored, _) in spec.features.items():
        values = context.get(name, [])
        if len(values) != stored or not isinstance(values, np.ndarray):
            raise ValueError(f"feature `{name}` must have {stored} numbers, got {len(values)}{holds(payload)}")
        if not np.isfinite(values).all():
            raise ValueError(f"feature `{name}` holds NaN or infinity")
        tables[name] = values[None].astype(np.float32)
    return tables
