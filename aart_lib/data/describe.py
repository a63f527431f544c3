"""A data set in a few lines of text: what `describe` prints."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from aart_lib.data import synthetic
from aart_lib.data.batch import quantize
from aart_lib.data.catalog import open_data


def describe(name: str, data_dir=None, *, labels: int | str | None = None, videos: int = 500, **options) -> str:
    """Statistics of a data set as text; the synthetic one stands beside genuine YouTube-8M figures.

    options: dims, max_frames and skipped, as in `open_data`.
    """
    splits = open_data(name, data_dir, labels=labels, **options)
    sizes = f"{len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test videos"
    left_out = splits.train.left_out + splits.test.left_out
    counts = Counter(min(len(set(entry.labels) & set(splits.labels)), 6) for entry in splits.train.entries)
    total = sum(counts.values())
    lines = [
        f"{name}: {sizes}, {len(splits.labels)} labels, {splits.spec.dims} numbers a frame; {left_out} left out",
        "labels a video: " + ", ".join(f"{k}{'+' if k == 6 else ''}: {counts[k] / total:.1%}" for k in sorted(counts)),
    ]
    if splits.spec.name == "synthetic":
        lines.insert(0, "Generated data that stands in for YouTube-8M, calibrated on facts about genuine videos.")
    if splits.spec.video_level:
        return "\n".join(lines)
    items = [splits.test[i] for i in range(min(videos, len(splits.test)))]
    dims = {key: used for key, (_, used) in splits.spec.features.items()}
    window = min(24, max(len(item.frames) for item in items))
    found = statistics([item.frames.numpy() for item in items], dims, window=window)
    genuine = {} if name in ("audioset", "films") else synthetic.facts()["frame_level"]["windows"]
    about = f"{len(items)} test videos, in windows of {window} frames; genuine: one video, n = 1"
    lines.append(f"frame statistics of {about}")
    for part, here in found.items():
        lines += _beside(part, _flat(here), _flat(genuine.get(part, {})))
    if items[0].evidence is not None:
        pairs = [(i.evidence, c) for i in items if i.evidence is not None for c in np.flatnonzero(i.labels.numpy())]
        shares = [float(evidence[:, c].float().mean()) for evidence, c in pairs]
        brief = sum(share < 0.2 for share in shares) / len(shares)
        visible = f"a label is visible in {np.mean(shares):.0%} of the frames"
        lines.append(f"evidence: {visible}; {brief:.0%} of them in under a fifth")
    return "\n".join(lines)


def _flat(numbers: dict) -> dict[str, float]:
    """The numbers of a part by name, autocorrelations by name and lag."""
    named = {key: value for key, value in numbers.items() if isinstance(value, float)}
    return named | {f"autocorrelation lag {lag}": r for lag, r in numbers.get("autocorrelation", {}).items()}


def _beside(part: str, here: dict[str, float], genuine: dict[str, float]) -> list[str]:
    lines = [f"  {part:16} {'here':>8} {'genuine':>8}"]
    for name, number in here.items():
        shown = f"{genuine[name]:.3f}" if name in genuine else "–"
        lines.append(f"    {name:20} {number:>8.3f} {shown:>8}")
    return lines


def statistics(frames: Iterable, dims: dict, *, window: int = 24) -> dict:
    """How features vary in time, computed as the genuine facts were: compare with facts()["frame_level"]["windows"].

    Arguments: ``frames``, features [T, D] of each video; ``dims``, how D divides, e.g. {"rgb": 256, "audio": 64};
    ``window`` in frames: videos are cut into windows of one length, since removing the mean biases an autocorrelation
    downward, the more the shorter; the rest is left out, and all windows are held in memory: a few hundred videos are
    enough.
    Returns: for each of ``dims`` std, within (root mean square around the window's mean), autocorrelation by lag,
    and the shares of values at either end.
    Raises: ValueError if no video has ``window`` frames.
    """
    cut = [np.asarray(video)[s : s + window] for video in frames for s in range(0, len(video) - window + 1, window)]
    if not cut:
        raise ValueError(f"no video has {window} frames, so there is no window to measure; pass a smaller window")
    parts = np.split(np.stack(cut).astype(np.float64), np.cumsum(list(dims.values()))[:-1], axis=2)
    return {name: _temporal(part) for name, part in zip(dims, parts, strict=True)}


def _temporal(windows: np.ndarray) -> dict:
    """Of windows [N, T, D]."""
    around = windows - windows.mean(1, keepdims=True)
    power = (around**2).mean()
    lags = [lag for lag in (1, 2, 5, 10) if lag < windows.shape[1]]
    stored = quantize(windows)
    return {
        "std": float(windows.std()),
        "within": float(np.sqrt(power)),
        "autocorrelation": {str(lag): float((around[:, :-lag] * around[:, lag:]).mean() / power) for lag in lags},
        "byte_0": float((stored == 0).mean()),
        "byte_255": float((stored == 255).mean()),
    }
