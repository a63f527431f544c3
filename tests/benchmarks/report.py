"""The table of the benchmarks, from benchmarks.json alone."""

import json
from pathlib import Path

SIGNS = {"peer / ours": "≥", "ours / peer": "≤"}
YES = {True: "yes", False: "**no**", None: "–"}


def _amount(value: float | None, unit: str) -> str:
    """A median with its unit: milliseconds below a second."""
    if value is None:
        return "–"
    return f"{1e3 * value:.3g} ms" if unit == "s" and value < 1 else f"{value:.3g} {unit}"


def cells(entry: dict) -> list[str]:
    """The cells of an entry's line of the table."""
    target, ratio = entry["target"], entry["ratio"]
    return [
        entry["what"],
        entry["peer"],
        _amount(entry["ours_seconds"], entry["unit"]),
        _amount(entry["peer_seconds"], entry["unit"]),
        "–" if ratio is None else f"{ratio:.2f}x",
        "–" if ratio is None else entry["meaning"],
        "–" if target is None else f"{SIGNS[entry['meaning']]} {target:.2f}x",
        YES[entry["met"]],
        YES[entry["holds"]],
        entry["note"],
    ]


def line(entry: dict) -> str:
    return "| " + " | ".join(cells(entry)) + " |"


def table(results: dict) -> str:
    """The whole of benchmarks.md."""
    loads = [load for entry in results["entries"] for load in entry.get("load", []) if load is not None]
    noisy = f" The load average was {min(loads):.1f} to {max(loads):.1f}, this process included." if loads else ""
    quick = "**A smoke run with tiny sizes: its numbers mean nothing.**\n\n" if results["quick"] else ""
    judged = [entry["met"] for entry in results["entries"] if entry["met"] is not None]
    head = "case|peer|ours|theirs|ratio|which is|target|met|equal|note".split("|")
    return (
        "# Benchmarks\n\n"
        f"{quick}{sum(judged)} of {len(judged)} targets met. Made by `make bench`: one process, one thread, ours and "
        f"theirs in turns on the same data, medians of {results['repeats']} rounds after a warm-up (of their ratios "
        f"too).{noisy} *Equal*: both gave the same bytes and labels, scores, logits, or a loss at least as high.\n\n"
        f"| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |\n"
        + "\n".join(map(line, results["entries"]))
        + "\n\nVersions: "
        + ", ".join(f"{name} {value}" for name, value in results["versions"].items())
        + ".\n"
    )


def write(folder: Path) -> None:
    """benchmarks.md beside benchmarks.json."""
    results = json.loads((folder / "benchmarks.json").read_text(encoding="utf-8"))
    (folder / "benchmarks.md").write_text(table(results), encoding="utf-8")
