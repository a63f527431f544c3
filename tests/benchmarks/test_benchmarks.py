"""tests/benchmarks: pages are made of the committed numbers, targets and hours as one would reckon by hand.

They are not part of `make test`; `python tests/benchmarks/run.py --quick` shows that every row works.
"""

import json
from dataclasses import replace

import plan
import pytest
import report
from bench import DEARER, FASTER, Times

RESULTS = json.loads((plan.FIGURES / "scale-plan.json").read_text(encoding="utf-8"))
CARD = plan.Machine(5e12, 7e8)


def test_the_committed_pages_are_made_of_the_committed_numbers():
    assert (plan.FIGURES / "scale-plan.md").read_text(encoding="utf-8") == plan.page(RESULTS)
    measured = json.loads((plan.FIGURES / "benchmarks.json").read_text(encoding="utf-8"))
    assert (plan.FIGURES / "benchmarks.md").read_text(encoding="utf-8") == report.table(measured)


def test_a_target_is_met_only_where_it_is_reached_and_the_results_are_equal():
    times = Times({"ours": [1.0], "loop": [24.0]})

    def met(target=None, holds=None, ours="ours", peer="loop", meaning=FASTER):
        return times.entry("gap", "GAP", ours, peer, target=target, holds=holds, meaning=meaning)["met"]

    assert met() is None
    assert met(20.0) is True and met(20.0, holds=False) is False
    assert met(25.0) is False and met(20.0, ours="loop", peer="ours", meaning=DEARER) is False


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
