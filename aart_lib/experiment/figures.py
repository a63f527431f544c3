"""The figures of a report, drawn from results.json alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from aart_lib.experiment.flags import curve
from aart_lib.experiment.summary import first_seed, ranked
from aart_lib.viz import plots


def draw(results: dict, out, prefix: str) -> dict[str, str]:
    """Draw the figures of results.json as PREFIX-KEY.png; returns {key: Markdown with alternative text}.

    Keys: "table", "drift", "epsilon", "training", and where there is something to show "evidence" and "attacks".
    """
    rows = results["rows"]
    drawn = {"table": _bars(results), "drift": _drift(rows), "epsilon": _epsilon(results)}
    if len(tried := attacks_of(rows)) > 3:
        drawn["attacks"] = _attacks(tried, first_seed(rows)[0]["seed"])
    if all(row.get("history") for row in rows):
        drawn["training"] = _training(results)
    if rows[0].get("evidence_share"):
        drawn["evidence"] = _evidence(results)
    for key, (figure, _) in drawn.items():
        plots.save(figure, Path(out) / f"{prefix}-{key}.png")
    return {key: f"![{about}]({prefix}-{key}.png)" for key, (_, about) in drawn.items()}


def attacks_of(rows: list[dict]) -> dict[str, dict[str, float]]:
    """{attack: {defense: GAP}} of the first seed, without the search that got only some of the videos."""
    found: dict[str, dict[str, float]] = {}
    for row in first_seed(rows):
        for attack, result in row["attacked"].items():
            if attack != "gradient-free":
                found.setdefault(attack, {})[row["defense"]] = result["gap"]
    return found


def strongest(tried: dict[str, dict[str, float]]) -> dict[str, str]:
    """{defense: the attack that leaves it the lowest GAP}."""
    names = dict.fromkeys(name for found in tried.values() for name in found)
    gaps = {name: {attack: found[name] for attack, found in tried.items() if name in found} for name in names}
    return {name: min(found, key=found.__getitem__) for name, found in gaps.items()}


def _bars(results: dict):
    summary, epsilon = results["summary"], results["threat"]["epsilon"]
    best, gaps = ranked(summary)[0], {point["epsilon"]: point["gap"] for point in results["ceiling"]}
    lines = {"clean": gaps[0.0], "certified at ε": gaps[epsilon]} if gaps else None
    kept = {name: s["worst_gap"] / s["clean_gap"] if s["clean_gap"] else 0.0 for name, s in summary.items()}
    title = f"Under the worst attack {best} keeps {kept[best]:.0%} of its clean GAP"
    if "standard" in kept:
        title = f"Under the worst attack the baseline keeps {kept['standard']:.0%} of its clean GAP"
        title += f", {best} {kept[best]:.0%}" if best != "standard" else ": no defense keeps a higher GAP"
    about = "Bars: clean, worst attacked and steady-attention GAP of each defense" + "; lines: the ceiling" * bool(gaps)
    return plots.plot_table_bars(results["rows"], ceiling=lines, title=title), f"{about}. {title}"


def rank_correlation(x, y) -> float:
    """Spearman's ρ of two lists, equal values share their mean rank; nan where one of them does not vary."""
    return float(pd.DataFrame({"x": x, "y": y}).corr(method="spearman").loc["x", "y"])


def _drift(rows: list[dict]):
    lost = [row["clean"]["gap"] - row["worst"]["gap"] for row in rows]
    rho = rank_correlation([row["attention_drift"] for row in rows], lost)
    second = "evidence_share" if rows[0].get("evidence_share") else "attention_entropy"
    finding = "No clear order between drift of attention and GAP lost"
    if abs(rho) >= 0.3:
        finding = f"Where attention drifts more, {'more' if rho > 0 else 'less'} GAP is lost"
    title = f"{finding}: rank correlation {rho:+.2f}, {len(rows)} models"
    if np.isnan(rho):
        title = "Drift of attention and GAP lost: too few models to see an order"
    about = f"Points: GAP lost against attention drift, and against {second.replace('_', ' ')}"
    return plots.plot_drift(rows, second=second, title=title), f"{about}. {title}"


def _epsilon(results: dict):
    rows, summary, threat = results["rows"], results["summary"], results["threat"]
    doubled = {n: np.mean([r["other"]["pgd@2"]["gap"] for r in rows if r["defense"] == n]) for n in summary}
    best = max(doubled, key=doubled.__getitem__)
    title = f"When ε doubles, PGD leaves {best} {doubled[best]:.2f} GAP"
    if "standard" in doubled:
        title = f"When ε doubles, PGD leaves the baseline {doubled['standard']:.2f} GAP"
        title += f", {best} {doubled[best]:.2f}" if best != "standard" else ", and no defense more"
    figure = plots.plot_robustness_curve(
        {name: _curve([row for row in rows if row["defense"] == name]) for name in doubled},
        calibrated=threat["epsilon"],
        ceiling=[(point["epsilon"], point["gap"]) for point in results["ceiling"]],
        title=title,
    )
    return figure, f"Lines: GAP of each defense under PGD against ε. {title}"


def _curve(rows: list[dict]):
    """ε [E] and GAP [S,E] of one defense under PGD on all frames; nan where a seed lacks an ε of seed 0."""
    points = []
    for row in rows:
        double, gap = row["other"]["pgd@2"]["threat"]["epsilon"], row["other"]["pgd@2"]["gap"]
        known = {0.0: row["clean"]["gap"], double / 2: row["attacked"]["pgd"]["gap"], double: gap}
        points.append(known | dict(curve(row)))
    epsilons = sorted(points[0])
    return epsilons, [[point.get(epsilon, np.nan) for epsilon in epsilons] for point in points]


def _attacks(tried: dict[str, dict[str, float]], seed: int):
    attack, times = Counter(strongest(tried).values()).most_common(1)[0]
    title = f"Of {len(tried)} attacks {attack} hurts most {times} of {len(strongest(tried))} defenses (seed {seed})"
    about = "Table of shades: GAP of each defense under each attack, the lowest in a ring"
    return plots.plot_attacks(tried, title=title), f"{about}. {title}"


def _training(results: dict):
    rows = results["rows"]
    names = dict.fromkeys(row["defense"] for row in rows)
    histories = {n: [e | {"seed": r["seed"]} for r in rows if r["defense"] == n for e in r["history"]] for n in names}
    rising = sum(flag["raised"] for flag in results["flags"] if flag["name"] == "still-rising")
    title = f"Validation GAP had settled at the end of all {len(rows)} trainings"
    if rising:
        title = f"Validation GAP was still rising at the end of {rising} of {len(rows)} trainings"
    about = "Lines: validation GAP by epoch, clean and attacked"
    return plots.plot_learning_curves(histories, title=title), f"{about}. {title}"


def _evidence(results: dict):
    summary = results["summary"]
    best = ranked(summary)[0]
    shares = {
        n: (summary[n]["evidence_clean"], summary[n]["evidence_attacked"]) for n in ("standard", best) if n in summary
    }
    told = ", ".join(f"of {'the baseline' if n == 'standard' else n} {a:.2f} → {b:.2f}" for n, (a, b) in shares.items())
    title = f"Attention on evidence, clean → attacked: {told}"
    about = "Lines: share of attention on evidence, clean and attacked, of each defense"
    return plots.plot_evidence_share(results["rows"], title=title), f"{about}. {title}"
