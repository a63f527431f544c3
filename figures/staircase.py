"""Two pictures: the paper's staircase taken apart, and what a bound on attention costs and gains.

    python figures/staircase.py      # draws figures/staircase.png and figures/frontier.png from the results beside them

`make staircase` makes results-staircase.json, `python figures/frontier.py` results-frontier.json.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from aart_lib.viz import plots, style

HERE = Path(__file__).resolve().parent
STEPS = {  # each changes one thing of the one before
    "standard": "baseline",
    "adversarial-relu": "adversarial\nat the test's ε,\nReLU",
    "adversarial-simple": "smooth\nactivation\n(GELU)",
    "a-art-simple": "+ attention\nterm",
    "adversarial": "without it,\ntraining ε\ntuned",
    "trades": "agreement of\npredictions\n(TRADES)",
    "a-art": "+ attention\nterm (A-ART)",
}
MEASURES = {"at ε": ("o", "-"), "at 2ε": ("s", "--"), "one frame of 8ε": ("^", ":")}
PAPER = {0: 72.9 / 91, 2: 82 / 91, 6: 1.0}  # its GAP under attack over 91, about its clean score


def shares(rows: list[dict]) -> dict[str, dict[str, list[float]]]:
    """{measure: {defense: share of the own clean GAP that is kept, one number a seed}}"""
    found: dict = {measure: {} for measure in MEASURES}
    for row in rows:
        kept = row["worst"]["gap"], row["other"]["worst@2"]["gap"], row["other"]["frames-1"]["gap"]
        for measure, gap in zip(MEASURES, kept, strict=True):
            found[measure].setdefault(row["defense"], []).append(gap / row["clean"]["gap"])
    return found


@style.styled
def plot_staircase(rows: list[dict]) -> Figure:
    """Kept shares step by step, a point a seed, beside the paper's three."""
    found, colors = shares(rows), ("#D55E00", "#0072B2", "#009E73")
    first, last = (np.mean(found["at ε"][name]) for name in ("standard", "a-art"))
    title = f"From {first:.0%} to {last:.0%} of the clean score: learning under attack, then a larger training ε"
    ax = style.new_axes(None, title, 4.6)
    for (measure, (marker, line)), color in zip(MEASURES.items(), colors, strict=True):
        means = [np.mean(found[measure][name]) for name in STEPS]
        ax.plot(range(len(STEPS)), means, line, marker=marker, color=color, ms=7, label=measure)
        for place, name in enumerate(STEPS):
            seeds = found[measure][name]
            ax.plot([place] * len(seeds), seeds, "_", color=color, ms=12, alpha=0.7)
    ax.plot(list(PAPER), list(PAPER.values()), "*", color="black", ms=13, ls="", label="the paper, over 91")
    ax.set_xticks(range(len(STEPS)), list(STEPS.values()), size=8)
    ax.set(ylim=(0.35, 1.04))
    style.finish(ax, legend="share kept", ylabel="GAP under attack / clean GAP")
    return ax.figure


@style.styled
def plot_frontier(rows: list[dict]) -> Figure:
    """GAP at ε across, against a spliced frame up; a curve a method, a point a bound."""
    looks = {"trades": ("#0072B2", "o", "-"), "a-art": ("#009E73", "s", "-")}
    looks |= {f"{name}-splice": (color, mark, "--") for name, (color, mark, _) in looks.items()}
    title = "A bound on attention scores guards against one spliced frame, for a few points at ε"
    ax = style.new_axes(None, title, 4.6)
    for method, (color, marker, line) in looks.items():
        points = []
        for row in rows:
            name, _, bound = row["defense"].partition(", ")
            if name == method and "block" not in bound:
                points.append((row["worst"]["gap"], row["other"]["splice"]["gap"], bound))
        points.sort(key=lambda point: point[1])
        label = method.removesuffix("-splice").upper()
        label += ", trained on spliced frames too" if method.endswith("-splice") else ""
        ax.plot(*zip(*[point[:2] for point in points], strict=True), line, color=color, marker=marker, label=label)
        for across, up, bound in points:
            ax.annotate(bound, (across, up), xytext=(5, 4), textcoords="offset points", size=7.5)
    style.finish(ax, legend="trained as", grid="both", xlabel="GAP under PGD at ε", ylabel="GAP, one frame spliced")
    return ax.figure


def main() -> None:
    for name, plot in (("staircase", plot_staircase), ("frontier", plot_frontier)):
        path = HERE / f"results-{name}.json"
        if path.exists():
            plots.save(plot(json.loads(path.read_text(encoding="utf-8"))["rows"]), HERE / f"{name}.png")


if __name__ == "__main__":
    main()
