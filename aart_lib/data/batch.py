"""What models and attacks are given: one video, videos side by side, and how stored bytes become their features.

Source: github.com/google/youtube-8m, utils.Dequantize.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import attrgetter, itemgetter

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info

LEVEL = 4 / 255  # one byte step of the stored features: the unit in which ε is spoken of
BOX = (4 / 512 - 2, 255 * LEVEL + 4 / 512 - 2)  # the values a stored feature can have: [-1.992, 2.008]
PIECE = 2**16  # numbers that are dequantized at once


@dataclass(frozen=True)
class Item:
    """One video."""

    frames: Tensor  # [T,D] float32
    labels: Tensor  # [C] float32, multi-hot
    id: str
    evidence: Tensor | None = None  # [T,C] bool: frames that show a label
    pictures: list[bytes] | None = None  # T JPEGs: what the frames look like


@dataclass(frozen=True)
class Batch:
    """Videos side by side, padded to the longest.

    ``frames`` are given as floats or as stored bytes, which take a quarter of the room on the way to a device. Asked
    for, they are float32 with zeros as padding: `features` makes them where the batch lies, once. ``stored`` are the
    frames as they were given.
    """

    frames: Tensor  # [B,T,D] float32
    mask: Tensor  # [B,T] bool, True = real frame
    labels: Tensor  # [B,C] float32, multi-hot
    ids: tuple[str, ...]
    evidence: Tensor | None = None  # [B,T,C] bool
    pictures: tuple[list[bytes] | None, ...] | None = None  # of B videos
    stored: Tensor = field(init=False, repr=False, compare=False)  # [B,T,D] uint8 or floats

    @cached_property
    def floats(self) -> Tensor:
        return features(self.stored, self.mask)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        """Some of the videos, as padded as before."""
        places = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        pictures = tuple(self.pictures[i] for i in places) if self.pictures else None
        return self._each(itemgetter(rows), ids=tuple(self.ids[i] for i in places), pictures=pictures)

    def trimmed(self) -> "Batch":
        """The same videos without the padding that none of them needs."""
        longest = int(self.mask.sum(1).max())
        evidence = None if self.evidence is None else self.evidence[:, :longest]
        frames = self.stored[:, :longest].contiguous()  # products of strided frames end in other last digits
        return replace(self, frames=frames, mask=self.mask[:, :longest], evidence=evidence)

    def to(self, device) -> "Batch":
        return self._each(partial(Tensor.to, device=device))

    def pin_memory(self) -> "Batch":
        """What torch's loader asks for where ``pin_memory=True``."""
        return self._each(Tensor.pin_memory)

    def __getstate__(self) -> dict:
        state = {key: value for key, value in vars(self).items() if key != "floats"}
        if get_worker_info() is None:
            return state
        # A reader process sends what is not in shared memory as bytes: torch would share it, an open file a tensor.
        bare = (key for key, value in state.items() if isinstance(value, Tensor) and not value.is_shared())
        return state | {key: state[key].numpy() for key in bare}

    def __setstate__(self, state: dict) -> None:
        vars(self).update({key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in state.items()})

    def _each(self, change: Callable, **more) -> "Batch":
        """Every tensor changed, the frames as they are stored."""
        tensors = {"frames": self.stored, "mask": self.mask, "labels": self.labels, "evidence": self.evidence}
        return replace(self, **{name: change(t) for name, t in tensors.items() if t is not None}, **more)


def _keep(batch: Batch, frames: Tensor) -> None:
    vars(batch)["stored"] = frames


# type: a field whose value is given in one form and read in another
Batch.frames = property(attrgetter("floats"), _keep)  # type: ignore[assignment]


def collate(items: Sequence[Item]) -> Batch:
    """A `Batch` of videos of any lengths; evidence only if all have it. Serves torch's loader as ``collate_fn``.

    Raises: ValueError without a video.
    """
    if not items:
        raise ValueError("a batch needs at least one video, got none")
    lengths = torch.tensor([len(item.frames) for item in items])
    if not lengths.all():
        raise ValueError(f"video {items[int((lengths == 0).nonzero()[0])].id!r} has no frame; leave it out")
    shown = [item.evidence for item in items if item.evidence is not None]
    return Batch(
        frames=pad_sequence([item.frames for item in items], batch_first=True),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        labels=torch.stack([item.labels for item in items]),
        ids=tuple(item.id for item in items),
        evidence=pad_sequence(shown, batch_first=True) if len(shown) == len(items) else None,
        pictures=tuple(item.pictures for item in items) if any(item.pictures for item in items) else None,
    )


def features(stored: Tensor, mask: Tensor) -> Tensor:
    """Frames [B,T,D] as a model takes them: of bytes float32 on their device, exactly zero where ``mask`` is False.

    Floats are features already and stay as they are.
    """
    if stored.dtype != torch.uint8:
        return stored
    with torch.inference_mode(False):  # a batch first seen by a judge may be trained on later
        if stored.device.type != "cpu":
            return stored.float().mul_(LEVEL).add_(BOX[0]).masked_fill_(~mask[..., None], 0)
        return torch.from_numpy(_features(stored.numpy(), mask.numpy()))


def _features(stored: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """On the processor, as many threads as torch has side by side, in pieces that stay in a core's cache."""
    found = np.empty(stored.shape, np.float32)  # numpy asks for huge pages: three times as fast to fill
    rows = max(1, PIECE // max(1, stored.shape[2]))

    def fill(video: int) -> None:
        for start in range(0, stored.shape[1], rows):
            piece = slice(start, start + rows)
            dequantize(stored[video, piece], out=found[video, piece])
        found[video][~mask[video]] = 0

    threads = min(torch.get_num_threads(), stored.size // (8 * PIECE))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(len(stored))))
    else:
        for video in range(len(stored)):
            fill(video)
    return found


def dequantize(stored: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Bytes as float32 features in `BOX`, written to ``out`` if given. Raises: ValueError for anything but uint8.

    Source: google/youtube-8m, utils.Dequantize.
    """
    stored = np.asarray(stored)
    if stored.dtype != np.uint8:
        raise ValueError(f"dequantize takes bytes, uint8, got {stored.dtype}; features are floats and stay as they are")
    features = np.empty(stored.shape, np.float32) if out is None else out
    features[...] = stored  # three plain passes are faster than two that convert on the way
    features *= np.float32(LEVEL)
    features += np.float32(BOX[0])
    return features


def quantize(features: np.ndarray) -> np.ndarray:
    """Features as the nearest bytes, values outside `BOX` clipped: the inverse of `dequantize`.

    For features of about unit variance: of N(0,1) a twentieth is clipped. Warns if it is over a quarter: features of
    another range want another scale, or `VideoDataset.from_tensors`, which stores them as they are.
    Raises: ValueError for NaN, infinity and what is no feature, such as bytes.
    """
    values = np.asarray(features)
    if values.dtype.kind not in "fi" or not np.isfinite(values).all():
        got = "NaN or infinity" if values.dtype.kind == "f" else str(values.dtype)
        raise ValueError(f"quantize takes finite features, got {got}")
    values = values.astype(np.float32) if values.dtype == np.float16 else values
    levels = np.rint((values - BOX[0]) / LEVEL)
    stored = np.clip(levels, 0, 255)
    if (lost := float((levels != stored).mean())) > 0.25:
        warnings.warn(
            f"{lost:.0%} of the features lie outside {BOX[0]:.4g} to {BOX[1]:.4g} and are cut off (they go from "
            f"{values.min():.4g} to {values.max():.4g}); scale them, or use VideoDataset.from_tensors",
            stacklevel=2,
        )
    return stored.astype(np.uint8)


@dataclass
class Part:
    """A generator for some of the videos of a batch: they get the numbers that they get within the whole batch.

    So it changes nothing how a batch is cut: each draw is made once, for all its videos, and every part takes its rows.
    """

    generator: torch.Generator
    videos: int  # in the whole batch
    frames: int  # of its longest video
    first: int = 0  # place of this part's first video
    made: list[torch.Tensor] = field(default_factory=list)  # the draws so far, which all parts of the batch share
    taken: int = 0  # of them, by this part

    def at(self, first: int) -> "Part":
        """Another part of the same batch."""
        return replace(self, first=first, taken=0)

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        if self.taken == len(self.made):
            self.made.append(drawn((self.videos, self.frames, *shape[2:]), self.generator))
        self.taken += 1
        return self.made[self.taken - 1][self.first : self.first + shape[0], : shape[1]]


def drawn(shape: Sequence[int], generator: torch.Generator | Part | None) -> torch.Tensor:
    """Uniform numbers in [0,1) of a shape [B,T,...], on the generator's device."""
    if isinstance(generator, Part):
        return generator.draw(shape)
    return torch.rand(tuple(shape), generator=generator, device=generator.device if generator else "cpu")
