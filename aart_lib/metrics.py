"""The scores of YouTube-8M: GAP@20, mAP, Hit@1 and PERR, exact, streaming, mergeable.

Every function takes scores and 0/1 labels, numpy or torch, [N,C] (videos, classes). The higher the
score, the surer the model; only the order of the scores matters, so logits and probabilities agree
as long as rounding makes no two of them equal.

Equal scores: the published code sorts them at random. Here the misses come first, then the lower
class index, so a result is the lowest the ties allow and depends neither on the order of the videos
nor on how they were split. A constant score earns almost nothing.

Source: github.com/google/youtube-8m, eval_util.py, {mean_,}average_precision_calculator.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 1024  # videos sorted at once: bounds the working memory, whatever the size of the input


def gap(scores, labels, top_k: int = 20) -> float:
    """Global average precision: the ``top_k`` best classes of every video, pooled and ranked by score.

    GAP = Σ precision@i · hit_i / P, where P counts *all* true labels, those outside the top included;
    0 without a true label. Scores are compared across videos: this is not scikit-learn's micro average.
    """
    return Accumulator(top_k).update(scores, labels).gap()


def mean_average_precision(scores, labels, top_k: int | None = 20) -> float:
    """Mean over the classes with a true label of their average precision over all videos.

    As published, it sees only the ``top_k`` best classes of a video; None looks at every score.
    NaN if no class has a true label.
    """
    if top_k is None:
        top_k = max((1, *np.shape(scores)))  # at least every class
    return Accumulator(top_k).update(scores, labels).mean_average_precision()


def hit_at_one(scores, labels) -> float:
    """Share of videos whose best class (the lowest index among equals) is true; no label is a miss."""
    return Accumulator(1).update(scores, labels).result()["hit1"]


def perr(scores, labels) -> float:
    """Mean precision among the n best classes of a video that has n true labels; 0 for n = 0.

    The published code drops scores ≤ 0, so it is meant for probabilities; this one only ranks.
    """
    return Accumulator(1).update(scores, labels).result()["perr"]


def average_precision_per_video(scores, labels, top_k: int = 20) -> np.ndarray:
    """Average precision of each video's own ranking, float64 [N] in [0,1]; 0 for a video without a label.

    Not a share of GAP, which also compares videos: it serves to pick the worst attack video by video.
    """
    _check_top_k(top_k)
    values = [np.zeros(0)]
    for block, true in checked_blocks(scores, labels):
        hits = np.take_along_axis(true, ranking(block, true, top_k), axis=1)  # [n,k]
        precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
        values.append((precision * hits).sum(1) / np.maximum(true.sum(1), 1))
    return np.concatenate(values)


class _Part(NamedTuple):
    """What is kept of some videos: n of them, their k best classes."""

    scores: np.ndarray  # [n,k] float64, the best first
    hits: np.ndarray  # [n,k] bool: true labels among them
    classes: np.ndarray  # [n,k]
    precision: np.ndarray  # [n] of PERR
    first: np.ndarray  # [n] bool: is the best class true?


class Accumulator:
    """All four scores of a stream of batches, in memory of ``top_k`` entries a video.

    Accumulators of parts of a data set merge into that of the whole, exactly and in any order.
    """

    def __init__(self, top_k: int = 20):
        _check_top_k(top_k)
        self.top_k = top_k
        self._positives: np.ndarray | None = None  # [C] true labels of each class
        self._parts: list[_Part] = []

    def update(self, scores, labels) -> Accumulator:
        """Add videos: scores and 0/1 labels [N,C]. Returns itself. Raises: ValueError, then nothing is added."""
        blocks = [_summarize(*block, self.top_k) for block in checked_blocks(scores, labels)]
        self._extend([part for part, _ in blocks], sum(p for _, p in blocks) if blocks else None)
        return self

    def merge(self, other: Accumulator) -> Accumulator:
        """Add the videos of another accumulator. Returns itself. Raises: ValueError if top_k or C differ."""
        if other.top_k != self.top_k:
            raise ValueError(f"merging needs the same top_k, got {self.top_k} and {other.top_k}; create both alike")
        self._extend(list(other._parts), other._positives)
        return self

    def result(self) -> dict[str, float]:
        """{"gap", "map", "hit1", "perr"}; NaN where undefined (no video, for mAP no true label)."""
        return {
            "gap": self.gap(),
            "map": self.mean_average_precision(),
            "hit1": self._mean("first"),
            "perr": self._mean("precision"),
        }

    def gap(self) -> float:
        """See the function of this name."""
        if self._positives is None:
            return math.nan
        scores, hits = self._pool("scores", "hits")
        ranked, good = np.sort(scores), np.sort(scores[hits])  # two sorts of values are faster than one of places
        found = np.arange(1, len(good) + 1)  # hits so far, the best first
        at_least = len(ranked) - np.searchsorted(ranked, good[::-1])  # entries no worse than each hit
        misses = at_least - (len(good) - np.searchsorted(good, good[::-1]))  # the equal ones come before it
        precisions = (found / (misses + found)).cumsum()[-1:].sum()
        return float(precisions / max(1, self._positives.sum()))

    def mean_average_precision(self) -> float:
        """See the function of this name, with this accumulator's top_k."""
        if self._positives is None or not self._positives.any():
            return math.nan
        scores, hits, classes = self._pool("scores", "hits", "classes")
        sums = precision_sums(scores, hits, classes, len(self._positives))
        return float((sums / np.maximum(self._positives, 1))[self._positives > 0].mean())

    def _extend(self, parts: list, positives) -> None:
        if positives is None:
            return
        if self._positives is not None and len(self._positives) != len(positives):
            sizes = f"{len(self._positives)} classes before, now {len(positives)}"
            raise ValueError(f"all batches need the same classes, got {sizes}; use one accumulator for each data set")
        self._parts += parts
        self._positives = positives if self._positives is None else self._positives + positives

    def _pool(self, *names: str) -> list[np.ndarray]:
        return [np.concatenate([getattr(part, name).ravel() for part in self._parts]) for name in names]

    def _mean(self, name: str) -> float:
        values = [value for part in self._parts for value in getattr(part, name).tolist()]
        return math.fsum(values) / len(values) if values else math.nan  # fsum: the same in any order


def _summarize(scores: np.ndarray, true: np.ndarray, top_k: int) -> tuple[_Part, np.ndarray]:
    """What an accumulator keeps of a block, and the true labels of each class, [C].

    True labels are rare: found once, they are counted by row and by column.
    """
    rows, classes = np.divmod(np.flatnonzero(true), true.shape[1])
    count, positives = np.bincount(rows, minlength=len(true)), np.bincount(classes, minlength=true.shape[1])
    ranked = ranking(scores, true, max(top_k, int(count.max())))
    hits = np.take_along_axis(true, ranked, axis=1)
    found = np.take_along_axis(hits.cumsum(1), np.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    precision = found / np.maximum(count, 1)  # without a label nothing is found
    first = true[np.arange(len(true)), scores.argmax(1)]
    top = ranked[:, :top_k].astype(np.int32)
    top_scores = np.take_along_axis(scores, top, axis=1).astype(np.float64)
    return _Part(top_scores, hits[:, :top_k].copy(), top, precision, first), positives


def ranking(scores: np.ndarray, true: np.ndarray, k: int) -> np.ndarray:
    """Classes [n,k] of the k highest scores, best first; equal scores: misses first, then the lower class."""
    k = min(k, scores.shape[1])
    lowest = np.partition(scores, -k, axis=1)[:, -k, None]  # faster than argpartition, and the rows come out sorted
    rows, found = np.divmod(np.flatnonzero(scores >= lowest), scores.shape[1])
    tied = np.bincount(rows) > k  # more than k are found: some equal the lowest
    columns = np.empty((len(scores), k), np.int64)
    columns[~tied] = found[~tied[rows]].reshape(-1, k)
    if tied.any():
        at_edge = np.where(scores[tied] == lowest[tied], 1 + true[tied], 3)
        priority = np.where(scores[tied] > lowest[tied], 0, at_edge).astype(np.int8)
        columns[tied] = np.sort(priority.argsort(axis=1, kind="stable")[:, :k], axis=1)
    order = np.lexsort((np.take_along_axis(true, columns, 1), -np.take_along_axis(scores, columns, 1)), axis=1)
    return np.take_along_axis(columns, order, 1)


def precision_sums(scores: np.ndarray, hits: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Σ precision@i · hit_i of each of ``count`` groups of entries (float64 [count]); misses first among equals."""
    order = np.lexsort((hits, -scores, groups))
    hits, groups = hits[order], groups[order]
    start = np.searchsorted(groups, np.arange(count + 1))  # first entry of each group
    before = np.concatenate([[0], hits.cumsum()])  # hits ahead of each entry
    rank = np.arange(1, len(hits) + 1) - start[groups]
    precision = (before[1:] - before[start[groups]]) / rank
    return np.bincount(groups, precision * hits, count)


def checked_blocks(scores, labels) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Checked blocks of rows: floating scores and boolean labels, [n,C] each. Raises: ValueError."""
    scores, labels = (x if hasattr(x, "detach") else np.asarray(x) for x in (scores, labels))
    if len(scores.shape) != 2 or tuple(scores.shape) != tuple(labels.shape) or scores.shape[1] == 0:
        shapes = f"{tuple(scores.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"scores and labels must both be [N,C], got {shapes}; pass videos as rows, classes as columns")
    for start in range(0, len(scores), BLOCK):
        block, true = (_to_numpy(x[start : start + BLOCK]) for x in (scores, labels))
        block = block if block.dtype.kind == "f" else block.astype(np.float64)
        if np.isnan(block).any():
            bad = start + int(np.isnan(block).any(1).argmax())
            raise ValueError(f"scores must be numbers, got NaN in row {bad}; look for a diverged model or attack")
        hot = true.astype(bool, copy=False)
        if hot is not true and (hot != true).any():
            bad = true[hot != true][0]
            raise ValueError(f"labels must be 0 or 1, got {bad}; pass multi-hot labels, scores first and labels second")
        yield block, hot


def _to_numpy(array) -> np.ndarray:
    if not hasattr(array, "detach"):
        return array
    array = array.detach().cpu()
    if array.is_floating_point() and array.itemsize < 4:
        array = array.float()  # numpy has no bfloat16
    return array.numpy()


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}; YouTube-8M uses 20")
