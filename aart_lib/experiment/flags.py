"""Reasons to disbelieve a row of results: each a number, a threshold, and what it means when the number is above it.

Source: Carlini et al. 2019 and Athalye et al. 2018 for the checks; the thresholds are this project's.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from operator import getitem

PGD, FGSM, DOUBLED = ("attacked", "pgd"), ("attacked", "fgsm"), ("other", "pgd@2")


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


def _far(row: dict, history) -> float | None:
    """GAP left at the largest ε, if that is at least eight times the table's."""
    epsilon, left = _curve(row)[-1]
    return left if epsilon > 3.9 * row["other"]["pgd@2"]["threat"]["epsilon"] else None


def _gap(row: dict, name: str) -> float:
    return row["attacked"][name]["gap"]


def _more_steps(row: dict, history) -> float:
    return _gap(row, "pgd-100") - _gap(row, "pgd-10")


def _leaking(row: dict, history) -> float:
    return _gap(row, "fgsm") - row["clean"]["gap"]


def _lost_in_bytes(row: dict, history) -> float:
    """Share of the attack's effect that is gone when features are stored as bytes again."""
    effect = row["clean"]["gap"] - _gap(row, "pgd")
    return (row["other"]["pgd-stored"]["gap"] - _gap(row, "pgd")) / effect if effect > 0.02 else 0.0


def _blind(row: dict, history) -> float:
    free = row["attacked"]["gradient-free"]["same_videos"]
    return free["pgd"] - free["gap"]


def _ahead(name: str, kind: str, threshold: float, meaning: str) -> tuple:
    """By how much the strongest attack of a kind takes more than PGD."""

    def measure(row, history):
        return _gap(row, "pgd") - min(found["gap"] for name, found in row["attacked"].items() if name.startswith(kind))

    return name, measure, threshold, meaning, PGD, ("attacked", kind)


def _stated(name: str, threshold: float, meaning: str, *keys: str) -> tuple:
    """A number that stands in the row as it is."""
    return name, lambda row, history: reduce(getitem, keys, row), threshold, meaning, keys


# Name, number of a row and its history (None: it says nothing here), threshold, meaning, and what of the row it needs,
# each as keys one inside the other; a key that ends in "-" or "@" stands for all that begin so.
CHECKS: tuple[tuple, ...] = (
    ("still-rising", _rise, 0.01, "validation GAP still rose at the last check: train longer before comparing"),
    _ahead("noise-beats-gradient", "noise", 0.0, "noise hurts more than PGD: gradients mislead"),
    _ahead("one-step-beats-many", "fgsm", 0.005, "FGSM hurts more than PGD: gradients mislead"),
    (
        "more-steps-weaker",
        _more_steps,
        0.005,
        "100 steps hurt less than 10",
        ("attacked", "pgd-10"),
        ("attacked", "pgd-100"),
    ),
    ("epsilon-not-monotone", _up, 0.005, "a larger ε hurts less: the search fails", DOUBLED),
    (
        "never-reaches-chance",
        _far,
        0.10,
        "even a huge ε leaves a score: the search fails, whatever the model can",
        DOUBLED,
        ("other", "curve@"),
    ),
    (
        "gradient-free-ahead",
        _blind,
        0.005,
        "a search without gradients hurts more than PGD: gradients are hidden",
        ("attacked", "gradient-free", "same_videos"),
    ),
    _ahead("transfer-ahead", "transfer-", 0.005, "what is made for others hurts more than its own"),
    _ahead("other-objective-ahead", "pgd-margin", 0.03, "margin beats BCE, whose gradient vanishes"),
    _ahead("adaptive-ahead", "adaptive-", 0.02, "who knows the defense does better than PGD"),
    _stated("gradient-is-zero", 0.01, "videos without any gradient to climb", "checks", "zero_gradient"),
    _stated("not-repeatable", 1e-3, "two answers to one question: attack the mean", "checks", "repeat"),
    _stated("threat-violated", 1e-4, "norm, box or padding of an attack is broken", "checks", "violation"),
    (
        "lost-in-bytes",
        _lost_in_bytes,
        0.5,
        "most of the effect is gone when features are stored as bytes again",
        PGD,
        ("other", "pgd-stored"),
    ),
    ("label-leaking", _leaking, 0.005, "attacked above clean", FGSM),
    _ahead("label-free-ahead", "label-free", 0.005, "not knowing the labels helps: they leak"),
    _stated("flat-attention", 0.98, "attention is nearly uniform: steady, but blind", "attention_entropy"),
)


def flags(defense: str, row: dict, history: list[dict]) -> list[dict]:
    """Every check for which the row has the numbers, raised or not."""
    found = []
    for name, measure, threshold, meaning, *needs in CHECKS:
        value = measure(row, history) if all(has(row, keys) for keys in needs) else None
        if value is not None:
            entry = {"name": name, "defense": defense, "raised": value > threshold, "value": value}
            found.append(entry | {"threshold": threshold, "meaning": meaning})
    return found


def has(inside, keys: Sequence[str]) -> bool:
    """Whether keys, one inside the other, lead to something; one that ends in "-" or "@" is a beginning."""
    if not keys or not isinstance(inside, Mapping):
        return not keys and inside is not None
    first, *rest = keys
    begins = first.endswith(("-", "@"))
    return any(has(inside[key], rest) for key in inside if key == first or (begins and key.startswith(first)))
