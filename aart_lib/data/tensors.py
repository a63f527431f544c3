"""Somebody's own features, held in memory: no files, no bytes, any range. See `VideoDataset.from_tensors`."""

import hashlib
from dataclasses import replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aart_lib.data.formats import DatasetSpec
from aart_lib.data.index import LONGEST_ID, Entries, Entry


class Given(NamedTuple):
    """Videos one behind the other, an entry names its first row and its number of frames."""

    spec: DatasetSpec
    entries: Entries
    frames: Tensor  # [R,D], of the width they came in
    evidence: np.ndarray | None  # bool [R,C]

    def rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Frames, float32, and their evidence or None: new arrays."""
        return self.frames[rows].float().numpy(), None if self.evidence is None else self.evidence[rows]


def given(frames, labels, *, ids=None, evidence=None, mask=None, name="tensors") -> Given:
    """The arguments of `VideoDataset.from_tensors`, checked. Raises: ValueError."""
    real = _real(frames, mask)
    tables = _tables(frames, "frames", real)
    table, sizes, names = torch.cat(tables), [len(part) for part in tables], _names(ids, len(tables))
    low, high = _range(table, sizes, names)
    shown, classes = _labels(labels, len(sizes))
    marked = None if evidence is None else _evidence(evidence, real, sizes, classes)
    first = np.cumsum([0, *sizes])
    entries = [Entry(name, int(first[i]), names[i], shown[i], 0, sizes[i]) for i in range(len(sizes))]
    digest = hashlib.sha256(repr((sizes, table.dtype)).encode())
    digest.update(table.contiguous().view(torch.uint8).numpy().data)
    dims, box = (table.shape[1], table.shape[1]), (low, high) if low < high else None
    spec = DatasetSpec(name, {"frames": dims}, classes, (), (), max(sizes), evidence=marked is not None, box=box)
    epsilon = 2.5 / 255 * (high - low) or spec.epsilon  # the share of the range that stored features begin with
    spec = replace(spec, epsilon=epsilon, content=digest.hexdigest()[:16])
    return Given(spec, Entries.of(entries), table, marked)


def _listed(value) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "dtype", None) is np.dtype(object)


def _tables(value, what: str, real: Tensor | None) -> list[Tensor]:
    """A table [T,·] a video, real rows alone, all of one width and dtype. Raises: ValueError."""
    if _listed(value):
        tables = [_tensor(part, f"{what}[{i}]") for i, part in enumerate(value)]
    elif getattr(value, "ndim", 0) == 3:
        tables = list(_tensor(value, what))
        tables = tables if real is None else [part[rows] for part, rows in zip(tables, real, strict=True)]
    else:
        got = f"shape {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise ValueError(f"{what} must be [N,T,·] or a list of tables [T,·], got {got}")
    if not tables:
        raise ValueError(f"{what} must hold at least one video, got none")
    for i, part in enumerate(tables):
        width, dtype = tables[0].shape[-1:], tables[0].dtype
        if part.ndim != 2 or part.shape[1:] != width or part.dtype != dtype:
            got = f"they are {list(tables[0].shape)} {dtype} and {list(part.shape)} {part.dtype}"
            raise ValueError(f"{what}[{i}] must be a table [T,·] as {what}[0], with the same width and dtype; {got}")
    return tables


def _tensor(value, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be a tensor or an array of numbers with equal rows") from None


def _real(frames, mask) -> Tensor | None:
    """Which frames of [N,T,D] are real, bool [N,T]; None = all. Raises: ValueError."""
    if mask is None:
        return None
    if _listed(frames):
        raise ValueError("mask goes with frames [N,T,D]: tables have their own lengths")
    real, shape = _tensor(mask, "mask"), tuple(frames.shape[:2])
    if real.dtype != torch.bool or tuple(real.shape) != shape:
        got = f"{real.dtype} {list(real.shape)}"
        raise ValueError(f"mask must be bool [N,T]={list(shape)}, True = real frame, got {got}")
    return real


def _names(ids, count: int) -> list[str]:
    names = [str(i) for i in range(count)] if ids is None else list(ids)
    if len(names) != count:
        raise ValueError(f"ids must name each of the {count} videos, got {len(names)}")
    for name in names:
        text = name.encode("utf-8", "replace") if isinstance(name, str) else b""
        if not 0 < len(text) <= LONGEST_ID or text.decode() != name or "\0" in name:
            raise ValueError(f"ids must be Unicode texts of 1 to {LONGEST_ID} bytes, got {name!r:.60}")
    return names


def _range(table: Tensor, sizes: list[int], names: list[str]) -> tuple[float, float]:
    """Lowest and highest feature. Raises: ValueError for frames that no model can be given."""
    if not table.is_floating_point():
        raise ValueError(f"frames must be floats, got {table.dtype}; dequantize stored bytes, divide pixels by 255")
    if 0 in sizes:
        raise ValueError(f"video {names[sizes.index(0)]!r} has no frame; leave it out")
    if not table.shape[1]:
        raise ValueError("frames must have at least one number each, got none")
    low, high = float(table.min()), float(table.max())
    if not max(-low, high) <= torch.finfo(torch.float32).max:  # NaN too
        bad = int((~table.float().isfinite()).any(1).nonzero()[0])
        video = np.searchsorted(np.cumsum(sizes), bad, "right")
        raise ValueError(f"video {names[video]!r} holds NaN, infinity or a number beyond float32; leave it out")
    return low, high


def _labels(labels, count: int) -> tuple[list[tuple[int, ...]], int]:
    """The ascending class indices of each video, and the number of classes. Raises: ValueError."""
    labels = labels if hasattr(labels, "shape") else list(labels)
    if len(labels) != count:
        raise ValueError(f"labels must have a row for each of the {count} videos, got {len(labels)}")
    if isinstance(labels, list) and all(hasattr(row, "shape") for row in labels):
        labels = torch.stack([_tensor(row, "labels") for row in labels])
    if len(getattr(labels, "shape", ())) != 2 or not labels.shape[1]:
        raise ValueError("labels must be [N,C] of 0 and 1; of class indices torch.nn.functional.one_hot makes them")
    hot = _hot(labels, "labels")
    return [tuple(row.nonzero()[0].tolist()) for row in hot], hot.shape[1]


def _hot(values, what: str) -> np.ndarray:
    """0 and 1 as bool. Raises: ValueError."""
    values = _tensor(values, what)
    values = values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    if strange := set(values[(values != 0) & (values != 1)].tolist()[:1]):
        raise ValueError(f"{what} must be 0 or 1, got {strange.pop()}; threshold soft ones")
    return values == 1


def _evidence(evidence, real, sizes: list[int], classes: int) -> np.ndarray:
    tables = _tables(evidence, "evidence", real)
    for i, (expected, got) in enumerate(zip_longest(((size, classes) for size in sizes), (t.shape for t in tables))):
        if expected != got:
            raise ValueError(f"evidence[{i}] must be [T,C]={expected}, as frames are, got {got and tuple(got)}")
    return _hot(torch.cat(tables), "evidence")
