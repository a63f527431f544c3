"""plan.py: hours are the division one would do by hand, and the committed page is made of the committed numbers."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import plan

RESULTS = json.loads((plan.FIGURES / "scale-plan.json").read_text(encoding="utf-8"))
CARD = plan.Machine(5e12, 7e8)


def test_hours_are_the_division_one_would_do_by_hand():
    one, many = (plan.hours(RESULTS, CARD, devices) for devices in (1, 64))
    size, steps = 3.9e6 * 300 * 1152, 10 * 3.9e6 / 32
    assert one["computing"] == pytest.approx(steps * RESULTS["step"]["flops"] / 2 * 32 / 5e12 / 3600)
    assert one["reading"] == pytest.approx(10 * size / (8 * 7e8) / 3600) == pytest.approx(64 * many["reading"])
    assert one["storage"] == many["storage"] == pytest.approx(10 * size / 2e9 / 3600)
    free = plan.hours(RESULTS, replace(CARD, network=float("inf")), 64)["computing"]
    assert free == pytest.approx(one["computing"] / 64, rel=1e-3) and many["computing"] > free
    assert plan.total(one) == pytest.approx(one["computing"] + one["opening"] + one["evaluation"])
    assert plan.total(many) == pytest.approx(many["storage"] + many["opening"] + many["evaluation"])


def test_the_committed_page_is_made_from_the_committed_numbers():
    assert (plan.FIGURES / "scale-plan.md").read_text(encoding="utf-8") == plan.page(RESULTS)
    assert plan.counted(plan.stepping(30, 1)) == pytest.approx(RESULTS["step"]["flops"] / 2 / 10, rel=0.2)
