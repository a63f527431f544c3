"""Reasons to disbelieve a row of results: each a number, a threshold, and what it means when the number is above it.

Source: Carlini et al. 2019 and Athalye et al. 2018 for the checks; the thresholds are this project's.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from itertools import pairwise
from operator import getitem
from typing import NamedTuple

PGD, FGSM, DOUBLED, CURVE = "attacked.pgd", "attacked.fgsm", "other.pgd@2", "other.curve@"


class Check(NamedTuple):
    """A number of a row that should not be above a threshold."""

    name: str
    measure: Callable[[dict], float | None]  # None: it says nothing here
    threshold: float
    meaning: str
    needs: tuple[str, ...] = ()  # what the row must have for it, see `has`


def _gap(row: dict, name: str) -> float:
    return row["attacked"][name]["gap"]


def _rise(row: dict) -> float:
    if len(row["history"]) < 2:
        return 1.0  # unknown, so the most that GAP can rise
    sooner, later = row["history"][-2:]
    return max(later[key] - sooner[key] for key in ("clean", "attacked"))


def _more_steps(row: dict) -> float:
    return _gap(row, "pgd-100") - _gap(row, "pgd-10")


def curve(row: dict) -> list[tuple[float, float]]:
    """(ε, GAP) of the attacks on all frames with one and the same search."""
    return sorted((o["threat"]["epsilon"], o["gap"]) for key, o in row["other"].items() if key.startswith("curve@"))


def _up(row: dict) -> float:
    doubled = row["other"]["pgd@2"]
    points = sorted([*curve(row), (doubled["threat"]["epsilon"], doubled["gap"])])
    return max((later - sooner for (_, sooner), (_, later) in pairwise(points)), default=0.0)


def _far(row: dict) -> float | None:
    """GAP left at the largest ε, if that is at least eight times the table's, above that of the worst order of scores.

    With few labels even the worst order keeps a score: all of them are among the twenty that count.
    """
    epsilon, left = curve(row)[-1]
    left -= row.get("checks", {}).get("floor", 0.0)
    return left if epsilon > 3.9 * row["other"]["pgd@2"]["threat"]["epsilon"] else None


def _blind(row: dict) -> float:
    same = row["attacked"]["gradient-free"]["same_videos"]
    return same["pgd"] - same["gap"]


def _lost_in_bytes(row: dict) -> float:
    """Share of the attack's effect that is gone when features are stored as bytes again."""
    effect = row["clean"]["gap"] - _gap(row, "pgd")
    return (row["other"]["pgd-stored"]["gap"] - _gap(row, "pgd")) / effect if effect > 0.02 else 0.0


def _leaking(row: dict) -> float:
    return _gap(row, "fgsm") - row["clean"]["gap"]


def _ahead(name: str, kind: str, threshold: float, meaning: str) -> Check:
    """By how much the strongest attack of a kind takes more than PGD."""

    def measure(row):
        return _gap(row, "pgd") - min(found["gap"] for name, found in row["attacked"].items() if name.startswith(kind))

    return Check(name, measure, threshold, meaning, (PGD, f"attacked.{kind}"))


def _plain(name: str, path: str, threshold: float, meaning: str) -> Check:
    """A number of the row as it is."""

    def measure(row):
        return reduce(getitem, path.split("."), row)

    return Check(name, measure, threshold, meaning, (path,))


# Name, number, threshold, meaning, and what the row must have.
CHECKS = (
    Check("still-rising", _rise, 0.01, "validation GAP still rose at the last check: train longer before comparing"),
    _ahead("noise-beats-gradient", "noise", 0.0, "noise hurts more than PGD: gradients mislead"),
    _ahead("one-step-beats-many", "fgsm", 0.005, "FGSM hurts more than PGD: gradients mislead"),
    Check("more-steps-weaker", _more_steps, 0.005, "100 steps hurt less than 10", (f"{PGD}-10", f"{PGD}-100")),
    Check("epsilon-not-monotone", _up, 0.005, "a larger ε hurts less: the search fails", (DOUBLED,)),
    Check(
        "never-reaches-chance",
        _far,
        0.10,
        "even a huge ε leaves a score: the search fails, whatever the model can",
        (DOUBLED, CURVE),
    ),
    Check(
        "gradient-free-ahead",
        _blind,
        0.005,
        "a search without gradients hurts more than PGD: gradients are hidden",
        ("attacked.gradient-free.same_videos",),
    ),
    _ahead("transfer-ahead", "transfer-", 0.005, "what is made for others hurts more than its own"),
    _ahead("other-objective-ahead", "pgd-margin", 0.03, "margin beats BCE, whose gradient vanishes"),
    _ahead("adaptive-ahead", "adaptive-", 0.02, "who knows the defense does better than PGD"),
    _plain("gradient-is-zero", "checks.zero_gradient", 0.01, "videos without any gradient to climb"),
    _plain("not-repeatable", "checks.repeat", 1e-3, "two answers to one question: attack the mean"),
    _plain("threat-violated", "checks.violation", 1e-4, "norm, box or padding of an attack is broken"),
    Check(
        "lost-in-bytes",
        _lost_in_bytes,
        0.5,
        "most of the effect is gone when features are stored as bytes again",
        (PGD, "other.pgd-stored"),
    ),
    Check("label-leaking", _leaking, 0.005, "attacked above clean", (FGSM,)),
    _ahead("label-free-ahead", "label-free", 0.005, "not knowing the labels helps: they leak"),
    _plain("flat-attention", "attention_entropy", 0.98, "attention is nearly uniform: steady, but blind"),
)


def flags(defense: str, row: dict, history: list[dict]) -> list[dict]:
    """Every check for which the row and its validation history have the numbers, raised or not."""
    row, found = row | {"history": history}, []
    for check in CHECKS:
        value = check.measure(row) if all(has(row, path) for path in check.needs) else None
        if value is not None:
            about = {"name": check.name, "defense": defense, "raised": value > check.threshold, "value": value}
            found.append(about | {"threshold": check.threshold, "meaning": check.meaning})
    return found


def has(inside, path: str) -> bool:
    """Whether keys, joined by dots, lead to something; a key that ends in "-" or "@" stands for all that begin so."""
    first, _, rest = path.partition(".")
    if not isinstance(inside, Mapping):
        return False
    begins = first.endswith(("-", "@"))
    found = [inside[key] for key in inside if key == first or (begins and key.startswith(first))]
    return any(has(value, rest) if rest else value is not None for value in found)
