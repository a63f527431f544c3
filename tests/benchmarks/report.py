"""The table and the figure of the benchmarks, from benchmarks.json alone."""

import json
from pathlib import Path

SIGNS = {"peer / ours": "≥", "ours / peer": "≤", "ours - peer": "≤"}
MET = {True: "yes", False: "**no**", None: "–"}


def _amount(value: float | None, unit: str) -> str:
    """A median with its unit: milliseconds below a second; exponents have no unit."""
    if value is None:
        return "–"
    if unit == "s" and value < 1:
        return f"{1e3 * value:.3g} ms"
    return f"{value:.3g} {unit}".strip()


def _ratio(value: float | None, meaning: str) -> str:
    if value is None:
        return "–"
    return f"{value:+.2f}" if meaning == "ours - peer" else f"{value:.2f}x"


def cells(entry: dict) -> list[str]:
    """The cells of an entry's line of the table."""
    target, meaning = entry["target"], entry["meaning"]
    return [
        entry["what"],
        entry["peer"],
        _amount(entry["ours_seconds"], entry["unit"]),
        _amount(entry["peer_seconds"], entry["unit"]),
        _ratio(entry["ratio"], meaning),
        "–" if entry["ratio"] is None else meaning,
        "–" if target is None else f"{SIGNS[meaning]} {_ratio(target, meaning)}",
        MET[entry["met"]],
        {True: "yes", False: "**no**", None: "–"}[entry["holds"]],
        entry["note"],
    ]


def line(entry: dict) -> str:
    return "| " + " | ".join(cells(entry)) + " |"


def finding(entries: list[dict]) -> str:
    """What came out, in one sentence."""
    judged = [entry["met"] for entry in entries if entry["met"] is not None]
    return f"{sum(judged)} of {len(judged)} targets met"


def table(results: dict) -> str:
    """The whole of benchmarks.md."""
    loads = [load for entry in results["entries"] for load in entry.get("load", []) if load is not None]
    noisy = f" The load average was {min(loads):.1f} to {max(loads):.1f}, this process included." if loads else ""
    quick = "**A smoke run with tiny sizes: its numbers mean nothing.**\n\n" if results["quick"] else ""
    head = "case|peer|ours|theirs|ratio|which is|target|met|equal|note".split("|")
    return (
        "# Benchmarks\n\n"
        f"{quick}{finding(results['entries'])}. Made by `make bench`: one process, one thread, ours and theirs in "
        f"turns on the same data, medians of {results['repeats']} rounds after a warm-up (of their ratios too)."
        f"{noisy} *Equal*: both gave the same bytes and labels, scores, logits, or a loss at least as high.\n\n"
        f"| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |\n"
        + "\n".join(map(line, results["entries"]))
        + "\n\nVersions: "
        + ", ".join(f"{name} {value}" for name, value in results["versions"].items())
        + ".\n"
    )


def margins(entries: list[dict]) -> list[tuple[str, float, dict]]:
    """(text, how far beyond the target as a factor, entry) of the entries whose target is a ratio of times."""
    found = []
    for entry in entries:
        if entry["met"] is None or entry["meaning"] == "ours - peer":
            continue
        factor = entry["ratio"] / entry["target"]
        factor = factor if SIGNS[entry["meaning"]] == "≥" else 1 / factor
        found.append((f"{entry['what']}\nagainst {entry['peer']}", factor, entry))
    return found


def draw(results: dict, path: Path) -> None:
    """Bars of how far each ratio lies beyond its target; hatched where it falls short."""
    from aart_lib.viz import plots, style

    found = margins(results["entries"])
    title = f"{finding(results['entries'])}: what the project costs beside its peers, on one thread"
    ax = plots.new_axes(None, title, 1.6 + 0.42 * len(found))
    for met, label, look in ((True, "met", {"color": plots.CLEAN}), (False, "missed", style.HATCHED)):
        chosen = [(place, factor) for place, (_, factor, entry) in enumerate(found) if entry["met"] is met]
        if chosen:
            places, factors = zip(*chosen, strict=True)
            ax.barh(places, [factor - 1 for factor in factors], 0.6, left=1, label=label, **look)
    for place, (_, factor, entry) in enumerate(found):
        text = f" {_ratio(entry['ratio'], entry['meaning'])} (target {SIGNS[entry['meaning']]} {entry['target']:g}) "
        ax.text(max(factor, 1), place, text, va="center", size=8)
    ax.axvline(1, color="#444444", lw=1)
    ax.set_yticks(range(len(found)), [text for text, _, _ in found], size=7.5)
    ends = [factor for _, factor, _ in found] or [1]
    ax.set(xscale="log", xlim=(min(0.6, *ends) / 5, max(2, *ends) * 5), ylim=(len(found) - 0.4, -0.6))
    plots.finish(ax, legend="target", grid="x", xlabel="times better than the target (log scale)")
    plots.save(ax.figure, path)


def write(folder: Path) -> None:
    """benchmarks.md and, where matplotlib and seaborn are installed, benchmarks.png beside benchmarks.json."""
    results = json.loads((folder / "benchmarks.json").read_text(encoding="utf-8"))
    (folder / "benchmarks.md").write_text(table(results), encoding="utf-8")
    try:
        draw(results, folder / "benchmarks.png")
    except ImportError as error:
        print(f"no figure: {error}")
