"""Reasons to disbelieve a row of results: each a number, a threshold, and what it means when the number is above it.

Source: Carlini et al. 2019 and Athalye et al. 2018 for the checks; the thresholds are this project's.
"""

import math
from itertools import pairwise


def _rise(row: dict, history: list[dict]) -> float:
    if len(history) < 2:
        return 1.0  # unknown, so the most that GAP can rise
    return max(history[-1][key] - history[-2][key] for key in ("clean", "attacked"))


def _curve(row: dict) -> list[tuple[float, float]]:
    """(ε, GAP) of the attacks on all frames with one and the same search."""
    return sorted((o["threat"]["epsilon"], o["gap"]) for key, o in row["other"].items() if key.startswith("curve@"))


def _up(row: dict, history) -> float:
    doubled = row["other"]["pgd@2"]
    curve = sorted([*_curve(row), (doubled["threat"]["epsilon"], doubled["gap"])])
    return max((later[1] - sooner[1] for sooner, later in pairwise(curve)), default=0.0)


def _far(row: dict, history) -> float:
    """GAP left at the largest ε, if that is at least eight times the table's."""
    epsilon, left = _curve(row)[-1]
    return left if epsilon > 3.9 * row["other"]["pgd@2"]["threat"]["epsilon"] else math.nan


def _gap(row: dict, name: str) -> float:
    return row["attacked"][name]["gap"]


def _ahead(row: dict, prefix: str, of: str = "pgd") -> float:
    """By how much the strongest attack of a kind takes more than ``of``."""
    return _gap(row, of) - min(result["gap"] for name, result in row["attacked"].items() if name.startswith(prefix))


def _lost_in_bytes(row: dict, history) -> float:
    """Share of the attack's effect that is gone when features are stored as bytes again."""
    effect = row["clean"]["gap"] - _gap(row, "pgd")
    return (row["other"]["pgd-stored"]["gap"] - _gap(row, "pgd")) / effect if effect > 0.02 else 0.0


def _blind(row: dict, history) -> float:
    free = row["attacked"]["gradient-free"]["same_videos"]
    return free["pgd"] - free["gap"]


# name, number of a row and its history, threshold, meaning. A check that lacks its attack in a suite is left out.
CHECKS = (
    ("still-rising", _rise, 0.01, "validation GAP still rose at the last check: train longer before comparing"),
    ("noise-beats-gradient", lambda row, _: _ahead(row, "noise"), 0.0, "noise hurts more than PGD: gradients mislead"),
    ("one-step-beats-many", lambda row, _: _ahead(row, "fgsm"), 0.005, "FGSM hurts more than PGD: gradients mislead"),
    ("more-steps-weaker", lambda row, _: -_ahead(row, "pgd-100", "pgd-10"), 0.005, "100 steps hurt less than 10"),
    ("epsilon-not-monotone", _up, 0.005, "a larger ε hurts less: the search fails"),
    ("never-reaches-chance", _far, 0.10, "even a huge ε leaves a score: the search fails, whatever the model can"),
    ("gradient-free-ahead", _blind, 0.005, "a search without gradients hurts more than PGD: gradients are hidden"),
    (
        "transfer-ahead",
        lambda row, _: _ahead(row, "transfer-"),
        0.005,
        "what is made for others hurts more than its own",
    ),
    (
        "other-objective-ahead",
        lambda row, _: _ahead(row, "pgd-margin"),
        0.03,
        "margin beats BCE, whose gradient vanishes",
    ),
    ("adaptive-ahead", lambda row, _: _ahead(row, "adaptive-"), 0.02, "who knows the defense does better than PGD"),
    ("gradient-is-zero", lambda row, _: row["checks"]["zero_gradient"], 0.01, "videos without any gradient to climb"),
    ("not-repeatable", lambda row, _: row["checks"]["repeat"], 1e-3, "two answers to one question: attack the mean"),
    ("threat-violated", lambda row, _: row["checks"]["violation"], 1e-4, "norm, box or padding of an attack is broken"),
    ("lost-in-bytes", _lost_in_bytes, 0.5, "most of the effect is gone when features are stored as bytes again"),
    ("label-leaking", lambda row, _: _gap(row, "fgsm") - row["clean"]["gap"], 0.005, "attacked above clean"),
    ("label-free-ahead", lambda row, _: _ahead(row, "label-free"), 0.005, "not knowing the labels helps: they leak"),
    ("flat-attention", lambda row, _: row["attention_entropy"], 0.98, "attention is nearly uniform: steady, but blind"),
)


def flags(defense: str, row: dict, history: list[dict]) -> list[dict]:
    """Every check for which the row's suite has the attacks, raised or not."""
    found = []
    for name, measure, threshold, meaning in CHECKS:
        try:
            value = measure(row, history)
        except (KeyError, IndexError, ValueError):  # the suite had no such attack
            continue
        if not math.isnan(value):
            entry = {"name": name, "defense": defense, "raised": value > threshold, "value": value}
            found.append(entry | {"threshold": threshold, "meaning": meaning})
    return found
