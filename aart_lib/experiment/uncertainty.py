"""How sure a GAP@20 is: bootstrap over videos and training seeds, paired differences, Holm's correction.

GAP pools the entries of all videos, so it is no mean over videos and has no textbook standard error. The bootstrap
asks instead how the whole score moves when other videos and other seeds had been drawn from the same source.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval) and section 15.4
(its p value); Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979) 65-70.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from aart_lib.metrics import checked_blocks, precision_sums, ranking

TOP_K = 20  # of YouTube-8M
ENTRIES = 2**20  # resampled at once: bounds the working memory at some 50 MB, and mostly stays in the cache


class Judged(NamedTuple):
    """What GAP@20 needs to know of N videos and a model's answers; k is 20, or C where there are fewer classes."""

    scores: np.ndarray  # floating [N,k], the highest scores of each video, best first
    hits: np.ndarray  # bool [N,k], whether the class with that score is true
    positives: np.ndarray  # int64 [N], all true labels of the video, those outside the top 20 too


class Difference(NamedTuple):
    """How much higher one model's GAP is, as a share of 1: 0.01 is one point of GAP in percent."""

    mean: float  # mean over the seeds, nothing resampled
    ci95: tuple[float, float]  # 95% percentile interval
    p: float  # two-sided, of no difference


def judged(scores, labels) -> Judged:
    """Keep what GAP@20 needs of scores and 0/1 labels [N,C], numpy or torch.

    Raises: ValueError for what ``metrics.gap`` refuses, and without a video.
    """
    parts = []
    for block, true in checked_blocks(scores, labels):
        top = ranking(block, true, TOP_K)
        parts.append((*(np.take_along_axis(x, top, axis=1) for x in (block, true)), true.sum(1)))
    if not parts:
        raise ValueError("judging needs at least one video, got none; pass scores and labels with a row per video")
    return Judged(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def gap_of(judged: Judged) -> float:
    """GAP@20 in [0,1], equal to ``metrics.gap`` of the scores and labels it was made of, with ties too."""
    hits = judged.hits.ravel()
    precisions = precision_sums(judged.scores.ravel(), hits, np.zeros(hits.size, np.int64), 1)[0]
    return float(precisions / max(1, judged.positives.sum()))


def resampled_gap(judged: Judged, counts: np.ndarray) -> np.ndarray:
    """GAP@20 of R samples in which video n occurs ``counts[r,n]`` times: integers [R,N] to float64 [R] in [0,1].

    Exactly ``metrics.gap`` of the repeated videos, without repeating or sorting them again: w copies of a hit that
    follow K entries, M of them misses, add Σ_{j=1..w} (K - M + j) / (K + j) = w - M · (h(K + w) - h(K)), where h(n)
    is the n-th harmonic number. A sample without a true label has GAP 0.
    """
    width = judged.hits.shape[1]
    order = np.lexsort((judged.hits.ravel(), -judged.scores.ravel()))  # misses first among equals, as in metrics
    video, places = order // width, np.flatnonzero(judged.hits.ravel()[order])
    longest = int(counts.sum(1).max(initial=0)) * width
    harmonic = np.concatenate([[0.0], (1 / np.arange(1, longest + 1)).cumsum()])
    sums, step = np.zeros(len(counts)), max(1, ENTRIES // len(order))
    for start in range(0, len(counts), step):
        copies = counts[start : start + step][:, video]  # [r,Nk]
        rank = copies.cumsum(1)[:, places]  # of the last copy of each hit
        copies = copies[:, places]
        misses = rank - copies.cumsum(1)
        sums[start : start + step] = (copies - misses * (harmonic[rank] - harmonic[rank - copies])).sum(1)
    return sums / np.maximum(1, counts @ judged.positives)


def paired_bootstrap(ours: Sequence[Judged], theirs: Sequence[Judged], *, draws=2000, seed=0) -> Difference:
    """Mean over the training seeds of GAP(ours) - GAP(theirs), with interval and p value from ``draws`` resamples.

    Each list holds one Judged a seed, in the same order, all of the same videos. A draw takes seeds and, apart from
    them, videos with replacement, the same for both models: what they have in common cancels out. One seed says
    nothing about other seeds: then only videos are drawn. Few seeds say little: S of them show (S-1)/S of the
    variance between seeds. p = 2 · min(share of draws ≤ 0, share ≥ 0), both counted with the observation itself as
    one more draw, so it lies between 2 / (draws + 1) and 1. Time and memory grow with draws · N.
    Raises: ValueError if the models have other seeds or were judged on other videos.
    """
    for our, their in zip(ours, theirs, strict=True):
        if not np.array_equal(our.positives, their.positives):  # a video has its labels, whatever the model
            raise ValueError("both models must be judged on the same videos in the same order; judge them alike")
    mean = float(np.mean([gap_of(our) - gap_of(their) for our, their in zip(ours, theirs, strict=True)]))
    values = _draw(ours, draws, seed) - _draw(theirs, draws, seed)
    rarer = min((values <= 0).sum(), (values >= 0).sum())
    return Difference(mean, _percentiles(values), min(1.0, float(2 * (rarer + 1) / (draws + 1))))


def interval(runs: Sequence[Judged], *, draws=2000, seed=0) -> tuple[float, tuple[float, float]]:
    """Mean GAP@20 over the training seeds in [0,1] and its 95% interval (low, high), drawn as in paired_bootstrap.

    Two models are not compared by whether their intervals overlap: that forgets what the videos have in common.
    """
    return float(np.mean([gap_of(run) for run in runs])), _percentiles(_draw(runs, draws, seed))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values: those ≤ α may be rejected together, with a chance ≤ α of even one false rejection.

    Names and their order stay. The i-th smallest of m values, i from 0, is multiplied by m - i, is at least the one
    before and at most 1. The tests may depend on each other.
    """
    adjusted, largest = {}, 0.0
    for i, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def _draw(runs: Sequence[Judged], draws: int, seed: int) -> np.ndarray:
    """Mean GAP of each draw, float64 [draws]; equal seeds, sizes and draws resample alike, which pairs two models."""
    rng = np.random.default_rng(seed)
    shares, counts = (rng.multinomial(n, np.full(n, 1 / n), size=draws) for n in (len(runs), len(runs[0].positives)))
    return sum(shares[:, s] * resampled_gap(run, counts) for s, run in enumerate(runs)) / len(runs)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high
