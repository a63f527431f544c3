"""tests/benchmarks: the runner works from end to end, and the table says what was measured and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SMALL = ("step", "gap", "scaling")  # they need no other package
ROWS = [part for name in SMALL for part in ("--only", name)]


@pytest.fixture(scope="module")
def report():
    sys.path.insert(0, str(HERE))
    try:
        import report
    finally:
        sys.path.remove(str(HERE))
    return report


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of a smoke run."""
    out = tmp_path_factory.mktemp("benchmarks")
    command = [sys.executable, str(HERE / "run.py"), "--quick", "--out", str(out), *ROWS]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"MPLBACKEND": "agg"})
    return out


def an_entry(**changes) -> dict:
    known = {"row": "gap", "what": "GAP", "peer": "loop", "ours_seconds": 0.5, "peer_seconds": 12.0, "ratio": 24.0}
    known |= {"meaning": "peer / ours", "target": 20.0, "holds": True, "note": "", "unit": "s", "met": True}
    return known | changes


def test_a_smoke_run_measures_the_rows_and_says_that_it_is_one(made):
    results = json.loads((made / "benchmarks.json").read_text())
    assert {entry["row"] for entry in results["entries"]} == set(SMALL) and results["quick"]
    for entry in results["entries"]:
        measured = entry["note"] != "not installed"
        assert (entry["ratio"] is not None) == measured and entry["holds"] is not False, entry
        assert not measured or all(len(spent) == results["repeats"] for spent in entry["rounds"].values())
    assert "smoke run" in (made / "benchmarks.md").read_text() and (made / "benchmarks.png").stat().st_size > 10_000


def test_the_table_is_made_from_the_json_alone(made, report):
    text = (made / "benchmarks.md").read_text()
    results = json.loads((made / "benchmarks.json").read_text())
    assert text == report.table(results)
    results["entries"][0]["ours_seconds"] = 123.0
    assert "| 123 s |" in report.table(results) and "| 123 s |" not in text
    assert all(f"{name} {value}" in text for name, value in results["versions"].items())


@pytest.mark.parametrize(
    ("changes", "cells"),
    [
        ({}, ["500 ms", "12 s", "24.00x", "peer / ours", "≥ 20.00x", "yes"]),
        ({"ratio": 2.4, "meaning": "ours / peer", "target": 2.2, "met": False}, ["2.40x", "≤ 2.20x", "**no**"]),
        ({"ratio": None, "met": None, "ours_seconds": None, "note": "not installed"}, ["not installed", "–"]),
    ],
)
def test_a_line_shows_times_ratio_target_and_verdict(changes, cells, report):
    assert set(cells) <= set(report.cells(an_entry(**changes)))


def test_a_target_is_met_only_where_the_results_are_equal(report):
    sys.path.insert(0, str(HERE))
    from bench import Entry

    sys.path.remove(str(HERE))
    fast = Entry("gap", "GAP", "loop", ratio=24.0, target=20.0)
    slow = Entry("step", "step", "standard", ratio=2.4, target=2.2, meaning="ours / peer")
    assert fast.met and slow.met is False
    assert Entry("gap", "GAP", "loop", ratio=24.0, target=20.0, holds=False).met is False
    assert Entry("gap", "GAP", "loop", ratio=24.0).met is None
    entries = [fast.plain(), slow.plain()]
    assert report.finding(entries) == "1 of 2 targets met"
    assert [round(factor, 2) for _, factor, _ in report.margins(entries)] == [1.2, 0.92]
