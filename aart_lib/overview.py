"""A data set in a few lines of text: what `describe` prints."""

import math
from collections import Counter

import numpy as np

from aart_lib import synthetic
from aart_lib.presets import PRESETS, open_data


def describe(name: str, data_dir=None, *, labels: int | None = None, preset=PRESETS["small"], videos: int = 500) -> str:
    """Statistics of a data set as text; the synthetic one stands beside genuine YouTube-8M figures."""
    splits = open_data(name, data_dir, labels=labels, preset=preset)
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
    found = synthetic.statistics([item.frames.numpy() for item in items], dims, window=window)
    genuine = synthetic.facts()["frame_level"]["windows"]
    lines.append(
        f"frame statistics of {len(items)} test videos, in windows of {window} frames; genuine: one video, n = 1"
    )
    for part, here in found.items():
        if isinstance(here, dict):
            lines += _beside(part, here, genuine.get(part) if name != "audioset" else None)
    if items[0].evidence is not None:
        pairs = [(i.evidence, c) for i in items if i.evidence is not None for c in np.flatnonzero(i.labels.numpy())]
        shares = [float(evidence[:, c].float().mean()) for evidence, c in pairs]
        brief = sum(share < 0.2 for share in shares) / len(shares)
        lines.append(
            f"evidence: a label is visible in {np.mean(shares):.0%} of the frames; {brief:.0%} of them in under a fifth"
        )
    return "\n".join(lines)


def _beside(part: str, here: dict, genuine: dict | None) -> list[str]:
    lines = [f"  {part:16} {'here':>8} {'genuine':>8}"]
    for key, value in here.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for lag, number in pairs:
            other = (genuine or {}).get(key, math.nan)
            other = other.get(lag, math.nan) if isinstance(other, dict) else other
            shown = "–" if math.isnan(other) else f"{other:.3f}"
            lines.append(f"    {key + (' lag ' + lag if lag else ''):20} {number:>8.3f} {shown:>8}")
    return lines
