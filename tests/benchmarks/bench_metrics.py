"""GAP@20 of a stream of batches against a plain loop, and scikit-learn where it means the same."""

import heapq
import tracemalloc
from collections.abc import Iterator
from functools import partial

import numpy as np
from bench import Settings, Stopwatch, in_turns, peer

from aart_lib.metrics import Accumulator

VIDEOS, CLASSES, TOP, BATCH = 50_000, 3862, 20, 1000


def batches(videos: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits float32 [n,C] and labels bool [n,C], about three a video, better ranked than chance.

    One block of numbers, rolled by another amount each time: drawing 200 million would take longer than any score.
    """
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((BATCH, CLASSES)).astype(np.float32)
    labels = rng.random((BATCH, CLASSES)) < 3 / CLASSES
    scores[labels] += 3
    for start in range(0, videos, BATCH):
        shift = 7 * start // BATCH
        count = min(BATCH, videos - start)
        yield np.roll(scores, shift, axis=1)[:count] + np.float32(1e-4 * shift), np.roll(labels, shift, axis=1)[:count]


class Loop:
    """GAP@20 as one writes it first: a heap for the best of a video, one loop over all of them, sorted."""

    def __init__(self):
        self.kept, self.positives = [], 0

    def update(self, scores, labels) -> None:
        for row, true in zip(scores.tolist(), labels.tolist(), strict=True):
            self.kept += heapq.nlargest(TOP, zip(row, (not hit for hit in true), strict=True))
            self.positives += sum(true)

    def gap(self) -> float:
        self.kept.sort(key=lambda pair: (-pair[0], not pair[1]))
        total = hits = 0.0
        for rank, (_, miss) in enumerate(self.kept, 1):
            if not miss:
                hits += 1
                total += hits / rank
        return total / max(1, self.positives)


class Sklearn(Loop):
    """The best of each video picked with numpy, pooled and scored by scikit-learn's average precision.

    It is GAP but for equal scores, which scikit-learn takes as one threshold.
    """

    def update(self, scores, labels) -> None:
        best = np.argpartition(scores, -TOP, axis=1)[:, -TOP:]
        self.kept.append((np.take_along_axis(scores, best, 1).ravel(), np.take_along_axis(labels, best, 1).ravel()))
        self.positives += int(labels.sum())

    def gap(self) -> float:
        from sklearn.metrics import average_precision_score

        scores, hits = (np.concatenate(parts) for parts in zip(*self.kept, strict=True))
        return float(average_precision_score(hits, scores)) * hits.sum() / max(1, self.positives)


def _run(make, videos: int) -> tuple[float, Stopwatch]:
    """GAP of the stream, and the time of the meter alone: making the batches is not charged."""
    meter, watch = make(), Stopwatch()
    for scores, labels in batches(videos):
        with watch:
            meter.update(scores, labels)
    with watch:
        return float(meter.gap()), watch


def _peak(videos: int) -> float:
    """MiB that we hold at most, one batch of input and the work on it included."""
    tracemalloc.start()
    _run(partial(Accumulator, TOP), videos)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def gap(settings: Settings) -> list[dict]:
    """Streaming GAP@20 over 50,000 videos and 3,862 labels."""
    videos = settings.size(VIDEOS, 2 * BATCH)
    what = f"GAP@20, {videos:,} videos x {CLASSES:,} labels, streaming"
    few, many = _peak(videos // 5), _peak(videos)
    memory = f"; at most {few:.0f} MiB for {videos // 5:,} videos, {many:.0f} MiB for {videos:,}"
    memory += f", whose scores are {videos * CLASSES * 4 / 2**20:,.0f} MiB"
    # the peer, the target, how far the two values may be apart, what else is said
    peers = {"heap and loop": (Loop, 20.0, 1e-12, memory)}
    if peer("sklearn"):
        peers["numpy + scikit-learn"] = Sklearn, None, 1e-6, ""
    meters = {"ours": partial(Accumulator, TOP)} | {name: meter for name, (meter, *_) in peers.items()}
    values = {name: _run(meter, videos)[0] for name, meter in meters.items()}
    jobs = {name: lambda meter=meter: _run(meter, videos)[1] for name, meter in meters.items()}
    times, entries = in_turns(jobs, settings.repeats), []
    for name, (_, target, within, more) in peers.items():
        apart = abs(values["ours"] - values[name])
        note = f"differs by {apart:.1g} (allowed {within:g}){more}"
        entries.append(times.entry("gap", what, "ours", name, target=target, holds=apart <= within, note=note))
    return entries
