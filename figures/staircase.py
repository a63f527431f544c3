"""Pictures and table of the paper's staircase, world by world, and of what a bound on attention costs and gains.

    python figures/staircase.py      # staircase*.png, frontier.png and worlds.md from the results beside them

`make staircase` makes results-staircase.json, `python figures/real_frames.py CLIPS` results-films.json, `make worlds`
the other two, `python figures/frontier.py` results-frontier.json, `python figures/voting.py` voting-*.json.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from aart_lib.experiment.uncertainty import holm
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
OTHERS = {"a-art-fixed-maps": "A-ART, clean maps fixed", "trades-uniform": "TRADES, uniform attention"}
MEASURES = {"at ε": ("o", "-"), "at 2ε": ("s", "--"), "one frame of 8ε": ("^", ":")}
PAPER = {"standard": 72.9 / 91, "adversarial-simple": 82 / 91, "a-art": 1.0}  # its GAP over 91, about its clean score
WORLDS = {  # file of results: how it is called
    "staircase": "synthetic videos",
    "films": "real frames, joined clips of UCF-101",
    "rare": "videos of 64 to 128 frames, rare evidence",
    "worlds-audioset": "AudioSet, 50 labels",
}
VOTES = {"synthetic": "synthetic videos", "films": WORLDS["films"], "audioset": WORLDS["worlds-audioset"]}
PAIRS = (("a-art-simple", "adversarial-simple"), ("a-art", "trades"), ("a-art-fixed-maps", "trades"))


def gaps(rows: list[dict], defense: str) -> np.ndarray:
    """Clean GAP, and that at ε, at 2ε, through one frame of 8ε and through one that may be anything: [seeds, 5]."""
    found = [row for row in sorted(rows, key=lambda row: row["seed"]) if row["defense"] == defense]
    others = ("worst@2", "frames-1", "splice")
    return np.array(
        [[r["clean"]["gap"], r["worst"]["gap"], *(r["other"][key]["gap"] for key in others)] for r in found]
    )


def shares(rows: list[dict], defense: str) -> np.ndarray:
    """Share of the own clean GAP that is kept at ε, at 2ε and through one frame: [seeds, 3]."""
    found = gaps(rows, defense)
    return found[:, 1:4] / found[:, :1]


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds [seeds, ...] and half its 95 % interval; of a single seed the half is NaN."""
    count = len(values)
    if count == 1:
        return values[0], np.full(values.shape[1:], np.nan)
    return values.mean(0), stats.t.ppf(0.975, count - 1) * values.std(0, ddof=1) / count**0.5


def written(values: np.ndarray, form: str) -> list[str]:
    """Mean ± half of each column of values [seeds, columns], in a format such as "+.3f"."""
    pairs = zip(*interval(values), strict=True)
    return [f"{mean:{form}}" + ("" if np.isnan(half) else f" ± {half:{form.lstrip('+')}}") for mean, half in pairs]


@style.styled
def plot_staircase(rows: list[dict], world: str = "synthetic videos") -> Figure:
    """Kept shares step by step with intervals over seeds, beside the paper's three."""
    steps = [name for name in STEPS if any(row["defense"] == name for row in rows)]
    means, halves = np.transpose([interval(shares(rows, name)) for name in steps], (1, 0, 2))  # each [steps, 3]
    title = f"From {means[0, 0]:.0%} to {means[-1, 0]:.0%} of the clean score: {world}"
    ax = style.new_axes(None, title, 4.6)
    for index, (measure, (marker, line)) in enumerate(MEASURES.items()):
        color = ("#D55E00", "#0072B2", "#009E73")[index]
        look = {"color": color, "ms": 7, "capsize": 4, "label": measure}
        ax.errorbar(range(len(steps)), means[:, index], halves[:, index], fmt=marker + line, **look)
    stars = {steps.index(name): share for name, share in PAPER.items()}
    ax.plot(list(stars), list(stars.values()), "*", color="black", ms=13, ls="", label="the paper, over 91")
    ax.set_xticks(range(len(steps)), [STEPS[name] for name in steps], size=8)
    ax.set(ylim=(min(0.35, means.min() - 0.05), 1.04))
    told = "share kept" + "\n(no bar: one seed)" * bool(np.isnan(halves).any())
    style.finish(ax, legend=told, ylabel="GAP under attack / clean GAP")
    return ax.figure


def vote_scores(row: dict) -> list[float]:
    """GAP of a vote: clean, at ε, at 2ε, through one frame of 8ε, a spliced one (by the stronger attack); certified."""
    other, known = row["other"], row["knowing"]
    spliced = min(other["splice"]["gap"], *(gap for key, gap in known.items() if key.startswith("splice")))
    lowest = [row["clean"]["gap"], min(row["worst"]["gap"], known["pgd"]), min(other["worst@2"]["gap"], known["pgd@2"])]
    return [*lowest, min(other["frames-1"]["gap"], known["frames-1"]), spliced, row["certified"]["gap"]]


def votes_of(rows: list[dict], method: str) -> np.ndarray:
    """`vote_scores` of each seed: [seeds, 6]."""
    return np.array([vote_scores(row) for row in sorted(rows, key=lambda r: r["seed"]) if row["defense"] == method])


@style.styled
def plot_frontier(rows: list[dict], votes: list[dict]) -> Figure:
    """GAP at ε across, against a spliced frame up; a curve per method, a point per bound, a star for three voters."""
    looks = {"trades": ("#0072B2", "o", "-"), "a-art": ("#009E73", "s", "-")}
    looks |= {f"{name}-splice": (color, mark, "--") for name, (color, mark, _) in looks.items()}
    title = "A bound helps against one spliced frame; three voters do more, and for certain"
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
    for name in ("trades", "a-art"):
        _, across, _, _, up, sure = votes_of(votes, name).mean(0)
        look = {"color": looks[name][0], "ms": 15, "mec": "white", "ls": ""}
        ax.plot([across], [up], "*", label=f"{name.upper()}, three voters", **look)
    ax.annotate(f"certain: {sure:.2f}", (across, up), xytext=(12, -4), textcoords="offset points", size=9)
    ax.set_ylim(-0.02, 1)
    style.finish(ax, legend="trained as", grid="both", xlabel="GAP under PGD at ε", ylabel="GAP, one frame spliced")
    return ax.figure


def world_table(rows: list[dict]) -> list[str]:
    """A row per defense: clean GAP, kept shares, spliced frame, and where its attention lies."""
    table = [
        "| | seeds | clean | kept at ε | kept at 2ε | kept, one frame | spliced frame, GAP | evidence share | drift |"
    ]
    table.append("|---" * 9 + "|")
    for name, label in (STEPS | OTHERS).items():
        mine = [row for row in rows if row["defense"] == name]
        if not mine:
            continue
        clean, spliced = gaps(rows, name).mean(0)[[0, 4]]
        drift = np.mean([row["attention_drift"] for row in mine])
        evidence = np.mean([(row.get("evidence_share") or {}).get("clean", np.nan) for row in mine])
        attention = ["–" if np.isnan(evidence) else f"{evidence:.2f}", f"{drift:.3f}"]
        cells = [label.replace("\n", " "), f"{len(mine)}", f"{clean:.3f}", *written(shares(rows, name), ".1%")]
        cells += [f"{spliced:.3f}", *attention]
        table.append("| " + " | ".join(cells) + " |")
    return table


def term_table(worlds: dict[str, list[dict]]) -> list[str]:
    """What the attention term adds in each world: the same recipe with it minus without it, in GAP.

    Bold: a paired t-test over the seeds tells it from zero, corrected after Holm for all tests of the table.
    """
    apart = {}
    for world, rows in worlds.items():
        for name, other in PAIRS:
            both = set.intersection(*({row["seed"] for row in rows if row["defense"] == d} for d in (name, other)))
            with_it, without = (gaps([row for row in rows if row["seed"] in both], d) for d in (name, other))
            same = (world, name) != ("worlds-audioset", "a-art-fixed-maps")  # there its other weights are not TRADES'
            if same and both:
                apart[world, name, other] = (with_it - without)[:, 1:]
    tested = {key: stats.ttest_1samp(values, 0.0).pvalue for key, values in apart.items() if len(values) > 1}
    sure = holm({f"{key} {i}": float(p) for key, values in tested.items() for i, p in enumerate(values)})
    table = ["| world | with − without | seeds | at ε | at 2ε | one frame of 8ε | spliced frame |", "|---" * 7 + "|"]
    for key, values in apart.items():
        cells = written(values, "+.3f")
        cells = [f"**{cell}**" if sure.get(f"{key} {i}", 1.0) < 0.05 else cell for i, cell in enumerate(cells)]
        world, name, other = key
        table.append(f"| {WORLDS[world]} | {name} − {other} | {len(values)} | " + " | ".join(cells) + " |")
    told = "Bold: told from zero by a paired t-test over the seeds, corrected after Holm for all"
    return [*table, "", f"{told} {len(sure)} tests of the table."]


def vote_table(worlds: dict[str, list[dict]]) -> list[str]:
    """Three voters in each world, GAP; and what the attention term adds to them."""
    heads = (
        "world | trained as | seeds | clean | at ε | at 2ε | one frame of 8ε | spliced frame | no frame brings it below"
    )
    table = [f"| {heads} |", "|---" * 9 + "|"]
    for name, rows in worlds.items():
        found = {method: votes_of(rows, method) for method in ("trades", "a-art")}
        apart = written(found["a-art"] - found["trades"], "+.3f")
        lines = {method: written(values, ".3f") for method, values in found.items()} | {"a-art − trades": apart}
        seeds = len(found["a-art"])
        table += [f"| {VOTES[name]} | {key} | {seeds} | " + " | ".join(cells) + " |" for key, cells in lines.items()]
    return table


def read(name: str) -> dict:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def main() -> None:
    results = {name: read(f"results-{name}.json") for name in WORLDS}
    votes = {name: read(f"voting-{name}.json")["rows"] for name in VOTES}
    text = ["# The staircase, world by world", ""]
    text += ["Written by `python figures/staircase.py`; [README.md](README.md) says how each world was made.", ""]
    text += ["± is half the 95 % interval over seeds (Student's t); without it, one seed.", ""]
    for name, world in results.items():
        rows, threat, train = world["rows"], world["threat"], world["train"]
        picture = "staircase.png" if name == "staircase" else f"staircase-{name.removeprefix('worlds-')}.png"
        plots.save(plot_staircase(rows, WORLDS[name]), HERE / picture)
        text += [f"## {WORLDS[name][0].upper()}{WORLDS[name][1:]}", ""]
        text += [f"{world['data']['videos']['test']} test videos, {threat['norm']}, ε = {threat['epsilon']:g}, "]
        text[-1] += f"suite *{train['suite']}*."
        text += ["", f"![Share of the clean score kept, step by step: {WORLDS[name]}]({picture})", ""]
        text += [*world_table(rows), ""]
    text += ["## What the attention term adds", "", *term_table({n: world["rows"] for n, world in results.items()})]
    text += ["", "## Three voters against one frame that may be anything", "", *vote_table(votes)]
    (HERE / "worlds.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    plots.save(plot_frontier(read("results-frontier.json")["rows"], votes["synthetic"]), HERE / "frontier.png")


if __name__ == "__main__":
    main()
