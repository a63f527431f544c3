"""A film as one sees it: its pictures in a row, and how much attention each gets, before and under attack."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from aart_lib.data.pictures import from_jpeg
from aart_lib.viz import style

MOST = 24  # pictures of a row; of longer films every second, third, ... is shown
FEATURE_MAP = "PRGn"


@style.styled
def plot_film(
    pictures: Sequence,
    attention: Mapping,
    *,
    said: Mapping[str, str] | None = None,
    evidence=None,
    attacked_frames=None,
    attacked_pictures: Sequence | None = None,
    title: str = "",
) -> Figure:
    """Attention bars over the pictures of one film, clean above attacked.

    Args:
        pictures: T pictures, JPEGs or uint8 [H,W,3].
        attention: {"clean": [T], "attacked": [T]} or one of them: shares of the attention.
        said: {"clean", "attacked"}: what the model says, a line above each row.
        evidence: [T] bool, frames that show a label: a dark bar under them.
        attacked_frames: [T] bool or indices of the frames an attack touched, framed in red; None draws no marks.
        attacked_pictures: T pictures for the row under attack, where pixels were changed.
    """
    fig = style.new_figure(title, 0.5 + 2.1 * len(attention))
    axes = fig.subplots(2 * len(attention), 1, height_ratios=[1.5, 1] * len(attention))
    top = 1.1 * max(float(np.max(line)) for line in attention.values())
    for above, below, (key, line) in zip(axes[::2], axes[1::2], attention.items(), strict=True):
        attacked = key == "attacked"
        above.bar(range(len(line)), line, 0.85, **(style.HATCHED if attacked else {"color": style.CLEAN}))
        above.set(xlim=(-0.5, len(line) - 0.5), ylim=(0, top), xticks=[], ylabel="attention")
        above.set_title(f"{key}: {said[key]}" if said else key)
        shown = attacked_pictures if attacked and attacked_pictures is not None else pictures
        draw_pictures(below, shown, attacked_frames if attacked else None, evidence)
    return fig


def draw_film(ax, frames: np.ndarray, attacked_frames, pictures: Sequence | None = None) -> None:
    """Pictures in a row, or without them frames [T,dims] as a strip of film; attacked frames stand in a red box."""
    if pictures:
        draw_pictures(ax, pictures, attacked_frames)
        return
    count, dims = frames.shape
    top, bottom, edge = -0.5, dims - 0.5, 0.14 * dims
    ax.imshow(frames.T, aspect="auto", cmap=FEATURE_MAP, vmin=-2, vmax=2, interpolation="nearest")
    ax.vlines(np.arange(count - 1) + 0.5, top, bottom, color="#222222", lw=1.2 if count <= 80 else 0)
    holes, y = (np.arange(60) + 0.5) * count / 60 - 0.5, np.repeat([top - edge / 2, bottom + edge / 2], 60)
    ax.scatter(np.tile(holes, 2), y, marker="s", s=9, color="white", lw=0)
    ax.set(ylim=(bottom + edge, top - edge), yticks=[], facecolor="#222222", ylabel=f"{dims} leading\nfeatures")
    _mark_attacked(ax, count, attacked_frames, top, dims, top - edge)


def _mark_attacked(ax, count: int, attacked_frames, top: float, height: float, tip: float) -> None:
    for t in np.arange(count)[[] if attacked_frames is None else np.asarray(attacked_frames)].tolist():
        ax.plot([t], [tip], "v", ms=8, color=style.ATTACKED, clip_on=False, zorder=5)
        box = plt.Rectangle((t - 0.5, top), 1, height, fill=False, ec=style.ATTACKED, lw=2.5, clip_on=False, zorder=4)
        ax.add_patch(box)


def draw_pictures(ax, pictures: Sequence, attacked_frames=None, evidence=None) -> None:
    """T pictures in a row, one a frame, over bars where ``evidence`` [T] is; attacked ones in a red box."""
    count, step = len(pictures), -(-len(pictures) // MOST)
    for t in range(0, count, step):
        picture = from_jpeg(pictures[t]) if isinstance(pictures[t], bytes) else pictures[t]
        ax.imshow(picture, extent=(t - 0.48, min(t + step, count) - 0.52, 1, 0), aspect="auto")
    for t in np.flatnonzero(evidence if evidence is not None else []).tolist():
        ax.axvspan(t - 0.48, t + 0.48, -0.12, -0.03, color=style.EVIDENCE, lw=0, clip_on=False)
    _mark_attacked(ax, count, attacked_frames, 0, 1, -0.08)
    ax.set(xlim=(-0.5, count - 0.5), ylim=(1, 0), xticks=[], yticks=[], frame_on=False)
