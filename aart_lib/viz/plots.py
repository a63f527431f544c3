"""Every figure of the project: arrays in, one Figure out; the palette and the style live here.

Clean is a blue line with circles, attacked a dashed red line with squares; each defense has a color of
its own and keeps it, with its marker, from figure to figure; nothing is told by color alone. The title,
given by the caller, states the finding. Attention is drawn on one sequential map that starts at 0, and maps
that are compared share its upper end. A shaded band is the range over several seeds.

Functions with an ``ax`` draw there or, without it, into a new figure of notebook width. New figures
are unknown to pyplot: a notebook shows the one a cell ends with, once, and no window is opened. They are
drawn in the project's style whatever a user's own settings are, and leave these as they were.

Source of the palette: Okabe and Ito, "Color Universal Design" (2008), legible with color blindness. It
has too few colors for every variant of a defense; those get others, apart in lightness too.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from aart_lib.data.batch import LEVEL
from aart_lib.runtime.files import replacing
from aart_lib.viz import film, style
from aart_lib.viz.style import ATTACKED, CLEAN, EVIDENCE, defense_style, finish, new_axes, new_figure, styled

NEUTRAL, ATTENTION_MAP, FEATURE_MAP = "#5B7C99", "viridis", film.FEATURE_MAP


@styled
def save(fig: Figure, path) -> None:
    """Write a figure as PNG (150 dpi, no metadata, so equal figures are equal bytes) and close it.

    The file appears under its name only when it is complete.
    """
    with replacing(path) as file:
        fig.savefig(file, format="png", dpi=150, metadata={"Software": None})
    plt.close(fig)


# ---------------------------------------------------------------- helpers


def _curve(ax, x, y, label: str, **look) -> int:
    """Draw (x, y); an x with several y, one per seed, shows their mean and range. Returns the number of seeds."""
    sns.lineplot(x=np.ravel(x), y=np.ravel(y), ax=ax, label=label, errorbar=("pi", 100), legend=False, **look)
    return int(np.unique(x, return_counts=True)[1].max(initial=1))


def _seeds(count: int, several: str = "mean and range\nof {} seeds") -> str:
    return "one seed" if count == 1 else several.format(count)


def _by_defense(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    return {name: [row for row in rows if row["defense"] == name] for name in dict.fromkeys(r["defense"] for r in rows)}


def _runs(present) -> list[tuple[float, int]]:
    """(left border, length) of every run of True in [T] frames; frame t reaches from t − ½ to t + ½."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(present, int), [0]])))
    return [(start - 0.5, stop - start) for start, stop in edges.reshape(-1, 2)]


def _mark_evidence(ax, evidence, bottom: float) -> None:
    """A bar over the frames [T] with evidence, at a height in shares of the axes' own; None draws nothing."""
    for i, run in enumerate([] if evidence is None else _runs(evidence)):
        label, place = "" if i else "evidence", ax.get_xaxis_transform()
        ax.broken_barh([run], (bottom, 0.05), color=EVIDENCE, clip_on=False, transform=place, label=label)


# ---------------------------------------------------------------- one video


@styled
def plot_timeline(
    frames, evidence=None, label_names=(), *, attention=None, scores=None, attacked_frames=None, labels=None,
    pictures=None, both=False, title="",
):  # fmt: skip
    """One video under attack: attention above the film, evidence below, label probabilities beside it.

    Args:
        frames: features [T,D] without padding; the 8 leading dimensions are drawn, purple −2 to green 2.
        evidence: [T,C] bool, frames that show a label, or None.
        label_names: C names.
        attention: {"clean": [T], "attacked": [T]}, shares of the attention, or None.
        scores: {"clean": [C], "attacked": [C]}, probabilities, or None.
        attacked_frames: [T] bool or indices of the frames an attack touched; None draws no marks.
        labels: [C] true labels, 0/1; by default those with evidence.
        pictures: T pictures as in `film.plot_film`, drawn in place of the dimensions, or None.
        both: draw the pictures above the dimensions.
    """
    evidence = np.zeros((len(frames), len(label_names)), bool) if evidence is None else np.asarray(evidence, bool)
    shown = np.flatnonzero(evidence.any(0))[:8]
    heights = {"attention": 2.2, "change": 0.9} if attention else {}
    heights |= {"pictures": 0.9} if both else {}
    heights |= {"film": 1.3} | ({"evidence": 0.26 * len(shown) + 0.15} if len(shown) else {})
    fig = new_figure(title, max(4.4 if scores else 0, sum(heights.values()) + 1))
    mosaic: list = [[name, "scores"] if scores else [name] for name in heights]
    axes = fig.subplot_mosaic(mosaic, height_ratios=list(heights.values()), width_ratios=[2.5, 1] if scores else [1])
    if attention:
        draw_attention(axes["attention"], axes["change"], attention, evidence)
    if both:
        film.draw_pictures(axes["pictures"], pictures, attacked_frames)
    film.draw_film(axes["film"], np.asarray(frames)[:, :8], attacked_frames, None if both else pictures)
    if len(shown):
        _draw_evidence(axes["evidence"], evidence[:, shown], [label_names[c] for c in shown])
    if scores:
        draw_scores(axes["scores"], scores, label_names, evidence.any(0) if labels is None else np.asarray(labels) > 0)
    *upper, lowest = left = [axes[name] for name in heights]
    plt.setp(upper, xticks=[])
    plt.setp(left, xlim=(-0.5, len(frames) - 0.5))
    finish(lowest, integers=True, xlabel="frame (one per second)")
    fig.align_ylabels(left)
    return fig


def draw_attention(above, below, attention: Mapping, evidence: np.ndarray) -> None:
    """Temporal attention clean and attacked, and under it what the attack added and took away."""
    time, change = np.arange(len(evidence)), np.subtract(*map(np.asarray, (attention["attacked"], attention["clean"])))
    for i, (left, length) in enumerate(run for column in evidence.T for run in _runs(column)):
        for ax in (above, below):  # where several labels show, the shade is deeper
            ax.axvspan(left, left + length, color="black", alpha=0.08, lw=0, label="" if i else "evidence")
    for key, look in style.LINES.items():
        above.plot(time, attention[key], **look, ms=4 if len(time) <= 80 else 0, lw=1.6, label=key)
        above.fill_between(time, attention[key], color=look["color"], alpha=0.12, lw=0)
    above.set(ylim=(0, 1.3 * float(max(map(max, attention.values())))), ylabel="attention")
    above.text(0.01, 0.97, f"{abs(change).sum() / 2:.0%} moved", transform=above.transAxes, va="top", weight="bold")
    above.legend(loc="upper right", ncols=3, borderaxespad=0.1)
    below.bar(time, change.clip(0), 0.85, color="#B2182B", lw=0)
    below.bar(time, change.clip(None, 0), 0.85, **style.HATCHED | {"color": "#92A8B8"})
    below.axhline(0, color="#666666", lw=0.8)
    below.set_ylabel("change")


def _draw_evidence(ax, evidence: np.ndarray, names: Sequence[str]) -> None:
    """One bar a label over the frames that show it."""
    for row, column in enumerate(evidence.T):
        ax.broken_barh(_runs(column), (row - 0.3, 0.6), color=EVIDENCE)
    ax.set_yticks(range(len(names)), [f"{name:.16}" for name in names], size=9)
    ax.set_ylim(len(names) - 0.4, -0.6)


def draw_scores(ax, scores: Mapping, names: Sequence[str], true: np.ndarray) -> None:
    """Probabilities of the 7 leading labels before and after; a check mark stands before the true ones."""
    clean, attacked = (np.asarray(scores[key], float) for key in style.LINES)
    chosen = np.argsort(-(np.maximum(clean, attacked) + true), kind="stable")[:7]
    places = np.arange(len(chosen))
    before = ax.barh(places, clean[chosen], 0.25, color=CLEAN, lw=0, label="clean")
    after = ax.barh(places + 0.27, attacked[chosen], 0.25, **style.HATCHED, label="attacked")
    for y, c in enumerate(chosen):
        text = ("✓ " if true[c] else "") + f"{names[c]:.24}"
        ax.text(0, y - 0.19, text, va="bottom", size=9, weight="bold" if true[c] else "normal")
    for bars in (before, after):
        ax.bar_label(bars, fmt="{:.2f}", padding=3, size=8)
    ax.set(xlim=(0, 1.15), ylim=(len(chosen) - 0.55, -0.62), yticks=[], xlabel="probability (✓ true)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, columnspacing=1)


@styled
def plot_attention_grid(maps: Mapping[str, Mapping], *, evidence=None, title: str = "") -> Figure:
    """Attention over time, rows × columns on one scale, for example baseline and A-ART × clean and attacked.

    Args:
        maps: {row: {column: [T] or one line a head, [H,T]}}.
        evidence: [T] bool; a bar above each map marks these frames.
    """
    rows, columns = list(maps), list(next(iter(maps.values())))
    tables = [[np.atleast_2d(maps[row][column]) for column in columns] for row in rows]
    top, heads = (max(f(table) for line in tables for table in line) for f in (np.max, len))
    fig = new_figure(title, 0.9 + len(rows) * max(0.95, 0.35 + 0.22 * heads))
    axes = fig.subplots(len(rows), len(columns), sharex=True, squeeze=False)
    for (i, j), ax in np.ndenumerate(axes):
        image = ax.imshow(tables[i][j], aspect="auto", cmap=ATTENTION_MAP, vmin=0, vmax=top, interpolation="nearest")
        _mark_evidence(ax, evidence, 1.03)
        ax.set(title="" if i else columns[j], ylabel="" if j else rows[i])
        ticks = range(heads if heads > 1 and j == 0 else 0)
        ax.set_yticks(ticks, [f"head {head + 1}" for head in ticks], size=8)
        ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    fig.supxlabel("frame" if evidence is None else "frame (bars above: evidence)", size=10)
    fig.colorbar(image, ax=axes, label="attention", fraction=0.03, pad=0.01)
    return fig


# ---------------------------------------------------------------- training


@styled
def plot_learning_curves(histories: Mapping[str, Sequence[Mapping]], *, title: str = "") -> Figure:
    """Validation GAP by epoch, clean and attacked.

    Args:
        histories: {defense: [{"epoch", "clean", "attacked", "seed" if several}]}; of one defense alone
            both curves share a panel, of several each measure has its own.
    """
    alone, seeds = len(histories) == 1, 1
    axes = new_figure(title, 3.4).subplots(1, 1 if alone else 2, sharey=True, squeeze=False)[0]
    for ax, measure in zip(axes[[0, 0]] if alone else axes, style.LINES, strict=True):
        for name, rows in histories.items():
            kept = np.reshape([(row["epoch"], row[measure]) for row in rows if row.get(measure) is not None], (-1, 2))
            look = style.LINES[measure] | ({} if alone else defense_style(name))
            seeds = max(seeds, _curve(ax, kept[:, 0], kept[:, 1], measure if alone else name, **look))
        finish(ax, integers=True, xlabel="epoch", ylabel="validation GAP@20", title="" if alone else measure)
    return finish(axes[-1], legend=_seeds(seeds))


# ---------------------------------------------------------------- results


@styled
def plot_robustness_curve(curves: Mapping[str, tuple], *, calibrated=None, ceiling=(), title="", ax=None):
    """GAP against the size of the attack; where ε goes far beyond the calibrated one, on a square root scale.

    Args:
        curves: {defense: (epsilons [E] in feature units, GAP [S,E] by seed or [E])}; a seed that lacks an ε has nan.
        calibrated: the ε of the main table, marked by a line.
        ceiling: (ε, GAP) pairs that a matched filter is certain to keep.
    """
    curves = {name: (np.asarray(epsilons), np.asarray(gaps)) for name, (epsilons, gaps) in curves.items()}
    ax, seeds = new_axes(ax, title, 4.6), 1
    ends = np.unique(np.concatenate([epsilons for epsilons, _ in curves.values()]))
    for name, (epsilons, gaps) in curves.items():
        x, known = np.broadcast_to(epsilons, np.shape(gaps)), np.isfinite(gaps)
        seeds = max(seeds, _curve(ax, x[known], gaps[known], name, ms=6, **defense_style(name)))
    ax.plot(*np.transpose(ceiling), **style.CEILING, label="matched filter,\ncertified")
    if calibrated is not None:
        ax.axvline(calibrated, color="#666666", ls=":", lw=1.2, label="calibrated ε")
        if ends[-1] > 6 * calibrated:
            ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
            ax.set_xticks(ends, [f"{e:.2g}\n{e / calibrated:.3g}×".lstrip("0") for e in ends], size=7.5)
    ax.set(xlim=(0, None), ylim=(0, 1.02), xlabel="ε (feature units)", ylabel="GAP@20")
    return finish(ax, legend=_seeds(seeds) + ",\nelse seed 0" * any(np.isnan(g).any() for _, g in curves.values()))


_BARS: dict[str, tuple[str, dict]] = {"clean": ("clean", {"color": CLEAN}), "worst": ("worst attack", style.HATCHED)}
_BARS["steady_attention"] = "attention held\nsteady, attacked", style.HATCHED | {"color": "#BBBBBB", "hatch": ".."}


@styled
def plot_table_bars(rows: Sequence[Mapping], *, ceiling: Mapping | None = None, title: str = "", ax=None):
    """Clean, worst attacked and steady-attention GAP of each defense: bar the mean, a dot for each seed.

    Args:
        rows: as in results.json, with "defense", "clean", "worst" and, where known, "steady_attention".
        ceiling: {"clean": GAP, "certified at ε": GAP} of a matched filter, lines across the bars.
    """
    groups, kept = _by_defense(rows), [key for key in _BARS if any(row.get(key) for row in rows)]
    ax = new_axes(ax, title, 1.5 + 0.5 * len(groups))
    for i, key in enumerate(kept):
        gaps = [[row[key]["gap"] for row in group if row.get(key)] for group in groups.values()]
        places = np.arange(len(groups)) + (i - (len(kept) - 1) / 2) * 0.28
        means, (label, look) = [np.mean(values or np.nan) for values in gaps], _BARS[key]
        ax.bar_label(ax.barh(places, means, 0.26, label=label, **look), fmt="{:.3f}", padding=9, size=8)
        ax.plot(np.concatenate(gaps), np.repeat(places, [*map(len, gaps)]), "o", ms=3.5, color="black", mec="white")
    for (name, at), dashes in zip((ceiling or {}).items(), ("-", style.CEILING["ls"]), strict=False):
        ax.axvline(at, **style.CEILING | {"ls": dashes}, label=f"matched filter,\n{name}")
    ax.set_yticks(range(len(groups)), groups)
    ax.set(xlim=(0, 1.08), ylim=(len(groups) - 0.45, -0.55))
    return finish(ax, legend=_seeds(max(map(len, groups.values())), "dots: {} seeds"), grid="x", xlabel="GAP@20")


@styled
def plot_attacks(gaps: dict[str, dict[str, float]], *, title: str = "", ax=None) -> Figure:
    """GAP of defenses under single attacks, darker for lower; a ring marks the attack that hurts a defense most.

    gaps: {attack: {defense: GAP}}; an attack that was not tried on a defense lacks it. One seed.
    """
    names = list(dict.fromkeys(name for found in gaps.values() for name in found))
    table = [[found.get(name, np.nan) for name in names] for found in gaps.values()]
    ax, about = new_axes(ax, title, 1.9 + 0.21 * len(gaps)), {"label": "GAP@20 (one seed)"}
    sns.heatmap(table, annot=True, fmt=".3f", annot_kws={"size": 8}, cmap="Greys_r", cbar_kws=about, ax=ax)
    ax.patch.set(hatch="xxx", ec="#CCCCCC")  # not tried
    for column, row in enumerate(np.nanargmin(table, axis=0)):
        ax.add_patch(Ellipse((column + 0.5, row + 0.5), 0.9, 1.1, fill=False, ec=ATTACKED, lw=2.2, clip_on=False))
    ax.set_yticks(np.arange(len(gaps)) + 0.5, gaps, rotation=0, size=8.5)
    ax.set_xticks(np.arange(len(names)) + 0.5, names, rotation=30, ha="right", rotation_mode="anchor", size=8.5)
    return ax.figure


@styled
def plot_drift(rows: Sequence[Mapping], *, second="evidence_share", title: str = "") -> Figure:
    """GAP lost to the worst attack against attention drift (total variation) and, beside it, a second measure.

    rows: as in results.json; ``second`` is "evidence_share" (under attack) or "attention_entropy". Rows without the
    measure are left out. Where no clean GAP is known, the worst GAP is shown instead of the loss.
    """
    axes, groups = new_figure(title, 4.4).subplots(1, 2, sharey=True), _by_defense(rows)
    for ax, key in zip(axes, ("attention_drift", second), strict=True):
        for name, group in groups.items():
            group = [row for row in group if row.get(key) is not None]
            x = [row[key]["attacked"] if isinstance(row[key], Mapping) else row[key] for row in group]
            y = [abs(row.get("clean", {"gap": 0})["gap"] - row["worst"]["gap"]) for row in group]
            ax.scatter(x, y, s=80, ec="white", lw=0.6, label=name, **defense_style(name))
        finish(ax, grid="both", xlabel={"evidence_share": "evidence share, attacked"}.get(key, key.replace("_", " ")))
    axes[0].set_ylabel("GAP lost: clean − worst" if all("clean" in row for row in rows) else "worst GAP@20")
    return finish(axes[1], legend=_seeds(max(map(len, groups.values())), "one point per seed"), grid="both")


@styled
def plot_hijacks(pull: Mapping[str, Sequence], *, title: str = "") -> Figure:
    """Attention on the attacked frame, clean across and attacked up, one point per video: {defense: ([N], [N])}."""
    axes = new_figure(title, 3.2).subplots(1, len(pull), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (name, (before, after)) in zip(axes, pull.items(), strict=True):
        ax.plot([0, 1], [0, 1], color="#888888", lw=1)
        ax.scatter(before, after, s=12, alpha=0.5, **defense_style(name))
        ax.set(title=f"{name}\n{np.mean(before):.2f} → {np.mean(after):.2f}", xlabel="clean")
    axes[0].set_ylabel("attacked")
    return axes[0].figure


@styled
def plot_evidence_share(rows: Sequence[Mapping], *, title: str = "", ax=None) -> Figure:
    """Share of [CLS] attention on evidence frames, clean → attacked, one line per seed, and as multiples of chance.

    rows: as in results.json; those without "evidence_share" {"clean", "attacked", "chance"} are left out.
    """
    groups = _by_defense([row for row in rows if row.get("evidence_share")])
    ax = new_axes(ax, title, 1.4 + 0.45 * len(groups))
    for line, group in enumerate(groups.values()):
        clean, attacked, chance = ([row["evidence_share"][key] for row in group] for key in (*style.LINES, "chance"))
        y, once = np.linspace(line - 0.3, line + 0.3, len(group) + 2)[1:-1], "_" * (line > 0)  # a legend entry each
        ax.hlines(y, clean, attacked, color="#AAAAAA", lw=2, zorder=1)
        for x, (key, look) in zip((clean, attacked), style.LINES.items(), strict=True):
            ax.plot(x, y, **look | {"ls": ""}, ms=7, mec="white", label=f"{once}{key}")
        ax.vlines(np.mean(chance), line - 0.4, line + 0.4, color=EVIDENCE, ls=":", label=f"{once}chance")
        text = "{:.1f}× → {:.1f}× chance".format(*np.mean([clean, attacked], axis=1) / np.mean(chance))
        ax.text(1.01, line, text, transform=ax.get_yaxis_transform(), va="center")
    ax.set_yticks(range(len(groups)), groups)
    ax.legend(title=_seeds(max(map(len, groups.values()), default=1), "one line per seed"), ncols=3, loc=(0.5, 1))
    return finish(ax, grid="x", xlabel="[CLS] attention on evidence", xlim=(0, 1), ylim=(len(groups) - 0.4, -0.6))


# ---------------------------------------------------------------- data


@styled
def plot_batch(values, mask, *, title: str = "") -> Figure:
    """One feature of a padded batch [B,T] beside its mask [B,T]."""
    left, right = (fig := new_figure(title, 2.8)).subplots(1, 2, sharey=True)
    image = left.imshow(values, cmap=FEATURE_MAP, vmin=-2, vmax=2, aspect="auto", interpolation="nearest")
    right.imshow(mask, cmap="Greys_r", vmin=0, vmax=1.3, aspect="auto", interpolation="nearest")
    fig.colorbar(image, ax=left, label="value")
    left.set(title="one feature", xlabel="frame", ylabel="video")
    right.set(title="the mask (light = real, black = padding)", xlabel="frame")
    return fig


@styled
def plot_dataset(label_counts, lengths, frequencies, *, label_names=None, title: str = "") -> Figure:
    """A data set at a glance: labels per video [N], frames per video [N], share of videos per label [C]."""
    axes = new_figure(title, 3.4).subplots(1, 3, width_ratios=[1, 1, 1.3])
    for ax, values, name in zip(axes, map(np.asarray, (label_counts, lengths)), ("labels", "frames"), strict=False):
        sns.histplot(x=values, discrete=len(np.unique(values)) <= 40, color=NEUTRAL, alpha=1, ec="white", ax=ax)
        finish(ax, integers=True, xlabel=f"{name} per video", ylabel="videos", title=f"mean {np.mean(values):.1f}")
    top = np.argsort(-np.asarray(frequencies), kind="stable")[:12][::-1]
    axes[2].barh(range(len(top)), np.asarray(frequencies)[top], color=NEUTRAL)
    names = [f"label {c}" if label_names is None else f"{label_names[c]:.18}" for c in top]
    axes[2].set_yticks(range(len(top)), names, size=8)
    return finish(axes[2], grid="x", xlabel="share of videos", title=f"top {len(top)} of {len(frequencies):,} labels")


@styled
def plot_quantization(*, start: float = 0.3, title: str = "", ax=None) -> Figure:
    """The staircase of the stored bytes near ``start``: a change by a third of a level vanishes, by one does not."""
    ax = new_axes(ax, title)
    byte = np.rint((start + 2 - 4 / 512) / LEVEL) + np.arange(-2, 4)
    places = byte * LEVEL + 4 / 512 - 2  # six features that bytes can hold; the third is the clean one
    ax.step(places, places, where="mid", color="black", lw=1.8, label="stored, read again")
    moves = (0, 2, "clean", CLEAN), (1 / 3, 2, "+ ⅓ level", "white"), (1, 3, "+ 1 level", ATTACKED)
    for (levels, landing, name, fill), key in zip(moves, ("clean", "attacked", "attacked"), strict=True):
        x, look = places[2] + levels * LEVEL, style.LINES[key] | {"ls": ":", "mfc": fill, "markevery": [1]}
        ax.plot([x, x], [places[0], places[landing]], **look, lw=1, ms=9, label=name, zorder=3)
    ax.set_xticks(places, [f"{x:.3f}" for x in places], size=8)
    ax.set_yticks(places, [f"{x:.3f}  (byte {b:.0f})" for x, b in zip(places, byte, strict=True)], size=8)
    return finish(ax, legend="", xlabel="feature before storing", ylabel="feature after reading")


@styled
def plot_curves(curves: Mapping[str, Mapping], *, title: str = "", ax=None, **labels) -> Figure:
    """A line for each {name: {x: y}}; labels: what the axes say, and scales, as in ``xscale="log"``."""
    ax = new_axes(ax, title)
    looks = (NEUTRAL, "-", "o"), ("#000000", "--", "s"), ("#999999", ":", "^"), ("#CC79A7", "-.", "D")
    for (name, curve), (color, line, marker) in zip(curves.items(), looks, strict=False):  # in JSON, x is text
        _curve(ax, [int(x) for x in curve], list(curve.values()), name, color=color, linestyle=line, marker=marker)
    return finish(ax, legend="", **labels)
