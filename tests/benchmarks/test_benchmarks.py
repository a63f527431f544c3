"""tests/benchmarks: the runner works from end to end, and the table says what was measured and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))

import report  # noqa: E402
from bench import Entry  # noqa: E402

SMALL = ("step", "gap")  # they need no other package


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of a smoke run."""
    out = tmp_path_factory.mktemp("benchmarks")
    rows = [part for name in SMALL for part in ("--only", name)]
    command = [sys.executable, str(HERE / "run.py"), "--quick", "--out", str(out), *rows]
    subprocess.run(command, check=True, env=os.environ)
    return out


def test_a_smoke_run_measures_the_rows_and_the_table_is_made_of_them_alone(made):
    results, text = json.loads((made / "benchmarks.json").read_text()), (made / "benchmarks.md").read_text()
    assert {entry["row"] for entry in results["entries"]} == set(SMALL)
    for entry in results["entries"]:
        measured = entry["note"] != "not installed"
        assert (entry["ratio"] is not None) == measured and entry["holds"] is not False, entry
        assert not measured or all(len(spent) == results["repeats"] for spent in entry["rounds"].values())
        assert report.line(entry) in text
    assert "smoke run" in text and text == report.table(results)


def test_a_target_is_met_only_where_it_is_reached_and_the_results_are_equal():
    fast = {"ratio": 24.0, "target": 20.0}
    slow = Entry("step", "step", "standard", 0.5, 0.2, ratio=2.5, target=2.4, meaning="ours / peer")
    assert Entry("gap", "GAP", "loop", **fast).met and slow.met is False
    assert Entry("gap", "GAP", "loop", **fast, holds=False).met is False
    assert Entry("gap", "GAP", "loop", ratio=24.0).met is None
    assert {"500 ms", "2.50x", "≤ 2.40x", "**no**"} <= set(report.cells(slow.plain()))
