"""The committed ledger: no defense with fewer trials than A-ART, the best kept, and the README's table from it."""

import json
from pathlib import Path

import pytest

from aart_lib.losses import TUNED, changed
from aart_lib.report import heading, table
from aart_lib.summary import summarize
from aart_lib.tune import grid, merit

ROOT = Path(__file__).parent.parent
DATA = ("synthetic", "audioset")


def stored(kind: str, data: str) -> dict:
    return json.loads((ROOT / "figures" / f"{kind}-{data}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("data", DATA)
def test_no_defense_has_fewer_trials_than_a_art(data):
    counts = {name: len(trials) for name, trials in grid(data).items()}
    assert min(counts.values()) == counts["a-art"] >= 4


@pytest.mark.parametrize("data", DATA)
def test_every_trial_of_the_grid_was_run_and_the_best_was_kept(data):
    ledger = stored("trials", data)["trials"]
    for name, plan in grid(data).items():
        run = [found["changes"] for found in ledger[name]]
        assert [changes for changes in plan if json.loads(json.dumps(changes)) not in run] == []
        best = max(ledger[name], key=lambda found, name=name: merit(found, name))
        assert changed(name, TUNED[data][name]) == changed(name, best["changes"]), name


@pytest.mark.parametrize("data", DATA)
def test_the_fast_a_art_is_the_best_of_the_trials_before_it_was_given_up(data):
    best = max(stored("trials", data)["trials"]["a-art with logit pairing (given up)"], key=lambda t: merit(t, "a-art"))
    assert TUNED[data]["a-art-fast"] == best["changes"]


def test_the_control_without_trials_takes_those_of_the_control_beside_it():
    assert TUNED["synthetic"]["adversarial-mean"] == TUNED["synthetic"]["adversarial-uniform"]


@pytest.mark.parametrize("data", DATA)
def test_training_epsilon_is_among_what_was_tried(data):
    for name, plan in grid(data).items():
        if name != "standard":
            assert len({changes["epsilon_scale"] for changes in plan}) > 1


@pytest.mark.parametrize("data", DATA)
def test_readme_shows_the_stored_results(data):
    results, readme = stored("results", data), (ROOT / "README.md").read_text(encoding="utf-8")
    intervals = {name: summary["ci95"] for name, summary in results["summary"].items()}
    assert results["summary"] == summarize(results["rows"], intervals)
    assert heading(results) in readme
    assert table(results["summary"]) in readme
