"""The style of every figure: the project's own, whatever a user's settings are; those stay as they were."""

import io
from functools import wraps

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

CLEAN, ATTACKED, EVIDENCE = "#0072B2", "#D55E00", "#444444"
NAMES = "standard", "adversarial", "logit-pairing", "trades", "vat", "a-art"
DEFENSE_COLORS = dict(zip(NAMES, "#000000 #E69F00 #999999 #56B4E9 #CC79A7 #009E73".split(), strict=True))
DEFENSE_COLORS |= {"adversarial-uniform": "#7A4B00", "adversarial-mean": "#F0E442", "attention-only": "#882255"}
DEFENSE_COLORS |= {"attention-noise": "#AA44CC", "attention-shuffled": "#FF6B8B", "a-art-all-rows": "#8FDDB8"}
DEFENSE_COLORS |= {"adversarial-relu": "#C2185B", "a-art-fixed-maps": "#00441B"}
LINES = {"clean": dict(color=CLEAN, marker="o", ls="-"), "attacked": dict(color=ATTACKED, marker="s", ls="--")}
CEILING = {"color": "#332288", "ls": (0, (6, 2)), "lw": 1.3, "zorder": 3}
HATCHED = {"color": ATTACKED, "hatch": "////", "ec": "white", "lw": 0}
_STYLE = sns.axes_style("ticks", {"axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans"})
_STYLE |= {"axes.titlesize": 11, "axes.titlepad": 9, "axes.titlelocation": "left", "figure.titleweight": "bold"}
_STYLE |= {"legend.frameon": False, "legend.fontsize": 9, "legend.title_fontsize": 9, "hatch.linewidth": 0.8}

_begun = list[str]()  # functions that draw just now, the outermost first


def styled(draw):
    """The function, under the project's style and nothing of the user's; his settings are as before when it ends."""

    @wraps(draw)
    def under(*arguments, **options):
        if _begun:  # the style is set, which takes some milliseconds
            return draw(*arguments, **options)
        _begun.append(draw.__name__)
        try:
            with plt.style.context(["default", _STYLE]):
                return draw(*arguments, **options)
        finally:
            _begun.pop()

    return under


class Drawing(Figure):
    """A figure that is in the project's style when it is shown, too: its ticks are made only then."""

    draw, get_tightbbox, savefig = map(styled, (Figure.draw, Figure.get_tightbbox, Figure.savefig))

    def _repr_png_(self) -> bytes:  # for notebooks, also where pyplot has chosen no backend yet
        self.savefig(file := io.BytesIO(), format="png", bbox_inches="tight")
        return file.getvalue()


def defense_style(name: str) -> dict[str, str]:
    """{"color", "marker"} of a defense, in every figure the same; unknown names have them from their letters."""
    marker = "Xpv^PD"[NAMES.index(name)] if name in NAMES else "<>*Hd8"[sum(name.encode()[-3::2]) % 6]
    other = f"#{int.from_bytes(name.encode(), 'big') % 0xCCCCCC:06X}"  # none is too light to see
    return {"color": DEFENSE_COLORS.get(name, other), "marker": marker}


def new_figure(title: str, height: float) -> Figure:
    """A new figure of notebook width."""
    fig = Drawing(figsize=(9, height), layout="constrained", facecolor="white")  # inches
    fig.suptitle(title, x=0.01, ha="left", wrap=True)
    return fig


def new_axes(ax, title: str, height: float = 3.6) -> plt.Axes:
    """The given axes with the title on them, or the axes of a new figure with it as headline."""
    if ax is None:
        return new_figure(title, height).subplots()
    ax.set_title(title)
    return ax


def finish(ax, *, legend: str | None = None, grid: str = "y", integers: bool = False, **labels) -> Figure:
    """Labels, limits, grid and, with a ``legend`` title, the legend to the right of the axes."""
    ax.set(**labels)
    ax.grid(axis=grid, color="#DDDDDD")
    if integers:
        ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True, nbins=8))
    if legend is not None:
        ax.legend(title=legend, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax.figure
