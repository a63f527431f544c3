"""The table of the benchmarks, from benchmarks.json alone."""

import json
from pathlib import Path

from bench import DEARER, FASTER

SIGNS = {FASTER: "≥", DEARER: "≤"}
YES = {True: "yes", False: "**no**", None: "–"}


def _amount(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def line(entry: dict) -> str:
    """An entry's line of the table."""
    target, meaning = entry["target"], entry["meaning"]
    least = "–" if target is None else f"{SIGNS[meaning]} {target:.2f}x"
    times = _amount(entry["ours_seconds"]), _amount(entry["peer_seconds"]), f"{entry['ratio']:.2f}x"
    judged = least, YES[entry["met"]], YES[entry["holds"]]
    return f"| {' | '.join([entry['what'], entry['peer'], *times, meaning, *judged, entry['note']])} |"


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
