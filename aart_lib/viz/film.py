"""A film as one sees it: its pictures in a row, and how much attention each gets, before and under attack."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from aart_lib.data.pictures import from_jpeg
from aart_lib.viz import style

MOST = 24  # pictures of a row; of longer films every second, third, ... is shown
EVIDENCE = "#444444"


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
    fig = style.Drawing(figsize=(9, 0.5 + 2.1 * len(attention)), layout="constrained", facecolor="white")
    fig.suptitle(title, x=0.01, ha="left", wrap=True)
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


def draw_pictures(ax, pictures: Sequence, attacked_frames=None, evidence=None) -> None:
    """T pictures in a row, one a frame, over bars where ``evidence`` [T] is; attacked ones in a red frame."""
    count, step = len(pictures), -(-len(pictures) // MOST)
    for t in range(0, count, step):
        picture = from_jpeg(pictures[t]) if isinstance(pictures[t], bytes) else pictures[t]
        ax.imshow(picture, extent=(t - 0.48, min(t + step, count) - 0.52, 1, 0), aspect="auto")
    for t in np.flatnonzero(evidence if evidence is not None else []).tolist():
        ax.axvspan(t - 0.48, t + 0.48, -0.12, -0.03, color=EVIDENCE, lw=0, clip_on=False)
    for t in np.arange(count)[[] if attacked_frames is None else np.asarray(attacked_frames)].tolist():
        ax.add_patch(plt.Rectangle((t - 0.5, 0), 1, 1, fill=False, ec=style.ATTACKED, lw=3, clip_on=False, zorder=4))
        ax.plot([t], [-0.08], "v", ms=8, color=style.ATTACKED, clip_on=False, zorder=5)
    ax.set(xlim=(-0.5, count - 0.5), ylim=(1, 0), xticks=[], yticks=[], frame_on=False)
