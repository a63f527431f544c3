"""flags.py: every check is raised by the row it is meant for, by no honest row, and left out where nothing is known."""

import copy
import json
import math
from pathlib import Path

import pytest

from aart_lib.experiment.flags import CHECKS, Check, flags

RESULTS = Path(__file__).resolve().parents[2] / "figures" / "results-synthetic.json"
HISTORY = [{"clean": 0.8, "attacked": 0.6}, {"clean": 0.801, "attacked": 0.602}]
# What a broken row has in one place: name of the check, place, value.
DOCTORED = {
    "noise-beats-gradient": ("attacked noise gap", 0.5),
    "one-step-beats-many": ("attacked fgsm gap", 0.5),
    "more-steps-weaker": ("attacked pgd-100 gap", 1.0),
    "epsilon-not-monotone": ("other pgd@2 gap", 1.0),
    "never-reaches-chance": ("other curve@16 gap", 0.3),
    "gradient-free-ahead": ("attacked gradient-free same_videos gap", 0.5),
    "transfer-ahead": ("attacked transfer-trades gap", 0.5),
    "other-objective-ahead": ("attacked pgd-margin gap", 0.5),
    "adaptive-ahead": ("attacked adaptive-detached gap", 0.5),
    "gradient-is-zero": ("checks zero_gradient", 0.5),
    "not-repeatable": ("checks repeat", 0.1),
    "threat-violated": ("checks violation", 0.01),
    "lost-in-bytes": ("other pgd-stored gap", 1.0),
    "label-leaking": ("attacked fgsm gap", 1.0),
    "label-free-ahead": ("attacked label-free gap", 0.5),
    "flat-attention": ("attention_entropy", 0.99),
}
# What a row may lack, and the check that is left out then.
LEFT_OUT = {
    "attacked gradient-free": "gradient-free-ahead",
    "attacked transfer-": "transfer-ahead",  # all of them
    "attacked adaptive-": "adaptive-ahead",
    "attacked pgd-margin": "other-objective-ahead",
    "attacked label-free": "label-free-ahead",
    "attacked pgd-100": "more-steps-weaker",
    "other pgd-stored": "lost-in-bytes",
    "other curve@16": "never-reaches-chance",  # the largest ε left is not far enough to say so
    "checks repeat": "not-repeatable",
    "attention_entropy": "flat-attention",
}


@pytest.fixture(scope="module")
def honest() -> dict:
    """The committed row of A-ART under the strong suite."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    row = next(row for row in rows if (row["defense"], row["seed"]) == ("a-art", 0))
    return changed(row, "other curve@8")  # so that one far ε is left


def changed(row: dict, place: str, value=None) -> dict:
    """The row with another value in one place, or without it; "transfer-" stands for all that begin so."""
    row = copy.deepcopy(row)
    *way, last = place.split(" ")
    inner = row
    for key in way:
        inner = inner[key]
    for key in [key for key in inner if key == last or (last.endswith("-") and key.startswith(last))]:
        del inner[key]
    if value is not None:
        inner[last] = value
    return row


def names(row, history=HISTORY, *, only_raised=True) -> set[str]:
    found = flags("a-art", row, history)
    assert all(flag["raised"] == (flag["value"] > flag["threshold"]) and flag["meaning"] for flag in found)
    assert all(math.isfinite(flag["value"]) for flag in found), "JSON knows no infinity"
    return {flag["name"] for flag in found if flag["raised"] or not only_raised}


def test_an_honest_strong_row_passes_every_check(honest):
    assert names(honest) == set()
    assert names(honest, only_raised=False) == {check.name for check in CHECKS} == {*DOCTORED, "still-rising"}


@pytest.mark.parametrize("name", DOCTORED)
def test_each_fraud_raises_its_own_flag(honest, name):
    assert names(changed(honest, *DOCTORED[name])) == {name}


def test_a_score_that_the_worst_order_keeps_is_no_failed_search(honest):
    row = changed(honest, "other curve@16 gap", 0.3)
    row["checks"]["floor"] = 0.3  # with few labels all of them are among the twenty that count
    assert names(row) == set()
    row["checks"]["floor"] = 0.1
    assert names(row) == {"never-reaches-chance"}


def test_a_validation_curve_that_still_rises_or_is_too_short_is_flagged(honest):
    for key in ("clean", "attacked"):
        assert names(honest, [*HISTORY, HISTORY[-1] | {key: 0.85}]) == {"still-rising"}
    assert names(honest, HISTORY[:1]) == names(honest, []) == {"still-rising"}


@pytest.mark.parametrize("place", LEFT_OUT)
def test_a_check_without_its_number_is_left_out(honest, place):
    row = changed(honest, place)
    assert names(row, only_raised=False) == {check.name for check in CHECKS} - {LEFT_OUT[place]} and names(row) == set()


def test_the_strongest_of_several_attacks_is_what_counts(honest):
    row = changed(honest, "attacked transfer-better", {"gap": honest["attacked"]["pgd"]["gap"] - 0.1})
    (found,) = (flag for flag in flags("a-art", row, HISTORY) if flag["name"] == "transfer-ahead")
    assert found["raised"] and found["value"] == pytest.approx(0.1) and found["defense"] == "a-art"


def test_a_mistake_inside_a_check_is_not_taken_for_a_missing_attack(honest, monkeypatch):
    def slip(row):
        return row["attacked"]["pdg"]["gap"]

    monkeypatch.setattr("aart_lib.experiment.flags.CHECKS", (Check("slip", slip, 0.0, "a typo", ("attacked.pgd",)),))
    with pytest.raises(KeyError, match="pdg"):
        flags("a-art", honest, HISTORY)
