"""YouTube-8M-like videos whose labels are visible in known frames: the data set that is always there.

It stands in for YouTube-8M until the real one is downloaded. Labels, spread, scenes and difficulty are
calibrated on facts about genuine videos (`facts`); no genuine record is contained. The files have the genuine
format and one more feature list, ``evidence`` (uint8 [T, C], 1 = the label is visible in this frame), the
generator's own truth about timing. Every video depends on (seed, split, index) alone.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from aart_lib.data.batch import BOX, dequantize, quantize
from aart_lib.data.records import encode_sequence_example, write_records
from aart_lib.runtime.files import beside, cache_folder, read_json, write_json

GENERATOR = 1  # raise it when the same settings give other bytes
SPLITS = ("train", "test")
PARTS = ("rgb", "audio")
NOTE = "generator.json"  # beside the shards: what they were generated with


@dataclass(frozen=True)
class Settings:
    """What the generator draws. Lengths in frames, strengths in feature units, pairs are (rgb, audio)."""

    seed: int = 0
    labels: int = 40  # the most frequent ones of YouTube-8M, at most 40
    rgb_dims: int = 256  # leading PCA dimensions
    audio_dims: int = 64
    train_videos: int = 3500
    test_videos: int = 1000
    shard_size: int = 500
    frames: tuple[int, int] = (16, 32)  # shortest and longest video
    max_labels: int = 6  # of one video
    offset_std: tuple[float, float] = (0.39, 0.50)  # between videos, shaped over dimensions as in genuine ones
    scene_std: tuple[float, float] = (0.60, 0.67)  # between the scenes of one video
    noise_std: tuple[float, float] = (0.63, 0.48)  # between the frames of one scene
    scene_frames: float = 6.5  # mean length of a scene, before events cut it
    durations: tuple = ((0.5, 1.0), (0.2, 0.5), (0.06, 0.19))  # visible share of the frames, by rank % 3
    gains: tuple = (1.0, 1.4, 2.6)  # the shorter visible, the stronger, by rank % 3
    strength: tuple[float, ...] = (5.1, 2.65)  # norm of a typical label pattern before its gain
    jitter: float = 0.52  # lognormal spread of the strength from event to event

    def __post_init__(self):
        for name, most in (("labels", 40), ("rgb_dims", 1024), ("audio_dims", 128)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be 1 to {most} (the facts hold no more), got {getattr(self, name)}")


_DEFAULT = Settings()
SETTINGS = {  # all but "default" are unseen variants, with patterns of their own: no method is tuned on them
    "default": _DEFAULT,
    "short": replace(_DEFAULT, seed=1, durations=((0.4, 0.8), (0.15, 0.4), (0.05, 0.15))),
    "long": replace(_DEFAULT, seed=2, durations=((0.7, 1.0), (0.3, 0.6), (0.1, 0.25))),
    "strong": replace(_DEFAULT, seed=3, strength=tuple(1.3 * s for s in _DEFAULT.strength)),
    "weak": replace(_DEFAULT, seed=4, strength=tuple(0.8 * s for s in _DEFAULT.strength)),
    # Four times as long, with as many frames of evidence: it is rarer.
    "rare": replace(_DEFAULT, seed=5, frames=(64, 128), durations=((0.12, 0.25), (0.05, 0.12), (0.015, 0.05))),
}


@dataclass(frozen=True)
class Video:
    """One generated video: stored bytes as in the files, and which label is visible when."""

    id: str
    labels: np.ndarray  # ascending label indices
    rgb: np.ndarray  # uint8 [T, rgb_dims]
    audio: np.ndarray  # uint8 [T, audio_dims]
    evidence: np.ndarray  # uint8 [T, C] of 0 and 1

    @property
    def frames(self) -> np.ndarray:
        """Features, float32 [T, D], rgb before audio."""
        return dequantize(np.concatenate([self.rgb, self.audio], axis=1))


@lru_cache(maxsize=1)
def facts() -> dict:
    """Statistics of genuine YouTube-8M videos, with their source, license and how each was computed."""
    return json.loads(Path(__file__).with_name("youtube8m_facts.json").read_text(encoding="utf-8"))


def names(settings: Settings) -> list[str]:
    """The label names in column order: the most frequent first."""
    return facts()["names"][: settings.labels]


def settings_hash(settings: Settings) -> str:
    """12 hexadecimal digits that change with any setting and with the generator's version."""
    return _hash(_about(settings))


def _about(settings: Settings) -> dict:
    return {"generator": GENERATOR} | asdict(settings)


def _hash(about: dict) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


# ---------------------------------------------------------------- what a label looks like


def _dims(settings: Settings) -> tuple[int, int]:
    return settings.rgb_dims, settings.audio_dims


def per_dim(settings: Settings, pair: tuple[float, float]) -> np.ndarray:
    """(rgb, audio) -> [D]"""
    return np.repeat(np.array(pair, float), _dims(settings))


@lru_cache(maxsize=8)
def spread(settings: Settings) -> np.ndarray:
    """[D] standard deviation of the video offset: the genuine shape over dimensions, scaled to offset_std."""
    shape = [np.array(facts()[f"{name}_std"][:dims]) for name, dims in zip(PARTS, _dims(settings), strict=True)]
    return np.concatenate([s / np.sqrt((s**2).mean()) for s in shape]) * per_dim(settings, settings.offset_std)


@lru_cache(maxsize=8)
def patterns(settings: Settings) -> np.ndarray:
    """What each label adds to the frames it is visible in: float64 [C, D], rgb before audio.

    Directions are independent: labels that come together already give the class means a spectrum that falls a
    little faster than the genuine one (shared factors on top would exaggerate it). The norm grows with the square
    root of the genuine offset norm (strong labels would leave the feature range otherwise) and with the gain.
    """
    rng = np.random.Generator(np.random.PCG64([settings.seed, len(SPLITS)]))
    count, cut = settings.labels, settings.rgb_dims
    table = rng.standard_normal((count, sum(_dims(settings))))
    gains = np.array([settings.gains[rank % 3] for rank in range(count)])
    for part, name, strength in zip((table[:, :cut], table[:, cut:]), PARTS, settings.strength, strict=True):
        norms = np.array(facts()[f"{name}_offset_norm"][:count])
        part *= (strength * gains * np.sqrt(norms / np.median(norms)) / np.sqrt((part**2).sum(1)))[:, None]
    return table.round(4)  # absorbs last-bit differences between processors


# ---------------------------------------------------------------- one video


def _draw_labels(rng: np.random.Generator, settings: Settings) -> np.ndarray:
    """A topic, then each label by itself; again until there is one to max_labels of them."""
    table = np.array(facts()["topics"])
    bounds = table[:, 0].cumsum()
    while True:
        topic = min(np.searchsorted(bounds, rng.random() * bounds[-1]), len(table) - 1)
        labels = np.flatnonzero(rng.random(settings.labels) < table[topic, 1 : settings.labels + 1])
        if 1 <= len(labels) <= settings.max_labels:
            return labels


def _draw_evidence(rng: np.random.Generator, settings: Settings, labels: np.ndarray, count: int) -> np.ndarray:
    """One uninterrupted event for each label: uint8 [T, C]."""
    evidence = np.zeros((count, settings.labels), np.uint8)
    for label in labels:
        low, high = settings.durations[label % 3]
        length = max(1, int(rng.uniform(low, high) * count))  # rounded down: never more than `high`
        start = rng.integers(count - length + 1)
        evidence[start : start + length, label] = 1
    return evidence


def _draw_scenes(rng: np.random.Generator, settings: Settings, evidence: np.ndarray) -> np.ndarray:
    """The scene each frame belongs to, int [T]; a cut wherever an event begins or ends."""
    cuts = rng.random(len(evidence)) < 1 / settings.scene_frames
    cuts[0] = False
    cuts[1:] |= (evidence[1:] != evidence[:-1]).any(1)
    return cuts.cumsum()


def generate(settings: Settings, split: str, index: int) -> Video:
    """Video number ``index`` of a split ("train" or "test"), by itself: always the same bytes.

    Only elementwise arithmetic on seeded draws, so that the bytes do not depend on threads or on the BLAS.
    """
    rng = np.random.Generator(np.random.PCG64([settings.seed, SPLITS.index(split), index]))
    labels = _draw_labels(rng, settings)
    count = int(rng.integers(settings.frames[0], settings.frames[1] + 1))
    evidence = _draw_evidence(rng, settings, labels, count)
    scenes = _draw_scenes(rng, settings, evidence)
    dims = sum(_dims(settings))
    frames = rng.standard_normal((count, dims)) * per_dim(settings, settings.noise_std)
    frames += (rng.standard_normal((scenes[-1] + 1, dims)) * per_dim(settings, settings.scene_std))[scenes]
    frames += rng.standard_normal(dims) * spread(settings)
    for label in labels:
        strength = np.exp(settings.jitter * rng.standard_normal())
        frames[evidence[:, label] == 1] += strength * patterns(settings)[label]
    # Clipped here, as genuine features were: `quantize` warns of a video that loses much by it.
    rgb, audio = np.split(quantize(np.clip(frames, *BOX)), [settings.rgb_dims], axis=1)
    return Video(f"{split}-{index:06d}", labels, rgb, audio, evidence)


# ---------------------------------------------------------------- files


def _shards(settings: Settings) -> Iterator[tuple[str, str, range]]:
    """(file name, split, indices of the videos) of every shard."""
    for split, videos in zip(SPLITS, (settings.train_videos, settings.test_videos), strict=True):
        starts = range(0, videos, settings.shard_size)
        for shard, start in enumerate(starts):
            name = f"{split}-{shard:05d}-of-{len(starts):05d}.tfrecord"
            yield name, split, range(start, min(start + settings.shard_size, videos))


def _encode(video: Video) -> bytes:
    lists = {"rgb": video.rgb, "audio": video.audio, "evidence": video.evidence}
    return encode_sequence_example({"id": video.id, "labels": video.labels}, lists)


def write(settings: Settings, folder) -> None:
    """Write both splits as TFRecord shards, and beside them what they were generated with.

    ``folder`` appears when all are complete, or not at all.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(folder)
    temporary.mkdir()
    total = settings.train_videos + settings.test_videos
    try:
        with tqdm(total=total, desc="generating the synthetic data", unit="video") as bar:
            for name, split, indices in _shards(settings):
                write_records(temporary / name, (_encode(generate(settings, split, index)) for index in indices))
                bar.update(len(indices))
        write_json(temporary / NOTE, _about(settings))
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def made_with(folder) -> str | None:
    """`settings_hash` of what a folder's shards were generated with, whatever it is called; None for other shards."""
    about = read_json(Path(folder) / NOTE)
    return _hash(about) if about else None


def ensure(settings: Settings = _DEFAULT) -> Path:
    """The folder with the shards of these settings: generated on first use, a few seconds, then reused.

    Two processes that start together both generate; the second finds the folder there and drops its own copy.
    """
    folder = cache_folder() / f"synthetic-{settings_hash(settings)}"
    if not folder.is_dir():
        try:
            write(settings, folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder
