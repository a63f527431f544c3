"""flags.py: every check is raised by the row it is meant for, by no honest row, and left out where nothing is known."""

import copy
import math

import pytest

from aart_lib.experiment.flags import CHECKS, Check, flags

HISTORY = [{"clean": 0.8, "attacked": 0.6}, {"clean": 0.801, "attacked": 0.602}]
GAPS = {
    **{"noise": 0.89, "fgsm": 0.75, "pgd": 0.7, "pgd-10": 0.71, "pgd-50": 0.7, "pgd-100": 0.695, "pgd-margin": 0.69},
    **{"apgd": 0.69, "label-free": 0.72, "gradient-free": 0.7, "transfer-other": 0.8, "adaptive-detached": 0.695},
}
HONEST = {
    "clean": {"gap": 0.9},
    "attacked": {name: {"gap": gap} for name, gap in GAPS.items()},
    "other": {
        "pgd@2": {"threat": {"epsilon": 0.2}, "gap": 0.5},
        "curve@0.5": {"threat": {"epsilon": 0.05}, "gap": 0.8},
        "curve@16": {"threat": {"epsilon": 1.6}, "gap": 0.03},
        "frames-1": {"threat": {"epsilon": 0.8}, "gap": 0.85},
        "pgd-stored": {"threat": {"epsilon": 0.1}, "gap": 0.72},
    },
    "attention_entropy": 0.7,
    "checks": {"zero_gradient": 0.0, "repeat": 0.0, "violation": 0.0},
}
HONEST["attacked"]["gradient-free"]["same_videos"] = {"gap": 0.75, "pgd": 0.7}
# What a broken row has in one place: name of the check, place, value.
DOCTORED = {
    "noise-beats-gradient": ("attacked noise gap", 0.69),
    "one-step-beats-many": ("attacked fgsm gap", 0.65),
    "more-steps-weaker": ("attacked pgd-100 gap", 0.75),
    "epsilon-not-monotone": ("other pgd@2 gap", 0.85),
    "never-reaches-chance": ("other curve@16 gap", 0.3),
    "gradient-free-ahead": ("attacked gradient-free same_videos gap", 0.65),
    "transfer-ahead": ("attacked transfer-other gap", 0.65),
    "other-objective-ahead": ("attacked pgd-margin gap", 0.6),
    "adaptive-ahead": ("attacked adaptive-detached gap", 0.65),
    "gradient-is-zero": ("checks zero_gradient", 0.5),
    "not-repeatable": ("checks repeat", 0.1),
    "threat-violated": ("checks violation", 0.01),
    "lost-in-bytes": ("other pgd-stored gap", 0.85),
    "label-leaking": ("attacked fgsm gap", 0.95),
    "label-free-ahead": ("attacked label-free gap", 0.65),
    "flat-attention": ("attention_entropy", 0.99),
}


def changed(place: str, value) -> dict:
    """The honest row with another value in one place, or without it."""
    row = copy.deepcopy(HONEST)
    *way, last = place.split(" ")
    inner = row
    for key in way:
        inner = inner[key]
    inner[last] = value
    if value is None and last != "attention_entropy":
        del inner[last]
    return row


def names(row, history=HISTORY, *, only_raised=True) -> set[str]:
    found = flags("a-art", row, history)
    assert all(flag["raised"] == (flag["value"] > flag["threshold"]) and flag["meaning"] for flag in found)
    assert all(math.isfinite(flag["value"]) for flag in found), "JSON knows no infinity"
    return {flag["name"] for flag in found if flag["raised"] or not only_raised}


def test_an_honest_strong_row_passes_every_check():
    assert names(HONEST) == set()
    assert names(HONEST, only_raised=False) == {check.name for check in CHECKS}


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.name != "still-rising"])
def test_each_fraud_raises_its_own_flag(name):
    assert names(changed(*DOCTORED[name])) == {name}


def test_a_score_that_the_worst_order_keeps_is_no_failed_search():
    row = changed("other curve@16 gap", 0.3)
    row["checks"]["floor"] = 0.3  # with few labels all of them are among the twenty that count
    assert names(row) == set()
    row["checks"]["floor"] = 0.1
    assert names(row) == {"never-reaches-chance"}


def test_a_validation_curve_that_still_rises_or_is_too_short_is_flagged():
    for key in ("clean", "attacked"):
        assert names(HONEST, [*HISTORY, HISTORY[-1] | {key: 0.85}]) == {"still-rising"}
    assert names(HONEST, HISTORY[:1]) == names(HONEST, []) == {"still-rising"}


LEFT_OUT = {
    "attacked gradient-free": "gradient-free-ahead",
    "attacked transfer-other": "transfer-ahead",
    "attacked pgd-margin": "other-objective-ahead",
    "attacked adaptive-detached": "adaptive-ahead",
    "attacked label-free": "label-free-ahead",
    "attacked pgd-100": "more-steps-weaker",
    "other pgd-stored": "lost-in-bytes",
    "other curve@16": "never-reaches-chance",  # the largest ε left is not far enough to say so
    "checks repeat": "not-repeatable",
    "attention_entropy": "flat-attention",
}


@pytest.mark.parametrize("place", LEFT_OUT)
def test_a_check_without_its_number_is_left_out(place):
    row = changed(place, None)
    assert names(row, only_raised=False) == {check.name for check in CHECKS} - {LEFT_OUT[place]} and names(row) == set()


def test_the_strongest_of_several_attacks_is_what_counts():
    row = changed("attacked transfer-better", {"gap": 0.6})
    (found,) = (flag for flag in flags("a-art", row, HISTORY) if flag["name"] == "transfer-ahead")
    assert found["raised"] and found["value"] == pytest.approx(0.1) and found["defense"] == "a-art"


def test_a_mistake_inside_a_check_is_not_taken_for_a_missing_attack(monkeypatch):
    def slip(row):
        return row["attacked"]["pdg"]["gap"]

    monkeypatch.setattr("aart_lib.experiment.flags.CHECKS", (Check("slip", slip, 0.0, "a typo", ("attacked.pgd",)),))
    with pytest.raises(KeyError, match="pdg"):
        flags("a-art", HONEST, HISTORY)
