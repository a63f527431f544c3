"""From rows to conclusions: means over seeds, recovered shares, intervals, paired comparisons, and the ceiling."""

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from aart_lib.experiment.flags import has
from aart_lib.experiment.uncertainty import Judged, holm, interval, paired_bootstrap

OPTIONAL: dict = {"comparisons": [], "ceiling": [], "flags": []}
NEEDED = (
    "data.name data.labels data.videos.train data.videos.validation data.videos.test threat.norm threat.epsilon rows"
)
NEEDED_IN_ROW = (
    "defense seed clean.gap worst.gap attacked.fgsm.gap attacked.pgd.gap other.pgd@2.threat.epsilon other.pgd@2.gap "
    "other.worst@2.gap other.frames-1.threat.epsilon other.frames-1.gap steady_attention.gap steady_attention.gap@2 "
    "attention_drift attention_entropy attention_hijacked train_seconds"
)
MEASURES = ("worst", "worst@2", "frames-1")  # what A-ART is compared by: at ε, at 2ε, one attacked frame


def _runs(judged: Callable, rows: list[dict], name: str, measure: str) -> list[Judged]:
    return [judged(name, row["seed"], measure) for row in rows if row["defense"] == name]


def intervals(judged: Callable, rows: list[dict]) -> dict[str, list[float] | None]:
    """95 % intervals of each defense's worst GAP, resampled over videos and seeds; None with one seed.

    ``judged(defense, seed, measure)`` gives the scores behind a row.
    """
    names = dict.fromkeys(row["defense"] for row in rows)
    several = max(row["seed"] for row in rows) > 0
    return {n: list(interval(_runs(judged, rows, n, "worst"))[1]) if several else None for n in names}


def compare(judged: Callable, rows: list[dict], ours: str = "a-art") -> list[dict]:
    """``ours`` against every other defense: paired differences of GAP, p values corrected (Holm) for their number.

    Seeds vary weights and the order of training; the data and the split are the same for all.
    """
    others = [name for name in dict.fromkeys(row["defense"] for row in rows) if name != ours]
    if not any(row["defense"] == ours for row in rows):
        return []
    found = []
    for measure in MEASURES:
        mine = _runs(judged, rows, ours, measure)
        differences = {name: paired_bootstrap(mine, _runs(judged, rows, name, measure)) for name in others}
        corrected = holm({name: difference.p for name, difference in differences.items()})
        for name, difference in differences.items():
            entry = {"of": ours, "with": name, "measure": measure, "difference": difference.mean}
            found.append(entry | {"ci95": list(difference.ci95), "p": difference.p, "p_holm": corrected[name]})
    return found


def read_results(path) -> dict:
    """A results.json of `reproduce` or `evaluate`, its summary made anew, what is optional in it filled in.

    Raises: ValueError for another file, and for one of an older version that lacks what is shown today.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; give a results.json that `reproduce` or `evaluate` wrote")
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    rows = results.get("rows") if isinstance(results, dict) else None
    rows = rows if isinstance(rows, list) and rows else [{}]
    lacking = [keys for keys in NEEDED.split() if not has(results, keys)]
    lacking += [f"rows {keys}" for row in rows for keys in NEEDED_IN_ROW.split() if not has(row, keys)]
    if lacking:
        raise ValueError(
            f"{path} is no results.json of this version: it lacks {lacking[0]}; run `reproduce --resume` again"
        )
    known = results.get("summary") or {}
    summary = summarize(rows, {name: found.get("ci95") for name, found in known.items()})
    return OPTIONAL | {key: value for key, value in results.items() if value is not None} | {"summary": summary}


def first_seed(rows: list[dict]) -> list[dict]:
    """The rows of the lowest seed, which met every attack."""
    return [row for row in rows if row["seed"] == min(row["seed"] for row in rows)]


def summarize(rows: list[dict], intervals: Mapping[str, list[float] | None] | None = None) -> dict:
    """Means over seeds for each defense. Recovered share = (worst - baseline worst) / (baseline clean - baseline
    worst), baselines of the same seed; ci95 is taken from ``intervals``."""
    base = {row["seed"]: row for row in rows if row["defense"] == "standard"}
    by_name: dict[str, list[dict]] = {}
    for row in rows:
        by_name.setdefault(row["defense"], []).append(row)
    return {name: _summary(group, base) | {"ci95": (intervals or {}).get(name)} for name, group in by_name.items()}


def _summary(group: list[dict], base: dict[int, dict]) -> dict:
    mean = lambda get: statistics.fmean(map(get, group))  # noqa: E731
    summary: dict[str, float | None] = {
        "clean_gap": mean(lambda row: row["clean"]["gap"]),
        "worst_gap": mean(lambda row: row["worst"]["gap"]),
        "steady_gap": mean(lambda row: row["steady_attention"]["gap"]),
        "steady_gap@2": mean(lambda row: row["steady_attention"]["gap@2"]),
        "attention_drift": mean(lambda row: row["attention_drift"]),
        "attention_entropy": mean(lambda row: row["attention_entropy"]),
        "attention_hijacked": mean(lambda row: row["attention_hijacked"]),
        "train_seconds": mean(lambda row: row["train_seconds"]),
        "seeds": len(group),
    }
    for key in ("fgsm", "pgd", "worst@2", "frames-1"):
        summary[f"{key}_gap"] = mean(lambda row, key=key: (row["attacked"] | row["other"])[key]["gap"])
    if group[0].get("evidence_share"):
        for side in ("clean", "attacked", "chance"):
            summary[f"evidence_{side}"] = mean(lambda row, side=side: row["evidence_share"][side])
    recovered = {
        "recovered_share": lambda row: row["worst"]["gap"],
        "recovered_share@2": lambda row: row["other"]["worst@2"]["gap"],
        "recovered_share_frames-1": lambda row: row["other"]["frames-1"]["gap"],
    }
    for key, of in recovered.items():
        shares = [_recovered(of, row, base[row["seed"]]) for row in group if row["seed"] in base]
        summary[key] = statistics.fmean(shares) if shares and None not in shares else None
    return summary


def _recovered(of, row: dict, base: dict):
    """A share, or None where the baseline lost nothing."""
    lost = base["clean"]["gap"] - of(base)
    return (of(row) - of(base)) / lost if lost > 0 else None
