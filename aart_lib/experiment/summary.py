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
# What A-ART is compared by, at ε, at 2ε and with one attacked frame, and the share recovered of each.
MEASURES = {"worst": "recovered_share", "worst@2": "recovered_share@2", "frames-1": "recovered_share_frames-1"}


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
        raise ValueError(f"{path} is no results.json of this version: it lacks {lacking[0]}; run `reproduce` again")
    known = results.get("summary") or {}
    summary = summarize(rows, {name: found.get("ci95") for name, found in known.items()})
    return OPTIONAL | {key: value for key, value in results.items() if value is not None} | {"summary": summary}


def ranked(summary: dict) -> list[str]:
    """The defenses by what the worst attack leaves them, the best first."""
    gaps = {name: found["worst_gap"] for name, found in summary.items()}
    return sorted(gaps, key=gaps.__getitem__, reverse=True)


def first_seed(rows: list[dict]) -> list[dict]:
    """The rows of the lowest seed, which met every attack."""
    return [row for row in rows if row["seed"] == min(row["seed"] for row in rows)]


def summarize(rows: list[dict], intervals: Mapping[str, list[float] | None] | None = None) -> dict:
    """Means over seeds for each defense. Recovered share = (worst - baseline worst) / (baseline clean - baseline
    worst), baselines of the same seed; ci95 is taken from ``intervals``."""
    base = {row["seed"]: row for row in rows if row["defense"] == "standard"}
    names = dict.fromkeys(row["defense"] for row in rows)
    by_name = {name: [row for row in rows if row["defense"] == name] for name in names}
    return {name: _summary(group, base) | {"ci95": (intervals or {}).get(name)} for name, group in by_name.items()}


def _summary(group: list[dict], base: dict[int, dict]) -> dict:
    measured = [_measured(row) for row in group]
    summary: dict = {key: statistics.fmean(found[key] for found in measured) for key in measured[0]}
    pairs = [(_measured(row), _measured(base[row["seed"]])) for row in group if row["seed"] in base]
    for measure, key in MEASURES.items():
        shares = [_recovered(f"{measure}_gap", *pair) for pair in pairs]
        summary[key] = statistics.fmean(shares) if shares and None not in shares else None
    return summary | {"seeds": len(group)}


def _measured(row: dict) -> dict[str, float]:
    """The numbers of a row that a summary is made of."""
    attacks = row["attacked"] | row["other"]
    found = {f"{key}_gap": attacks[key]["gap"] for key in ("fgsm", "pgd", "worst@2", "frames-1")}
    found |= {"clean_gap": row["clean"]["gap"], "worst_gap": row["worst"]["gap"]}
    found |= {"steady_gap": row["steady_attention"]["gap"], "steady_gap@2": row["steady_attention"]["gap@2"]}
    found |= {f"attention_{key}": row[f"attention_{key}"] for key in ("drift", "entropy", "hijacked")}
    found |= {f"evidence_{side}": share for side, share in (row.get("evidence_share") or {}).items()}
    return found | {"train_seconds": row["train_seconds"]}


def _recovered(measure: str, row: dict, base: dict):
    """A share of what the baseline lost, or None where it lost nothing."""
    lost = base["clean_gap"] - base[measure]
    return (row[measure] - base[measure]) / lost if lost > 0 else None
